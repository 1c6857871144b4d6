"""Results of a run that is made of cells: each is computed once, saved at once, and found again.

    results = open_results(folder, settings)
    compute(folder, results, "dense", measure_dense)

The folder holds the settings as config.json and {cell: what it gave} as results.json.
"""

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pangu_jax.core.claim import SETTINGS, Claim, has_run
from pangu_jax.core.config import read_json, save_config, to_json
from pangu_jax.core.errors import InputError
from pangu_jax.core.files import atomic_write

RESULTS = "results.json"

_claims: dict[Path, Claim] = {}  # of this process, which computes what is missing until it ends


def open_results(folder: str | Path, settings: dict[str, Any]) -> dict[str, Any]:
    """Claims the folder until this process ends, and gives the results so far.

    A new folder is given its config.json and has none.

    Args:
      folder: of the run; made if missing.
      settings: JSON values and configs, by the names that errors use.

    Raises:
      InputError: the folder holds a run of other settings, another process computes there, or it
        cannot be read or written.
    """
    claim_run(folder)
    wanted = json.loads(json.dumps(to_json(settings)))  # as reading gives them back
    if not has_run(folder, wanted):
        save_config(wanted, Path(folder) / SETTINGS)
        return {}
    path = Path(folder) / RESULTS
    found = read_json(path, finite=False) if path.exists() else {}
    if not isinstance(found, dict):
        raise InputError(f"{path} holds no JSON object")
    return found


def claim_run(folder: str | Path) -> None:
    """Claims the folder of a run until this process ends; again does nothing.

    Raises:
      InputError: another process has claimed it, or it cannot be made.
    """
    path = Path(folder).absolute()
    if path in _claims:
        if _claims[path].holds():
            return
        _claims.pop(path).close()  # that folder is gone
    _claims[path] = Claim(path, "computing in")


def save_results(folder: str | Path, results: dict[str, Any]) -> None:
    """Writes results.json, whole or not at all.

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
    """Computes a cell that is not there yet and saves it; whether it did.

    Args:
      folder: of the run.
      results: what `open_results` gave; the cell is added to it.
      name: of the cell.
      make: gives the cell as JSON values.
      timed: whether the cell also gets how long it took, as "seconds".

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
