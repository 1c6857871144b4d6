"""Runs made of cells: each result is computed once and saved at once, so that a run can resume.

    results = open_results(folder, settings)
    compute(folder, results, "dense", measure_dense)

The folder holds the settings as config.json and {cell: what it gave} as results.json.
"""

import json
import time
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

from pangu_jax.core.config import read_json
from pangu_jax.core.errors import InputError
from pangu_jax.core.files import atomic_write
from pangu_jax.core.run_folder import Claim, begin_run, open_run

RESULTS = "results.json"

_claims: dict[Path, Claim] = {}  # of this process, which computes what is missing until it ends


def open_results(
    folder: str | Path, settings: dict[str, Any], *, free: Collection[str] = ()
) -> dict[str, Any]:
    """Claims the folder until this process ends; returns the results so far.

    A new folder is given its config.json and has none.

    Args:
      folder: of the run; made if missing.
      settings: JSON values and configs, by the names that errors use.
      free: names whose values may differ: what changes no cell, but which of them there are.

    Raises:
      InputError: the folder holds a run of other settings, another process computes there, or it
        cannot be read or written.
    """
    lock_run(folder, settings, free=free)
    path = Path(folder) / RESULTS
    found = read_json(path, finite=False) if path.exists() else {}
    if not isinstance(found, dict):
        raise InputError(f"{path} holds no JSON object")
    return found


def lock_run(folder: str | Path, settings: dict[str, Any], *, free: Collection[str] = ()) -> None:
    """Opens a run (`core.run_folder.open_run`) until this process ends; a repeat only compares.

    Args:
      folder: of the run; made if missing.
      settings: JSON values and configs, by the names that errors use.
      free: names whose values may differ.

    Raises:
      InputError: as `open_run`.
    """
    path = Path(folder).absolute()
    if path in _claims and _claims[path].holds():
        begin_run(path, settings, free=free)
        return
    if path in _claims:
        _claims.pop(path).close()  # that folder is gone
    _claims[path] = open_run(path, settings, free=free)


def save_results(folder: str | Path, results: dict[str, Any]) -> None:
    """Writes results.json atomically.

    Raises:
      InputError: it cannot be written.
    """
    with atomic_write(Path(folder) / RESULTS) as file:
        json.dump(results, file, indent=1)


def compute(
    folder: str | Path,
    results: dict[str, Any],
    name: str,
    make: Callable[[], dict[str, Any]],
    *,
    timed: bool = False,
) -> bool:
    """Computes and saves a cell unless it is there; returns whether it was computed.

    Args:
      folder: of the run.
      results: what `open_results` gave; the cell is added to it.
      name: of the cell.
      make: gives the cell as JSON values.
      timed: whether the cell also gets how long this call took, as "seconds".

    Raises:
      InputError: it cannot be written.
    """
    if name in results:
        return False
    began = time.monotonic()
    cell = make()
    results[name] = {**cell, "seconds": time.monotonic() - began} if timed else cell
    save_results(folder, results)
    return True
