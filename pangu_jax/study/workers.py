"""Cells shared by several processes: each is a file of its own, taken by the first process.

    given = options.parser(__doc__, PRESETS, workers=True).parse_args()
    results = run(folder, settings, "experiments.my_paper.run", given, cells, shown=...)
    if results is not None:                             # None in a worker
        write_report(...)

The run's folder has cells/NAME.json, training/NAME while a cell is not done, and results.json.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from pangu_jax.checkpoint.store import discard
from pangu_jax.core.cells import RESULTS, lock_run
from pangu_jax.core.config import read_json
from pangu_jax.core.errors import InputError
from pangu_jax.core.files import atomic_write
from pangu_jax.study.cells import say

Stop = Callable[[], bool]
Makes = Mapping[str, Callable[[Path, Stop], dict[str, Any]]]  # cells to compute, as `work` says

# What workers exit with that have nothing to report, or were told to stop.
STOPPED = (0, -signal.SIGTERM, 128 + signal.SIGTERM, 128 + signal.SIGINT)
MEASURING = 25  # seconds kept for measuring what was trained when time is up


def run(
    folder: Path,
    settings: dict[str, Any],
    module: str,
    given: argparse.Namespace,
    cells: Callable[[], Makes],
    *,
    shown: Callable[[dict[str, Any]], str],
    whole: bool = False,
) -> dict[str, Any] | None:
    """Computes what is missing, in this process or in workers that run its command.

    Args:
      folder: of the run.
      settings: what decides results, as JSON values and configs.
      module: module that the command runs, as for `python -m`.
      given: --workers, --gpus, --seconds and --worker of `study.options.parser`.
      cells: returns the cells; called where they are computed, so what they need is loaded there.
      shown: a cell's figures in words.
      whole: see `work`.

    Returns:
      All cells that are done, by name; None in a worker.

    Raises:
      InputError: the folder holds a run of other settings, another process computes there, or a
        cell cannot be computed or written.
    """
    began, seconds = time.monotonic(), given.seconds
    if not given.worker:
        begin(folder, settings)
    if given.worker or given.workers == 1:
        makes = cells()
        left = None if seconds is None else seconds - (time.monotonic() - began)
        work(folder, makes, shown=shown, seconds=left, whole=whole)
    else:
        share(folder, module, given.workers, gpus=given.gpus, seconds=seconds)
    return None if given.worker else collect(folder)


def begin(folder: Path, settings: dict[str, Any]) -> None:
    """Starts or resumes a run, and holds its folder until this process ends.

    Raises:
      InputError: the folder holds a run of other settings, or another process computes there.
    """
    lock_run(folder, settings)
    (folder / "cells").mkdir(exist_ok=True)
    _untake(folder)  # what was taken in a run that was stopped


def work(
    folder: Path,
    cells: Makes,
    *,
    shown: Callable[[dict[str, Any]], str],
    seconds: float | None = None,
    whole: bool = False,
) -> None:
    """Takes unclaimed cells until none is left or time is up.

    Args:
      folder: of the run.
      cells: functions by name, each of a folder for its training and of `stop`, which says whether
        time is up. A cell that was cut short for that has "cut" set, and the next run computes it
        again, resuming its training. A cell that does not say its "seconds" is given them.
      shown: a cell's figures in words.
      seconds: time limit; None for none.
      whole: a cell that is stopped is lost, so none begins with less time left than this worker's
        last one took.

    Raises:
      InputError: a cell cannot be computed or written.
    """
    end = time.monotonic() + (float("inf") if seconds is None else seconds)
    took = 0.0

    def stop() -> bool:
        return end - time.monotonic() < MEASURING

    for name, make in cells.items():
        path, claim = folder / "cells" / f"{name}.json", folder / "cells" / f"{name}.claim"
        if is_done(folder, name) or not _take(claim):
            continue
        if stop() or (whole and end - time.monotonic() < took):
            claim.unlink(missing_ok=True)
            return
        say(f"{name} begins")
        training = folder / "training" / name
        # A cell that fails stays taken, so that the other workers go on with the rest.
        began = time.monotonic()
        result = make(training, stop)
        took = time.monotonic() - began
        result = {"seconds": took, **result}
        with atomic_write(path) as file:
            json.dump(result, file, indent=1)
        if training.exists() and not result.get("cut"):
            discard(training)
        claim.unlink(missing_ok=True)
        say(f"{name} is done: {shown(result)}, {result['seconds']:.0f} s")
        collect(folder)


def share(
    folder: Path, module: str, workers: int, *, gpus: int = 1, seconds: float | None = None
) -> None:
    """Runs this process's command in several workers, with --worker, and ends them in time.

    Args:
      folder: of the run.
      module: module that the command runs, as for `python -m`.
      workers: number of processes; those on one device share its memory.
      gpus: GPUs they are spread over, the first of those that are visible; with one, all see what
        this process sees.
      seconds: time after which they are told to stop; None for no end.
    """
    began = time.monotonic()
    command = [sys.executable, "-m", module, *sys.argv[1:], "--worker"]
    places = [_environment(i, workers, gpus) for i in range(workers)]
    running = [subprocess.Popen(command, env={**os.environ, **place}) for place in places]
    try:
        while any(worker.poll() is None for worker in running):
            if seconds and time.monotonic() - began > seconds:
                say("time is up; the same command goes on from here")
                break
            time.sleep(0.5)
    finally:
        for worker in running:
            if worker.poll() is None:
                worker.terminate()
        for worker in running:
            worker.wait()
        _untake(folder)
    failed = [worker.returncode for worker in running if worker.returncode not in STOPPED]
    if failed:
        say(f"{len(failed)} of {len(running)} workers failed; their message is above")


def collect(folder: Path) -> dict[str, Any]:
    """All cells that are done, by name; also writes them to results.json.

    Raises:
      InputError: one cannot be read, or the file cannot be written.
    """
    results = {
        path.stem: read_json(path, finite=False)
        for path in sorted((folder / "cells").glob("*.json"))
    }
    with atomic_write(folder / RESULTS) as file:
        json.dump(results, file, indent=1)
    return results


def is_done(folder: Path, name: str) -> bool:
    """Whether a cell's result exists and was not cut short by a time limit."""
    path = folder / "cells" / f"{name}.json"
    return path.exists() and not read_json(path, finite=False).get("cut")


def _environment(worker: int, workers: int, gpus: int) -> dict[str, str]:
    """What a worker's environment has besides this process's: its GPU, its share of memory."""
    found = {"XLA_PYTHON_CLIENT_MEM_FRACTION": f"{0.9 / -(-workers // gpus):.3f}"}
    if gpus > 1:
        seen = os.environ.get("CUDA_VISIBLE_DEVICES", "")
        names = seen.split(",") if seen else [str(i) for i in range(gpus)]
        if len(names) < gpus:
            raise InputError(
                f"CUDA_VISIBLE_DEVICES names {len(names)} GPUs, --gpus asks for {gpus}"
            )
        found["CUDA_VISIBLE_DEVICES"] = names[worker % gpus]
    return found


def _take(claim: Path) -> bool:
    try:
        os.close(os.open(claim, os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        return False
    return True


def _untake(folder: Path) -> None:
    for left in (folder / "cells").glob("*.claim"):
        left.unlink(missing_ok=True)
