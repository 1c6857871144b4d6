"""A script in a child process that answers requests; one that misses its deadline is ended."""

import contextlib
import importlib.util
import json
import os
import selectors
import subprocess
import sys
import time
import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import Any

START_SECONDS = 60  # until the process is there


class Child:
    """A Python script that reads one JSON object per line and answers each with one.

    It is started, not forked, isolated, so that no folder or variable of the user's decides what it
    imports, and says "{}" when it is there. It may be asked by one thread at a time.
    """

    def __init__(
        self, script: Path, arguments: Sequence[object], modules: Sequence[str], *, longest: int
    ):
        """Stores the settings; no process is started yet.

        Args:
          script: the file; it gets `arguments`, then folders to import `modules` from.
          arguments: words for it.
          modules: what it imports beyond the standard library.
          longest: bytes of an answer.
        """
        self._script, self._longest = script, longest
        self._arguments, self._modules = tuple(map(str, arguments)), tuple(modules)
        self._process: subprocess.Popen | None = None
        self._end = lambda: None

    def ask(self, request: dict[str, Any], seconds: float) -> dict[str, Any]:
        """Sends an object and reads the answer.

        Args:
          request: what is asked.
          seconds: until the answer must be there.

        Raises:
          OSError: the process cannot be started.
          TimeoutError: there was no whole answer in time; the process is gone, the next question
            starts another.
        """
        if self._process is None:
            self.start()
        return self._exchange(json.dumps(request), seconds)

    def start(self) -> None:
        """Starts the process ahead of the first request.

        Raises:
          OSError: it cannot be started.
        """
        places = [importlib.util.find_spec(name).origin for name in self._modules]
        folders = dict.fromkeys(str(Path(place).parents[1]) for place in places)
        command = [sys.executable, "-I", str(self._script), *self._arguments, *folders]
        pipe = subprocess.PIPE
        self._process = subprocess.Popen(
            command, stdin=pipe, stdout=pipe, stderr=subprocess.DEVNULL
        )
        self._end = weakref.finalize(self, _kill, self._process)
        try:
            self._exchange(None, START_SECONDS)
        except TimeoutError as error:
            raise OSError("it said nothing when it was started") from error

    def end(self) -> None:
        """Ends the process if it is running."""
        self._process = None
        self._end()

    def _exchange(self, request: str | None, seconds: float) -> dict[str, Any]:
        try:
            if request is not None:
                self._process.stdin.write(request.encode() + b"\n")
                self._process.stdin.flush()
            return json.loads(_line(self._process.stdout.fileno(), seconds, self._longest))
        except (OSError, ValueError) as error:
            self.end()
            raise TimeoutError("it gave no answer") from error


def _line(pipe: int, seconds: float, longest: int) -> bytes:
    """The next line, or what came of it until time ran out, the pipe ended or it grew too long."""
    end, found = time.monotonic() + seconds, bytearray()
    with selectors.DefaultSelector() as ready:
        ready.register(pipe, selectors.EVENT_READ)
        while not found.endswith(b"\n") and len(found) <= longest:
            if not ready.select(max(0.0, end - time.monotonic())):
                break
            part = os.read(pipe, 2**16)
            if not part:
                break
            found += part
    return bytes(found[: longest + 1])  # what was cut is no line


def _kill(process: subprocess.Popen) -> None:
    process.kill()
    process.wait()
    for pipe in (process.stdin, process.stdout):
        with contextlib.suppress(OSError):  # what was not sent has no reader any more
            pipe.close()
