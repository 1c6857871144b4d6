"""Figures of a report: no window, and no global state of matplotlib's."""

import contextlib
import itertools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pangu_jax.core.picture import picture


@contextlib.contextmanager
def figure(
    folder: Path, name: str, *shape: int, figsize: tuple[float, float] = (7, 4), **options: Any
) -> Iterator[Any]:
    """Yields axes to draw on, and saves them as plots/NAME.png of the run when the block ends.

    Args:
      folder: of the run.
      name: of the figure.
      *shape: rows and columns of axes, if there are several.
      figsize: width and height in inches.
      **options: of `matplotlib.figure.Figure.subplots`, such as sharex.

    Raises:
      InputError: the file cannot be written.
    """
    with picture(folder / "plots" / f"{name}.png", figsize=figsize) as drawn:
        yield drawn.subplots(*shape, **options)
        drawn.tight_layout()


def guide(axes: Any) -> None:
    """Adds a faint grid, and a legend if something has a label."""
    axes.grid(alpha=0.3)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(fontsize=8)


def estimates(
    axes: Any,
    rows: Mapping[str, Sequence[tuple[float, float, float]]],
    beside: Mapping[str, float | None] | None = None,
) -> None:
    """A line for each name, from above, with its values and their intervals.

    Args:
      axes: to draw on.
      rows: by name, each (value, low, high), such as those of several seeds.
      beside: values to compare with, by what the legend calls them, as upright lines; None is not
        drawn.
    """
    for place, found in enumerate(rows.values()):
        value, low, high = np.array(found, float).T
        shift = (np.arange(len(value)) - (len(value) - 1) / 2) * 0.6 / len(value)
        axes.errorbar(
            value,
            place + shift,
            xerr=np.abs([value - low, high - value]),  # rounding must not make one negative
            fmt="o",
            ms=4,
            capsize=2,
            color="tab:blue",
        )
    styles = itertools.cycle((":", "--", "-."))
    for (name, value), style in zip((beside or {}).items(), styles, strict=False):
        if value is not None:
            axes.axvline(value, color="gray", ls=style, lw=1, label=name)
    axes.set_yticks(range(len(rows)), list(rows))
    axes.set_ylim(len(rows) - 0.5, -0.5)  # not inverted, as axes that share it would do so twice
    guide(axes)
