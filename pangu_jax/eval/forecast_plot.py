"""Plots a forecast."""

from pathlib import Path

import numpy as np

from pangu_jax.core.picture import picture
from pangu_jax.data.series import Series
from pangu_jax.data.timestamp import Timestamps, show_offset
from pangu_jax.eval.predict import Prediction

MOST = 8  # series that one picture shows


def plot(path: str | Path, series: Series, found: Prediction, *, coverage: float) -> None:
    """Draws the last rows of a series, the forecast and its intervals; at most eight series.

    Args:
      path: a .png, .svg or .pdf file.
      series: input of the forecast.
      found: the forecast.
      coverage: nominal coverage of the intervals, 0 to 1.

    Raises:
      InputError: another file ending, or it cannot be written.
    """
    names = found.names[:MOST]
    seen = min(len(series.values), 3 * len(found.times))
    past, coming = _axis(series.stamps[-seen:], found.stamps)
    size = (9, 1.2 + 1.5 * len(names))
    with picture(path, figsize=size, layout="constrained") as figure:
        grid = figure.subplots(len(names), 1, sharex=True, squeeze=False)[:, 0]
        for i, (axes, name) in enumerate(zip(grid, names, strict=True)):
            values = series.values[-seen:, series.names.index(name)]
            axes.plot(past, values, color="0.3", lw=1, label="seen")
            axes.plot(coming, found.values[:, i], color="tab:blue", lw=1.2, label="forecast")
            there = ~np.isnan(found.low[:, i])
            axes.fill_between(
                coming[there], found.low[there, i], found.high[there, i],
                color="tab:blue", alpha=0.2, lw=0, label=f"{coverage:.0%} interval",
            )  # fmt: skip
            axes.set_ylabel(name, fontsize=8)
            axes.grid(alpha=0.3)
        grid[0].legend(fontsize=8, ncols=3, loc="upper left")
        if found.offsets is not None:
            grid[-1].set_xlabel(f"time at UTC{show_offset(found.offsets[-1])}", fontsize=8)
        figure.autofmt_xdate()


def _axis(past: Timestamps, coming: Timestamps) -> tuple[np.ndarray, np.ndarray]:
    """Times at one offset, the last, so that no hour is drawn over another."""
    offset = np.timedelta64(0, "us") if coming.offset is None else coming.offset[-1]
    return past.instants + offset, coming.instants + offset
