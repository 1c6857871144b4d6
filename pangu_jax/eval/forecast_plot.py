"""Plots a forecast."""

import io
from pathlib import Path

import matplotlib
import numpy as np

from pangu_jax.core.errors import InputError
from pangu_jax.core.files import atomic_write
from pangu_jax.data.series import Series
from pangu_jax.data.timestamp import Timestamps, show_offset
from pangu_jax.eval.predict import Prediction

FORMATS = (".png", ".svg", ".pdf")
MOST = 8  # series that one picture shows


def plot(path: str | Path, series: Series, found: Prediction, *, coverage: float) -> None:
    """Draws the last rows of a series, the forecast and its intervals; at most eight series.

    Args:
      path: a .png, .svg or .pdf file.
      series: input of the forecast.
      found: the forecast.
      coverage: nominal coverage of the intervals, 0 to 1.

    Raises:
      InputError: another file ending.
    """
    path = Path(path)
    if path.suffix.lower() not in FORMATS:
        raise InputError(f"{path} ends in none of {', '.join(FORMATS)}")
    from matplotlib.figure import Figure  # no window, and no global state

    names = found.names[:MOST]
    seen = min(len(series.values), 3 * len(found.times))
    past, coming = _axis(series.stamps[-seen:], found.stamps)
    with matplotlib.rc_context({"svg.hashsalt": "pangu_jax"}):
        figure = Figure(figsize=(9, 1.2 + 1.5 * len(names)), layout="constrained")
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
        picture = io.BytesIO()
        figure.savefig(picture, format=path.suffix[1:].lower(), dpi=120)
    with atomic_write(path, "wb") as file:
        file.write(picture.getvalue())


def _axis(past: Timestamps, coming: Timestamps) -> tuple[np.ndarray, np.ndarray]:
    """Times at one offset, the last, so that no hour is drawn over another."""
    offset = np.timedelta64(0, "us") if coming.offset is None else coming.offset[-1]
    return past.instants + offset, coming.instants + offset
