"""Seconds of a training that may be stopped and gone on with."""

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pangu_jax.checkpoint.store import latest_step
from pangu_jax.core.config import read_json
from pangu_jax.core.files import atomic_write
from pangu_jax.train.stop_signal import Stopped


def timed(train: Callable[[], Any], folder: Path, steps: int) -> tuple[Any, float | None]:
    """What a training run gives, and the seconds that it took, those before it was stopped, too.

    They are noted beside the run when it ends or hears a signal, with the step that it came to.
    None where a run goes on from a step that was not noted, as it had been killed.

    Args:
      train: trains in the folder, or goes on there.
      folder: of the run; the seconds are in its seconds.json.
      steps: of the whole run.
    """
    note, step = folder / "seconds.json", latest_step(folder) or 0
    noted = read_json(note) if note.is_file() else {"step": 0, "seconds": 0.0}
    before = {0: 0.0, noted["step"]: noted["seconds"]}.get(step)
    began = time.monotonic()

    def write(step: int) -> float | None:
        seconds = None if before is None else before + time.monotonic() - began
        with atomic_write(note) as file:
            json.dump({"step": step, "seconds": seconds}, file)
        return seconds

    try:
        found = train()
    except Stopped as stop:
        write(stop.step)
        raise
    return found, write(steps)
