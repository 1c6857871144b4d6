"""An append-only .jsonl file, written by one process and resumed after a stop.

    with Journal("answers.jsonl", head='{"line"') as journal:
        done = {record["line"] for record in journal.found}
        ...
        journal.add({"line": 7, "answer": "..."})

A line is written at once and whole. What a process that died left of its last line is cut off.
"""

import contextlib
import fcntl
import json
import os
import stat
from pathlib import Path
from typing import Any

from pangu_jax.core.config import parse_json
from pangu_jax.core.errors import InputError


class Journal:
    """The open, locked file; a context manager.

    Attributes:
      found: the objects of the lines that were there.
    """

    def __init__(self, path: str | Path, *, head: str):
        """Reads the existing lines; creates the file if there is none.

        Args:
          path: the file; its folder is made if missing.
          head: what each line begins with, `{"name"`, so that the start of one is known as such and
            other files are left alone.

        Raises:
          InputError: another process writes it, it holds something else, or it cannot be written.
        """
        self.path, self._head = Path(path), head
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            # So that opening a pipe does not block.
            self._file = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_NONBLOCK, 0o666)
        except OSError as error:
            raise InputError(f"cannot write {path}: {error.strerror}") from error
        try:
            self.found = self._take()
        except BaseException:
            os.close(self._file)
            raise

    def __enter__(self) -> "Journal":
        """Returns the journal."""
        return self

    def __exit__(self, *_: object) -> None:
        """Closes the file, and removes it if it is empty."""
        with contextlib.suppress(OSError):
            if os.fstat(self._file).st_size:
                os.fsync(self._file)
            else:
                self.path.unlink()
        os.close(self._file)

    def add(self, record: dict[str, Any]) -> None:
        """Appends a line.

        Raises:
          InputError: it cannot be written (full disk).
        """
        line = json.dumps(record, ensure_ascii=False)
        if not line.startswith(self._head):
            raise ValueError(f"a line begins with {self._head}, not {line[:20]}")
        rest = f"{line}\n".encode()
        try:
            while rest:
                rest = rest[os.write(self._file, rest) :]
        except OSError as error:
            raise InputError(f"cannot write {self.path}: {error.strerror}") from error

    def _take(self) -> list[Any]:
        if not stat.S_ISREG(os.fstat(self._file).st_mode):
            raise InputError(f"cannot write {self.path}: it is no ordinary file")
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise InputError(f"another process is writing {self.path}") from error
        except OSError:
            pass  # a file system without locks
        *lines, rest = self.path.read_bytes().split(b"\n")
        found = [self._parse(line, number) for number, line in enumerate(lines, 1)]
        head = self._head.encode()
        if not (rest.startswith(head) or head.startswith(rest)):
            self._refuse(len(lines) + 1)
        whole = sum(len(line) + 1 for line in lines)
        os.ftruncate(self._file, whole)
        os.lseek(self._file, whole, os.SEEK_SET)
        return found

    def _parse(self, line: bytes, number: int) -> Any:
        if not line.startswith(self._head.encode()):
            self._refuse(number)
        where = f"{self.path} line {number}"
        try:
            return parse_json(line.decode("utf-8"), where)
        except UnicodeDecodeError as error:
            raise InputError(f"{where} is not UTF-8 text") from error

    def _refuse(self, number: int) -> None:
        raise InputError(
            f"{self.path} line {number} does not begin with {self._head}: it is no file that this "
            "command wrote; name another"
        )
