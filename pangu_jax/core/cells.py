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

from pangu_jax.core.config import read_json, save_config, to_json
from pangu_jax.core.errors import InputError
from pangu_jax.core.files import atomic_write

RESULTS = "results.json"


def open_results(folder: str | Path, settings: dict[str, Any]) -> dict[str, Any]:
    """The results so far; a new folder is given its config.json and has none.

    Args:
      folder: of the run; made if missing.
      settings: JSON values and configs, by the names that errors use.

    Raises:
      InputError: the folder holds a run of other settings, or cannot be read or written.
    """
    path = Path(folder) / "config.json"
    wanted = json.loads(json.dumps(to_json(settings)))  # as reading gives them back
    if not path.exists():
        save_config(wanted, path)
        return {}
    found = read_json(path, finite=False)
    differs = [name for name in wanted if found.get(name) != wanted[name]]
    if differs:
        raise InputError(
            f"{folder} holds a run with another {differs[0]}; choose another --out or delete it"
        )
    results = Path(folder) / RESULTS
    return read_json(results, finite=False) if results.exists() else {}


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
