"""Forecast the series of a CSV file, with intervals.

python examples/forecast.py [FILE.csv]     # without one it makes a small file itself
"""

import sys
from pathlib import Path

import numpy as np

import pangu_jax as pj

file = Path(sys.argv[1] if len(sys.argv) > 1 else "runs/load.csv")
if len(sys.argv) < 2:  # ten days of two hourly series
    file.parent.mkdir(exist_ok=True)
    hours = np.arange("2024-01-01", "2024-01-11", dtype="datetime64[h]")
    noise = np.random.default_rng(0).normal(scale=0.1, size=(2, len(hours)))
    day = 2 * np.pi * np.arange(len(hours)) / 24
    rows = zip(hours, np.sin(day) + noise[0], np.cos(day) + noise[1], strict=True)
    lines = [f"{str(hour).replace('T', ' ')}:00,{a:.4f},{b:.4f}" for hour, a, b in rows]
    file.write_text("\n".join(["date,demand,wind", *lines]))

model = pj.fit(file, horizon=4, look_back=24, patch=8, stride=8, layers=1, channels=16, epochs=4,
               learning_rate=3e-3)  # fmt: skip
found = pj.forecast(model, file)
for time, value, low, high in zip(
    found["times"], found["values"], found["low"], found["high"], strict=True
):
    cells = zip(found["names"], value, low, high, strict=True)
    print(time, *(f"{name} {v:.2f} ({a:.2f} to {b:.2f})" for name, v, a, b in cells))

errors = pj.evaluate(model, file)
print(f"mean squared error {errors['mse']:.3f}, of repeating {errors['repeat']['mse']:.3f}")
