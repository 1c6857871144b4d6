"""Why Exchange-720 is behind the published figure: the test error after every epoch.

    python experiments/timepro/exchange.py --data FOLDER [--out FILE]
    python experiments/timepro/exchange.py --report experiments/timepro/exchange.json

Trains the published setting, and the same with the smaller rate of the other three horizons,
without an early stop, and prints what the validation windows and the test windows say after every
epoch. The test windows choose nothing: they show what any rule of stopping could have reached.
"""

import argparse
import dataclasses
import json

import jax
import numpy as np

from experiments.timepro.cell import scaled, windows_of
from experiments.timepro.config import SETTINGS
from pangu_jax.cli.stopping import script
from pangu_jax.core.config import read_json
from pangu_jax.core.files import atomic_write
from pangu_jax.study.table import mean_std
from pangu_jax.train.forecast import fit

HORIZON, SEEDS, EPOCHS = 720, (0, 1, 2, 3, 4), 10


def curve(series, train, measured, model, training) -> np.ndarray:
    """Errors after every epoch, [seeds, epochs], of the windows that are measured."""
    found = fit(series, train, measured, model=model, cfg=training, seeds=SEEDS)
    return np.array([[epoch["validation"] for epoch in seed] for seed in found.curves])


def measure(folder: str) -> dict:
    """The curves of every variant and rate."""
    series = scaled("Exchange", folder)
    at = windows_of("Exchange", series, HORIZON)
    published, training = SETTINGS["Exchange", HORIZON]
    found = {
        "device": jax.devices()[0].device_kind,
        "jax": jax.__version__,
        "validation_windows": len(at.validation),
    }
    for state in (True, False):
        for rate in (training.learning_rate, 3e-5):
            model = dataclasses.replace(published, state=state)
            long = dataclasses.replace(training, learning_rate=rate, epochs=EPOCHS, patience=EPOCHS)
            # The same seeds take the same steps, whatever is measured after an epoch.
            curves = {
                "validation": curve(series, at.train, at.validation, model, long).tolist(),
                "test": curve(series, at.train, at.test, model, long).tolist(),
            }
            found[f"{'full' if state else 'stateless'}, rate {rate:g}"] = curves
    return found


def report(found: dict) -> None:
    """Prints the means over seeds by epoch, and what rules of stopping reach."""
    print(
        f"{found['device']}, jax {found['jax']}, {found['validation_windows']} validation windows"
    )
    for name, curves in found.items():
        if not isinstance(curves, dict):
            continue
        validation, test = np.array(curves["validation"]), np.array(curves["test"])
        print(name)
        for epoch, (one, two) in enumerate(zip(validation.T, test.T, strict=True), start=1):
            print(f"  epoch {epoch:2}  validation {mean_std(one, 4)}  test {mean_std(two, 4)}")
        chosen = test[np.arange(len(test)), validation.argmin(1)]
        epochs = ", ".join(map(str, validation.argmin(1) + 1))
        print(f"  chosen by validation (epochs {epochs}): test {mean_std(chosen, 4)}")
        best = test.min(1)
        print(
            f"  stopped by hindsight: test {mean_std(best, 4)}, the luckiest seed {best.min():.4f}"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", help="the folder that holds exchange_rate.txt")
    parser.add_argument("--out", help="where the curves go, as JSON")
    parser.add_argument("--report", help="prints what a file of curves says; nothing is trained")
    options = parser.parse_args()
    if (options.data is None) == (options.report is None):
        parser.error("give either --data or --report")
    found = measure(options.data) if options.data else read_json(options.report)
    if options.out:
        with atomic_write(options.out) as file:
            json.dump(found, file)
    report(found)


if __name__ == "__main__":
    script(main)
