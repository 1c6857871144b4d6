"""A journal of the events of a run of reinforcement learning, written as they happen.

A checkpoint and the events since restore the run as it was when it was killed: updates are
recomputed from the same answers, to the same bits, and no answer that had ended is generated again.
"""

import dataclasses
import json
import os
from pathlib import Path
from typing import IO, Literal

import numpy as np

from pangu_jax.core.config import check_choices, from_json, parse_json, to_json
from pangu_jax.core.errors import InputError
from pangu_jax.decode.engine import Answer
from pangu_jax.reasoning.reward import Seen


@dataclasses.dataclass(frozen=True)
class SavedAnswer:
    """An `Answer` in JSON form."""

    sample: int
    ids: tuple[int, ...]
    log_probs: tuple[float, ...]
    sampled_log_probs: tuple[float, ...]
    versions: tuple[int, ...]
    finish_reason: Literal["stop", "length"]

    def __post_init__(self):
        check_choices(self)
        sizes = {len(x) for x in (self.ids, self.log_probs, self.sampled_log_probs, self.versions)}
        if len(sizes) != 1 or not self.ids:
            raise InputError("an answer's ids, scores and versions must be as many as each other")
        numbers = (*self.ids, *self.versions)
        if min(numbers) < 0 or max(numbers) >= 2**31:
            raise InputError("an answer's ids and versions must be from 0 to 2^31 - 1")

    @property
    def answer(self) -> Answer:
        """The answer that was saved."""
        return Answer(
            np.array(self.ids, np.int32),
            np.array(self.log_probs, np.float32),
            np.array(self.sampled_log_probs, np.float32),
            np.array(self.versions, np.int32),
            self.finish_reason,
        )


def saved_answer(sample: int, answer: Answer) -> SavedAnswer:
    """Converts an answer to JSON form; float32 values round-trip exactly."""
    return SavedAnswer(
        sample,
        tuple(answer.ids.tolist()),
        tuple(answer.log_probs.tolist()),
        tuple(answer.sampled_log_probs.tolist()),
        tuple(answer.versions.tolist()),
        answer.finish_reason,
    )


@dataclasses.dataclass(frozen=True)
class Record:
    """One logged event.

    Attributes:
      kind: an answer ended, or was lost; a group got rewards; an update was made; or the run was
        resumed, so that running answers restart, too.
      group: of an answer or of rewards.
      sample: of an answer that was lost.
      answer: that ended.
      rewards: of a group; None is NaN.
      seen: statistics of the sources of these rewards, by name.
      figures: measurements of an update that cannot be recomputed, such as its time.
      moved: distance that an update moved some of the weights, the same when it is recomputed;
        None is unknown, or not at all.
    """

    kind: Literal["ended", "lost", "graded", "updated", "resumed"]
    group: int = 0
    sample: int = 0
    answer: SavedAnswer | None = None
    rewards: tuple[float | None, ...] = ()
    seen: dict[str, Seen] = dataclasses.field(default_factory=dict)
    figures: dict[str, float] = dataclasses.field(default_factory=dict)
    moved: float | None = None

    def __post_init__(self):
        check_choices(self)
        if (self.kind == "ended") != (self.answer is not None):
            raise InputError(f"a record of the kind {self.kind} has an answer too many or too few")


class Journal:
    """Records in files, each started at a checkpoint: FIRST-VERSION.jsonl.

    A record is handed to the operating system before the run goes on, so a kill of the process
    loses none and leaves at most the last one incomplete.
    """

    def __init__(self, folder: Path | None, *, writes: bool = True):
        """A journal in a folder, which need not exist; None writes nothing.

        Args:
          folder: the folder.
          writes: False where another process of the run writes there.
        """
        self._folder, self._file, self._writes = folder, None, writes
        self.count = 0  # records of the whole run

    def read(self, first: int, version: int) -> list[Record]:
        """The records from the `first` on; new ones will be appended.

        Args:
          first: number of records that a checkpoint includes.
          version: of that checkpoint.

        Raises:
          InputError: a file is damaged; names it and the line.
        """
        self.count = first
        if self._folder is None:
            return []
        found: list[Record] = []
        last = None
        for path in self._paths():
            begins, records = int(path.stem.split("-")[0]), _read(path)
            if begins + len(records) < first or (begins + len(records) == first and begins < first):
                continue  # a checkpoint holds what came of them
            if begins > self.count:
                raise InputError(f"{path} begins at record {begins}, {self.count} are there before")
            found += records[self.count - begins :]
            self.count, last = begins + len(records), path
        if self._writes:
            self._open(last or self._path(version))
        return found

    def write(self, record: Record) -> None:
        """Adds a record.

        Raises:
          InputError: it cannot be written (full disk).
        """
        self.count += 1
        if self._file is None:
            return
        told = {k: v for k, v in to_json(record).items() if k == "kind" or v}
        try:
            self._file.write((json.dumps(told) + "\n").encode())
        except OSError as error:
            raise InputError(f"cannot write {self._file.name}: {error.strerror}") from error

    def cut(self, version: int, oldest: int) -> None:
        """Begins another file at a checkpoint.

        Args:
          version: of the checkpoint.
          oldest: version of the oldest checkpoint that is kept; files of older ones are deleted.
        """
        if self._folder is None or not self._writes:
            return
        self.close()
        self._open(self._path(version))
        for path in self._paths():
            if int(path.stem.split("-")[1]) < oldest:
                path.unlink(missing_ok=True)

    def close(self) -> None:
        """Closes the file."""
        if self._file is not None:
            self._file.close()

    def _open(self, path: Path) -> None:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = _appended(path)
        except OSError as error:
            raise InputError(f"cannot write {path}: {error.strerror}") from error

    def _path(self, version: int) -> Path:
        assert self._folder is not None
        return self._folder / f"{self.count:010d}-{version}.jsonl"

    def _paths(self) -> list[Path]:
        assert self._folder is not None
        return sorted(self._folder.glob("[0-9]*-*[0-9].jsonl"))


def _appended(path: Path) -> IO[bytes]:
    """The file, opened for appending after its last whole line; unbuffered."""
    file = path.open("ab", buffering=0)
    end = path.read_bytes().rfind(b"\n") + 1
    os.ftruncate(file.fileno(), end)
    return file


def _read(path: Path) -> list[Record]:
    lines = path.read_bytes().split(b"\n")[:-1]  # after the last line end: nothing, or half a line
    found = []
    for number, line in enumerate(lines, start=1):
        where = f"{path} line {number}"
        found.append(from_json(Record, parse_json(line, where), where))
    return found
