"""The cells of an experiment in one process: missing ones are computed and saved at once.

    cells = begin(folder, experiment, checkpoint=options.checkpoint)
    for seed in experiment.seeds:
        cell(cells, f"model/seed{seed}", partial(_train_and_measure, seed))

Several processes that share a table are for `study.workers`.
"""

import dataclasses
import sys
import time
from collections.abc import Callable, Collection, Iterable, Iterator
from pathlib import Path
from typing import Any

from pangu_jax.core.cells import compute, open_results
from pangu_jax.core.config import to_json


@dataclasses.dataclass(frozen=True)
class Cells:
    """A run that this process holds.

    Attributes:
      folder: of the run.
      results: {cell: result}, as in results.json.
    """

    folder: Path
    results: dict[str, Any]


def begin(folder: Path, experiment: Any, *, free: Collection[str] = (), **settings: Any) -> Cells:
    """Starts or resumes a run, and holds its folder until the process ends.

    Args:
      folder: of the run; made if missing.
      experiment: a frozen dataclass, whose fields become the settings in config.json.
      free: names of settings that may differ from the run's, such as seeds where each has its cell.
      **settings: others that decide results, as JSON values.

    Raises:
      InputError: the folder holds a run of other settings, or another process computes there.
    """
    return Cells(folder, open_results(folder, {**to_json(experiment), **settings}, free=free))


def cell(
    cells: Cells,
    name: str,
    make: Callable[[], dict[str, Any]],
    *,
    shown: Callable[[dict[str, Any]], str] | None = None,
) -> dict[str, Any]:
    """A cell's result; a missing one is computed, with the "seconds" that it took.

    Where what it trains goes on from a run that was stopped, these are of the last stretch alone.

    Args:
      cells: the run.
      name: of the cell.
      make: computes the cell as JSON values.
      shown: its figures in words, for the line about a computed cell; None writes no line.

    Raises:
      InputError: it cannot be written.
    """
    if compute(cells.folder, cells.results, name, make, timed=True) and shown is not None:
        found = cells.results[name]
        say(f"{name}: {shown(found)} ({found['seconds']:.0f} s)")
    return cells.results[name]


def in_time(
    cells: Cells, makes: Iterable[tuple[str, Callable[[], dict[str, Any]]]], minutes: float | None
) -> Iterator[tuple[str, Callable[[], dict[str, Any]]]]:
    """Yields cells to compute, in order, until a missing one would begin too late.

    Args:
      cells: the run.
      makes: each cell's name, and its function.
      minutes: from now, after which no cell begins; None sets no end.
    """
    ends = time.monotonic() + 60 * minutes if minutes is not None else float("inf")
    for name, make in makes:
        if name not in cells.results and time.monotonic() > ends:
            say(f"the time is over before {name}; the same command goes on")
            return
        yield name, make


def say(text: str) -> None:
    """Prints a line about the progress to stderr."""
    print(text, file=sys.stderr, flush=True)
