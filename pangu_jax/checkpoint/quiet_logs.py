"""Silences the logs of orbax and tensorstore, which also raise, while a store is open.

They report every save as INFO, and errors that we report ourselves. After a failed read or write,
each of the others that were under way would print a traceback of its own, from the event loop that
the library has closed by then or from the coroutines it left.
"""

import logging
import sys
import threading
from typing import Any

LOGGERS = ("absl", "asyncio")


class _Silence:
    """Counts stores that want silence, and keeps what to restore: loggers are process-wide.

    It is a `sys.unraisablehook`, which a hook installed over it may keep calling.
    """

    def __init__(self):
        self._lock, self._wanted = threading.Lock(), 0
        self._levels: dict[str, int] = {}
        self._before = sys.unraisablehook

    def begin(self) -> None:
        with self._lock:
            self._wanted += 1
            if self._wanted > 1:
                return
            for name in LOGGERS:
                self._levels[name] = logging.getLogger(name).level
                logging.getLogger(name).setLevel(logging.CRITICAL)
            if sys.unraisablehook is not self:
                self._before, sys.unraisablehook = sys.unraisablehook, self

    def end(self, failed: bool) -> None:
        with self._lock:
            self._wanted -= 1
            if self._wanted:
                return
            for name, level in self._levels.items():
                logging.getLogger(name).setLevel(level)
            if sys.unraisablehook is self and not failed:
                sys.unraisablehook = self._before

    def __call__(self, found: Any) -> None:
        code = getattr(found.object, "cr_code", None)
        ours = code is None or "orbax" not in code.co_filename
        if ours and str(found.exc_value) != "Event loop is closed":
            self._before(found)


_silence = _Silence()


class QuietLogs:
    """Silences logs from construction until it is closed; several may overlap."""

    def __init__(self):
        """Starts the silence."""
        self._open = True
        _silence.begin()

    def close(self, *, failed: bool = False) -> None:
        """Ends the silence; the last one restores loggers and hooks.

        Args:
          failed: whether a read or write failed. The threads of pending ones complain when they
            end, which cannot be awaited: then the hook, which passes all else on, stays until the
            next silence that ends well.
        """
        if self._open:
            self._open = False
            _silence.end(failed)
