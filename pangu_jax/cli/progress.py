"""Progress of a command: bars on a terminal; in a log, a line from time to time."""

import contextlib
import sys
import threading
import time
from collections.abc import Callable, Iterator

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

EVERY_S = 10.0

Show = Callable[..., None]


@contextlib.contextmanager
def progress(every_s: float = EVERY_S) -> Iterator[Show]:
    """Yields `show(what, done, total=None, text="")`, which shows progress on stderr.

    `what` names a piece of work, which has a bar of its own; `text` says more about its state.

    Args:
      every_s: without a terminal, seconds between lines. A piece that had a line has another when
        it is done; a piece that takes less has none.
    """
    console = Console(file=sys.stderr)
    if not console.is_terminal:
        yield _Lines(every_s).show
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    rest = (TextColumn("{task.fields[text]}"), TimeRemainingColumn())
    with Progress(*columns, *rest, console=console, transient=True) as bar:
        tasks = {}

        def show(what: str, done: int, total: int | None = None, text: str = "") -> None:
            if what not in tasks:
                tasks[what] = bar.add_task(what, total=total, text=text)
            bar.update(tasks[what], completed=done, total=total, text=text)

        yield show


@contextlib.contextmanager
def working(what: str, every_s: float = EVERY_S) -> Iterator[None]:
    """Shows on stderr that work goes on which cannot say how far it is; not within `progress`.

    Args:
      what: the work, such as "reading model".
      every_s: without a terminal, seconds between lines.
    """
    console = Console(file=sys.stderr)
    if console.is_terminal:
        columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
        with Progress(*columns, console=console, transient=True) as bar:
            bar.add_task(what)
            yield
        return
    began, done = time.monotonic(), threading.Event()

    def say() -> None:
        while not done.wait(every_s):
            print(f"{what}  {time.monotonic() - began:.0f} s", file=sys.stderr, flush=True)

    thread = threading.Thread(target=say, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


class _Lines:
    def __init__(self, every_s: float):
        self._every, self._last = every_s, time.monotonic()
        self._began: dict[str, float] = {}
        self._said: set[str] = set()

    def show(self, what: str, done: int, total: int | None = None, text: str = "") -> None:
        now = time.monotonic()
        began = self._began.setdefault(what, now)
        if now - self._last < self._every and not (done == total and what in self._said):
            return
        self._last = now
        self._said.add(what)
        line = f"{what} {done:,}" + (f"/{total:,}" if total is not None else "")
        if total is not None and 0 < done < total:
            line += f"  {(now - began) / done * (total - done):.0f} s left"
        print(f"{line}  {text}".rstrip(), file=sys.stderr, flush=True)
