"""Embeddings of many texts or pairs, each computed once, in the files of a resumable run."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from pangu_jax.core.cells import compute
from pangu_jax.core.digest import sha256
from pangu_jax.core.errors import InputError
from pangu_jax.core.files import atomic_write
from pangu_jax.eval.embedding import Embeddings
from pangu_jax.eval.lexical import Scorer

T = TypeVar("T", str, tuple[str, str])

CHUNK = 1024  # texts per file; a run that is stopped loses no more


class Cosines:
    """Scores of documents from stored vectors: cosines times 100, rounded to float32."""

    def __init__(
        self,
        places: Mapping[tuple[str, str], int],
        vectors: np.ndarray,
        prefixes: tuple[str, str] = ("", ""),
    ):
        """Takes vectors of length 1.

        Args:
          places: the row of each prefix and text.
          vectors: float32 [texts, D].
          prefixes: of queries and of documents.
        """
        self._places, self._vectors, self._prefixes = places, vectors, prefixes

    def scores(self, query: str, documents: Sequence[str]) -> np.ndarray:
        """The documents' scores, float64 [documents]."""
        before, behind = self._prefixes
        # Summed in float64, so that equal texts have equal scores wherever they are.
        one = self._vectors[self._places[before, query]].astype(np.float64)
        others = self._vectors[[self._places[behind, text] for text in documents]]
        return (100 * (others * one).sum(1)).astype(np.float32).astype(np.float64)


def wanted_texts(
    visit: Callable[[Scorer], None], prefixes: tuple[str, str] = ("", "")
) -> set[tuple[str, str]]:
    """The (prefix, text) pairs that a scorer will need.

    Args:
      visit: calls a scorer with all queries and documents.
      prefixes: of queries and of documents.
    """
    found: set[tuple[str, str]] = set()

    def note(query: str, documents: Sequence[str]) -> np.ndarray:
        found.update([(prefixes[0], query), *((prefixes[1], text) for text in documents)])
        return np.zeros(len(documents))

    visit(note)
    return found


def embed_distinct(
    folder: str | Path,
    results: dict[str, Any],
    name: str,
    texts: Iterable[T],
    embed: Callable[[Sequence[T]], Embeddings],
    progress: Callable[[int, int], None] | None = None,
) -> tuple[dict[T, int], np.ndarray]:
    """The row of each distinct text or pair, and the vectors, float32 [distinct, D].

    Texts are processed by length, a file of vectors at a time, so that batches do not depend on
    where a run was stopped. Each file is a cell, "vectors/NAME/0003", which says how
    many of its texts were truncated, and to how many tokens.

    Args:
      folder: of the run.
      results: the result of `core.cells.open_results`.
      name: of this set of texts, which is always the same in a run.
      texts: the texts, or pairs; each is embedded once, however often it occurs.
      embed: embeds some of them.
      progress: called with texts done and texts in all.

    Raises:
      InputError: a file cannot be written or read, or is not the one that the run wrote.
    """
    order = sorted(set(texts), key=_by_length)
    found, tell = [], progress or (lambda done, total: None)
    tell(0, len(order))
    for number, first in enumerate(range(0, len(order), CHUNK)):
        chunk, cell = order[first : first + CHUNK], f"vectors/{name}/{number:04}"
        path = Path(folder) / f"{cell}.npy"

        def make(chunk=chunk, path=path) -> dict[str, Any]:
            made = embed(chunk)
            with atomic_write(path, "wb") as file:
                np.save(file, made.vectors)
            return {
                "texts": len(chunk), "cut": made.cut, "length": made.length, "sha256": sha256(path),
            }  # fmt: skip

        compute(folder, results, cell, make)
        found.append(_read(path, results[cell]["sha256"]))
        tell(first + len(chunk), len(order))
    if not found:
        raise InputError("there is no text to embed")
    return {text: place for place, text in enumerate(order)}, np.concatenate(found)


def _by_length(text: str | tuple[str, str]) -> tuple[int, str, Any]:
    whole = "".join(text)
    return len(whole), whole, text


def _read(path: Path, digest: str) -> np.ndarray:
    check_file(path, digest)
    return np.load(path, allow_pickle=False)


def check_file(path: Path, digest: str) -> None:
    """Checks that a file is the one that a run wrote.

    Raises:
      InputError: it is missing, unreadable, or different.
    """
    try:
        same = sha256(path) == digest
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}, which the run wrote") from error
    if not same:
        raise InputError(f"{path} is not the file that the run wrote; begin the run anew")
