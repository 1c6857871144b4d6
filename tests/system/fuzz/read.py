"""Reads sound folders in which one file was changed, and judges the answer.

A kind is a sound folder and a function that reads it. A case changes one of its files, and reading
then must give a value or raise InputError with one sentence: within seconds, in little memory,
without touching a file beside the folder. Where digests seal the files, it must give the value
that the sound folder gives, or refuse.
"""

import contextlib
import dataclasses
import random
import re
import resource
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pangu_jax.core.errors import InputError

from .change import SECRET

SECONDS, BYTES = 20, 2**30
# What a sentence for a user does not hold.
UGLY = r"Traceback|<class|<bound|object at 0x|InputError|self\.|panicked"


@dataclasses.dataclass(frozen=True)
class Kind:
    """What is changed and how it is read.

    Attributes:
      make: writes the sound files into a folder.
      read: of the folder; what it gives is compared with ==.
      files: patterns of the files that are changed.
      change: (draw, bytes) -> bytes; may be chosen by the file's ending.
      sealed: whether a changed folder that is read must give what the sound one gives.
    """

    make: Callable[[Path], None]
    read: Callable[[Path], Any]
    files: tuple[str, ...]
    change: Callable[[random.Random, bytes], bytes]
    sealed: bool = False


@dataclasses.dataclass(frozen=True)
class Outcome:
    """How a case ended: "read", "refused", or what is wrong with the answer."""

    case: str
    end: str
    wrong: str = ""


def run(kind: Kind, folder: Path, cases: range):
    """Yields the outcome of each case; what is wrong stays in `folder/<number>`."""
    sound = folder / "sound"
    sound.mkdir(parents=True)
    kind.make(sound)
    wanted = kind.read(sound)
    (folder / SECRET).write_text("not yours")
    for number in cases:
        place = folder / str(number)
        shutil.copytree(sound, place)
        changed = damage(kind, place, random.Random(number))
        outcome = _read(kind, place, wanted, f"case {number}, {changed}")
        if not outcome.wrong:
            shutil.rmtree(place)
        yield outcome


def damage(kind: Kind, place: Path, draw: random.Random) -> str:
    """Changes one file of a folder; says which."""
    files = sorted({p for pattern in kind.files for p in place.glob(pattern) if p.is_file()})
    file = draw.choice(files)
    file.chmod(0o644)
    file.write_bytes(kind.change(draw, file.read_bytes()))
    return str(file.relative_to(place))


def _read(kind: Kind, place: Path, wanted: Any, case: str) -> Outcome:
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    try:
        with _limit(), _watch(place.parent / SECRET):
            found = kind.read(place)
    except InputError as error:
        return Outcome(case, "refused", _ugly(str(error)))
    except BaseException as error:  # a library in Rust panics with its own
        if isinstance(error, KeyboardInterrupt):
            raise
        return Outcome(case, "raised", f"{type(error).__name__}: {error}"[:500])
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory) * 1024
    if grown > BYTES:
        return Outcome(case, "read", f"took {grown / 2**20:.0f} MiB")
    if kind.sealed and found != wanted:
        return Outcome(case, "read", "another value in silence")
    return Outcome(case, "read")


def _ugly(sentence: str) -> str:
    if "\n" in sentence or not 15 < len(sentence) < 700 or re.search(UGLY, sentence):
        return f"no sentence: {sentence[:500]!r}"
    return ""


class _TooSlow(BaseException):
    pass


@contextlib.contextmanager
def _limit():
    def stop(*_):
        raise _TooSlow(f"not done in {SECONDS} seconds")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


_FORBIDDEN: list[str] = []


def _audit(event: str, arguments: tuple) -> None:
    if event == "open" and _FORBIDDEN and str(arguments[0]).endswith(_FORBIDDEN[0]):
        raise AssertionError("a file beside the folder was opened")


sys.addaudithook(_audit)


@contextlib.contextmanager
def _watch(path: Path):
    _FORBIDDEN.append(path.name)
    try:
        yield
    finally:
        _FORBIDDEN.clear()
