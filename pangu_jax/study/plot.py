"""Figures of a report, drawn without a display."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import matplotlib

from pangu_jax.core.files import atomic_write

matplotlib.use("Agg")
import matplotlib.pyplot as plt


@contextlib.contextmanager
def figure(folder: Path, name: str, *shape: int, **options: Any) -> Iterator[Any]:
    """Gives axes to draw on, and saves them as plots/NAME.png of the run when the block ends.

    Args:
      folder: of the run.
      name: of the figure.
      *shape: rows and columns of axes, if there are several.
      **options: of `matplotlib.pyplot.subplots`, such as figsize in inches.
    """
    (folder / "plots").mkdir(parents=True, exist_ok=True)
    drawn, axes = plt.subplots(*shape, **options)
    try:
        yield axes
        drawn.tight_layout()
        with atomic_write(folder / "plots" / f"{name}.png", "wb") as file:
            drawn.savefig(file, dpi=120, format="png")
    finally:
        plt.close(drawn)


def guide(axes: Any) -> None:
    """A faint grid, and a legend where something has a label."""
    axes.grid(alpha=0.3)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(fontsize=8)
