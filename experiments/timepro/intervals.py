"""What forecast intervals cover of the test part: fixed half widths beside tracked ones.

    python experiments/timepro/intervals.py --data FOLDER [--sets ETTh1 ETTh2 ETTm1] [--horizon 96]

The forecaster is the closed-form linear map (seconds on a CPU), the borders are the published ones
or, with --rule ratio, those of `pangu-jax forecast train`. Widths are calibrated and the rate is
chosen on the validation windows alone; test windows are tracked with what was known when each
forecast was made. `--rates` shows the other rates, too.

Source: "Conformal PID Control for Time Series Prediction", arXiv 2307.16895, quantile tracking.
"""

import argparse
from collections.abc import Iterator

import numpy as np

from pangu_jax.cli.stopping import script
from pangu_jax.data import ltsf
from pangu_jax.data.windows import Scaler, parts, split_rows
from pangu_jax.eval.forecast import fit_linear
from pangu_jax.eval.intervals import (
    RATES,
    choose_rate,
    conformal,
    interval_score,
    measure_coverage,
    track,
)
from pangu_jax.study.table import table

LOOK_BACK = 96
COLUMNS = (
    "data", "rate", "covered: fixed", "tracked", "series, fixed", "series, tracked",
    "steps, tracked", "width / fixed", "interval score / fixed",
)  # fmt: skip


def residuals(forecast, series: np.ndarray, starts: np.ndarray, horizon: int) -> np.ndarray:
    """Truth less forecast of every window, float32 [n, H, V]."""
    found = np.empty((len(starts), horizon, series.shape[1]), np.float32)
    for first in range(0, len(starts), 512):
        rows = starts[first : first + 512, None] + np.arange(LOOK_BACK + horizon)
        seen, wanted = series[rows[:, :LOOK_BACK]], series[rows[:, LOOK_BACK:]]
        found[first : first + 512] = wanted - forecast(seen)
    return found


def rows_of(
    name: str, folder: str, horizon: int, coverage: float, rule: str | None, every: bool
) -> Iterator[tuple[str, ...]]:
    """Rows of the table: the chosen rate's, and the others' if they are asked for."""
    values = ltsf.load(name, folder)
    split = split_rows(len(values), rule or ltsf.benchmark(name).rule)
    series = Scaler.fit(values[slice(*split.train)]).scale(values)
    at = parts(split, look_back=LOOK_BACK, horizon=horizon, where=name)
    linear = fit_linear(series, at.train, look_back=LOOK_BACK, horizon=horizon)
    held = residuals(linear, series, at.validation, horizon)
    width, chosen = conformal(held, coverage), choose_rate(held, coverage)
    left = residuals(linear, series, at.test, horizon)
    fixed, score = measure_coverage(left, width), interval_score(left, width, coverage)
    for rate in RATES if every else (chosen,):
        widths = track(width, left, rate=rate, coverage=coverage)[:-1]
        tracked = measure_coverage(left, widths)
        ratio = tracked.width.mean() / fixed.width.mean()
        better = interval_score(left, widths, coverage).mean() / score.mean()
        mark = " (chosen)" if every and rate == chosen else ""
        yield (
            name,
            f"{rate:g}{mark}",
            *(f"{fixed.share:.1%}", f"{tracked.share:.1%}"),
            *(_range(fixed.of_series), _range(tracked.of_series), _range(tracked.of_step)),
            *(f"{ratio:.2f}", f"{better:.2f}"),
        )


def _range(shares: np.ndarray) -> str:
    return f"{shares.min():.1%} to {shares.max():.1%}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", required=True, help="the folder that holds the data sets' files")
    parser.add_argument("--sets", nargs="+", default=["ETTh1", "ETTh2", "ETTm1"])
    parser.add_argument("--horizon", type=int, default=96)
    parser.add_argument("--coverage", type=float, default=0.9)
    parser.add_argument("--rule", choices=("hourly", "quarter", "ratio"), help="how data are split")
    parser.add_argument("--rates", action="store_true", help="shows every rate")
    options = parser.parse_args()
    asked = (options.data, options.horizon, options.coverage, options.rule, options.rates)
    print(table(COLUMNS, (row for name in options.sets for row in rows_of(name, *asked))))


if __name__ == "__main__":
    script(main)
