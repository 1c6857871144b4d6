"""Why Exchange-720 is behind the published figure: the test error after every epoch.

    python experiments/timepro/exchange.py --data FOLDER [--out exchange.json]

Trains the published setting, and the same with the smaller rate of the other three horizons,
without an early stop, and prints what the validation windows and the test windows say after every
epoch. The test windows choose nothing: they show what any rule of stopping could have reached.
"""

import argparse
import dataclasses
import json
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent.parent)]

import jax  # noqa: E402
import numpy as np  # noqa: E402
from cell import scaled, windows_of  # noqa: E402
from config import SETTINGS  # noqa: E402

from pangu_jax.train.forecast import fit  # noqa: E402

HORIZON, SEEDS, EPOCHS = 720, (0, 1, 2, 3, 4), 10


def curve(series, train, measured, model, training) -> np.ndarray:
    """Errors after every epoch, [seeds, epochs], of the windows that are measured."""
    found = fit(series, train, measured, model=model, cfg=training, seeds=SEEDS)
    return np.array([[epoch["validation"] for epoch in seed] for seed in found.curves])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", required=True, help="the folder that holds exchange_rate.txt")
    parser.add_argument("--out", default="exchange.json")
    options = parser.parse_args()
    series = scaled("Exchange", options.data)
    at = windows_of("Exchange", series, HORIZON)
    published, training = SETTINGS["Exchange", HORIZON]
    results = {"device": jax.devices()[0].device_kind, "validation_windows": len(at.validation)}
    for state in (True, False):
        for rate in (training.learning_rate, 3e-5):
            model = dataclasses.replace(published, state=state)
            long = dataclasses.replace(training, learning_rate=rate, epochs=EPOCHS, patience=EPOCHS)
            # The same seeds take the same steps, whatever is measured after an epoch.
            validation = curve(series, at.train, at.validation, model, long)
            test = curve(series, at.train, at.test, model, long)
            name = f"{'full' if state else 'stateless'}, rate {rate:g}"
            results[name] = {"validation": validation.tolist(), "test": test.tolist()}
            print(name)
            for epoch in range(EPOCHS):
                print(
                    f"  epoch {epoch + 1:2}  validation {validation[:, epoch].mean():.4f} ± "
                    f"{validation[:, epoch].std(ddof=1):.4f}  test {test[:, epoch].mean():.4f} ± "
                    f"{test[:, epoch].std(ddof=1):.4f}",
                    flush=True,
                )
    Path(options.out).write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
