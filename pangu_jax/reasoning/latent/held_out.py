"""Hashes of the questions that a model was trained on, so that it is not measured on them.

A run keeps a hash of each question beside its model: that is small, and holds whatever becomes of
the files that the questions came from.
"""

import hashlib
import re
import unicodedata
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from pangu_jax.core.errors import InputError
from pangu_jax.core.files import atomic_write
from pangu_jax.data.chain_of_thought import Problem

TRAINED_ON = "trained_on.npy"
PRODUCT = re.compile(r"([0-9 ]+) \* ([0-9 ]+)")


def key(question: str) -> str:
    """A question's normal form: equal for questions that ask the same thing.

    Runs of whitespace become single spaces, accents become part of their letter (Unicode's NFC),
    and the two factors of a product are sorted, as exchanging them leaves the answer the same.
    """
    words = " ".join(unicodedata.normalize("NFC", question).split())
    if product := PRODUCT.fullmatch(words):
        return " * ".join(sorted(product.groups()))
    return words


def hashes(problems: Iterable[Problem]) -> np.ndarray:
    """Distinct hashes of the questions' keys: uint64 [n], ascending."""
    return np.unique(np.fromiter(map(_hash, problems), "<u8"))


def not_among(problems: Sequence[Problem], seen: np.ndarray) -> list[Problem]:
    """The problems whose question has none of the hashes `seen`, uint64 [n]."""
    known = set(seen.tolist())
    return [problem for problem in problems if _hash(problem) not in known]


def save_hashes(folder: str | Path, seen: np.ndarray) -> None:
    """Writes hashes, uint64 [n], into a run's folder.

    Raises:
      InputError: it cannot be written.
    """
    with atomic_write(Path(folder) / TRAINED_ON, "wb") as file:
        np.save(file, seen)


def load_hashes(folder: str | Path) -> np.ndarray:
    """Reads the hashes of a run's folder, uint64 [n].

    Raises:
      InputError: there are none, or the file holds something else.
    """
    path = Path(folder) / TRAINED_ON
    try:
        found = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise InputError(f"{path} cannot be read: {error}") from error
    if not isinstance(found, np.ndarray) or found.dtype != np.dtype("<u8") or found.ndim != 1:
        raise InputError(f"{path} does not hold the hashes of questions")
    return found


def _hash(problem: Problem) -> int:
    digest = hashlib.blake2b(key(problem.question).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little")
