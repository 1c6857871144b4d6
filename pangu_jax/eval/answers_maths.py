"""Whether two expressions are equal, by math-verify, which runs where it can do no harm."""

import contextlib
import importlib.util
import queue
import threading
from collections.abc import Iterator
from pathlib import Path

from pangu_jax.core.child import Child
from pangu_jax.core.errors import InputError

SCRIPT = Path(__file__).with_name("answers_child.py")
LIBRARIES = ("math_verify", "latex2sympy2_extended", "sympy", "mpmath", "antlr4")
WORKERS = 2
SECONDS = 3  # of the processor for one pair, a second more or less
CLOCK_SECONDS = 30  # until it must be there
MEMORY = 2**30  # bytes of a process's address space
LONGEST = 2000  # characters of an expression; longer ones are answers to nothing


class Judge:
    """A few processes that compare expressions; any number of threads may ask.

    What takes too long or too much memory ends its process, and the next pair starts another: the
    pool is always whole.
    """

    def __init__(self, workers: int = WORKERS, seconds: int = SECONDS):
        """Starts nothing yet.

        Args:
          workers: processes at most.
          seconds: of the processor for one pair, a second more or less.
        """
        self._seconds = seconds
        self._idle: queue.LifoQueue[Child] = queue.LifoQueue()
        for _ in range(workers):
            self._idle.put(Child(SCRIPT, (MEMORY,), LIBRARIES, longest=2**16))

    def equal(self, gold: str, answer: str | None) -> bool | None:
        """See `equal_maths`."""
        if answer is None or len(answer) > LONGEST:
            return False
        request = {"gold": gold, "answer": answer, "seconds": self._seconds}
        with self._child() as child, contextlib.suppress(TimeoutError):
            return child.ask(request, CLOCK_SECONDS)["equal"]
        return None

    def close(self) -> None:
        """Ends the processes that are idle."""
        with contextlib.suppress(queue.Empty):
            while True:
                self._idle.get_nowait().end()

    @contextlib.contextmanager
    def _child(self) -> Iterator[Child]:
        child = self._idle.get()
        try:
            yield child
        except TimeoutError:
            raise
        except OSError as error:
            raise InputError(f"cannot start Python to compare expressions: {error}") from error
        finally:
            self._idle.put(child)


_LOCK = threading.Lock()
_JUDGES: list[Judge] = []


def equal_maths(gold: str, answer: str | None) -> bool | None:
    """Whether two expressions, plain or LaTeX, are equal: 1/2 and 0.5, x(x+1) and x^2+x.

    Args:
      gold: the right one.
      answer: the other; None is wrong, and so is one of more than `LONGEST` characters.

    Returns:
      None where that cannot be told: `gold` is no expression, or comparing took more than its
      bounds allow.

    Raises:
      InputError: math-verify is not installed.
    """
    with _LOCK:
        if not _JUDGES:
            missing = [name for name in LIBRARIES if importlib.util.find_spec(name) is None]
            if missing:
                raise InputError(
                    "comparing expressions takes the library math-verify: "
                    "pip install 'pangu-jax[reasoning]'"
                )
            _JUDGES.append(Judge())
    return _JUDGES[0].equal(gold, answer)
