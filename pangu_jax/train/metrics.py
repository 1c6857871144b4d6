"""The metrics file and the progress line of a run."""

import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from pangu_jax.core.config import parse_json
from pangu_jax.core.errors import InputError
from pangu_jax.core.files import atomic_write


class MetricLog:
    """A file of one JSON object per line, continued after the step that a run resumes from."""

    def __init__(
        self,
        path: str | Path | None,
        *,
        start_step: int,
        writes: bool = True,
        on_metrics: Callable[[dict[str, Any]], None] | None = None,
    ):
        """Opens the file, dropping lines of steps after `start_step` left by an interrupted run.

        Args:
          path: the file; None for none.
          start_step: the last step whose lines are kept.
          writes: False where another process of the run writes it.
          on_metrics: called with every line, those that were kept first.

        Raises:
          InputError: the file cannot be written.
        """
        self._path, self._tell = Path(path or os.devnull), on_metrics or (lambda line: None)
        if path is None or not writes:
            self._file = open(os.devnull, "wb", buffering=0)  # noqa: SIM115  closed by `close`
            return
        kept = [line for line in _lines(self._path) if line["step"] <= start_step]
        with atomic_write(self._path) as file:  # a kill in between must not lose the lines
            file.writelines(json.dumps(line) + "\n" for line in kept)
        self._file = self._open()
        for line in kept:
            self._tell(line)

    def write(self, step: int, values: dict[str, Any]) -> None:
        """Adds one line.

        Raises:
          InputError: it cannot be written (full disk).
        """
        line = {"step": step, **values}
        try:
            self._file.write((json.dumps(line) + "\n").encode())
        except OSError as error:
            raise InputError(f"cannot write {self._path}: {error.strerror}") from error
        self._tell(line)

    def close(self) -> None:
        """Closes the file."""
        self._file.close()

    def _open(self) -> IO[bytes]:
        try:
            return self._path.open("ab", buffering=0)  # a line is one write, nothing waits
        except OSError as error:
            raise InputError(f"cannot write {self._path}: {error.strerror}") from error


def read_metrics(path: str | Path) -> list[dict[str, Any]]:
    """The lines of a metrics file, a half-written last one left out.

    Raises:
      InputError: it cannot be read, or another line is invalid.
    """
    return _lines(Path(path))


class ProgressLine:
    """A bar with loss, speed and time left; plain lines without a terminal."""

    def __init__(
        self,
        label: str,
        steps: int,
        start_step: int = 0,
        *,
        unit: str = "tokens",
        every_s: float = 10.0,
        shows: bool = True,
    ):
        """Starts the clock and, on a terminal, the bar.

        Args:
          label: prefix of the line.
          steps: of the run.
          start_step: step to resume at.
          unit: the unit that is counted, in the plural.
          every_s: seconds between plain lines.
          shows: False for the speed alone.
        """
        self._steps, self._every, self._label, self._shows = steps, every_s, label, shows
        self._begin = self._last = time.monotonic()
        self._start_step, self._unit, self._counted = start_step, unit, 0.0
        console = Console(file=sys.stderr)
        self._bar = _bar(console) if shows and console.is_terminal else None
        if self._bar is not None:
            self._bar.start()
            self._task = self._bar.add_task(label, total=steps, completed=start_step, text="")

    def update(self, step: int, loss: float, counted: float) -> float:
        """Shows a step and how much it counted; returns units per second since the start."""
        self._counted += counted
        now = time.monotonic()
        speed = self._counted / max(now - self._begin, 1e-9)
        text = f"loss {loss:.3f}  {speed:,.0f} {self._unit}/s"
        if self._bar is not None:
            self._bar.update(self._task, completed=step, text=text)
        elif self._shows and (now - self._last > self._every or step == self._steps):
            self._last = now
            done = max(step - self._start_step, 1)
            left = (now - self._begin) / done * (self._steps - step)
            line = f"{self._label} {step}/{self._steps}  {text}  {left:.0f} s left"
            print(line, file=sys.stderr, flush=True)
        return speed

    def close(self) -> None:
        """Removes the bar from the terminal."""
        if self._bar is not None:
            self._bar.stop()


def _bar(console: Console) -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    rest = (TextColumn("{task.fields[text]}"), TimeElapsedColumn(), TimeRemainingColumn())
    return Progress(*columns, *rest, console=console)


def _lines(path: Path) -> list[dict[str, Any]]:
    try:
        raw = path.read_bytes()
    except FileNotFoundError:
        return []
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from error
    lines, texts = [], raw.splitlines()
    for number, text in enumerate(texts, start=1):
        where = f"{path} line {number}"
        try:
            line = parse_json(text, where, finite=False)
            if not isinstance(line, dict) or type(line.get("step")) is not int:
                raise InputError(f"{where} is no JSON object with a step")
        except InputError as error:
            if number == len(texts) and not raw.endswith(b"\n"):
                break  # a process that was killed left half of it
            raise InputError(f"{error}; remove that line") from error
        lines.append(line)
    return lines
