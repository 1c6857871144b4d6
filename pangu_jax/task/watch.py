"""How a task that takes long tells what it does; silent unless whoever calls it shows it."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

Show = Callable[..., None]


def _silent(*_: Any, **__: Any) -> None:
    """Shows nothing."""


@dataclass(frozen=True)
class Watch:
    """What a task is told with; commands give `cli.progress`.

    Attributes:
      say: called with a line of text.
      working: a context for work that cannot say how far it is, by what it does.
      progress: a context that gives `show(what, done, total)`; not within `working`.
    """

    say: Callable[[str], None] = _silent
    working: Callable[[str], AbstractContextManager[Any]] = nullcontext
    progress: Callable[[], AbstractContextManager[Show]] = lambda: nullcontext(_silent)


SILENT = Watch()
