"""Figures of a report: no window, and no global state of matplotlib's."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from pangu_jax.core.files import atomic_write


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
    drawn = Figure(figsize=figsize)
    yield drawn.subplots(*shape, **options)
    drawn.tight_layout()
    with atomic_write(folder / "plots" / f"{name}.png", "wb") as file:
        drawn.savefig(file, dpi=120, format="png")


def guide(axes: Any) -> None:
    """Adds a faint grid, and a legend if something has a label."""
    axes.grid(alpha=0.3)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(fontsize=8)
