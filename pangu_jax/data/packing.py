"""Documents laid end to end and cut into windows, without attention across documents."""

import dataclasses
import hashlib
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np

from pangu_jax.core.errors import InputError
from pangu_jax.core.files import atomic_write
from pangu_jax.data.text import Document
from pangu_jax.data.tokenizer import Tokenizer


@dataclasses.dataclass(frozen=True)
class Tokens:
    """Documents as one flat array, each headed by the boundary id.

    Attributes:
      ids: uint16 or uint32 [N], in memory or mapped from a file.
      starts: int64 [documents], where each document's boundary id stands.
      bytes: UTF-8 bytes of all the text.
    """

    ids: np.ndarray
    starts: np.ndarray
    bytes: int


def tokenise(
    documents: Iterable[Document],
    tokenizer: Tokenizer,
    *,
    progress: Callable[[int], None] | None = None,
) -> Tokens:
    """Encodes every document once; empty ones are left out.

    Args:
      documents: read once, in order; the result is in memory, 2 or 4 bytes a token.
      tokenizer: its boundary id is put before each document, so that the first token of a
        document is predicted too.
      progress: called with the number of text bytes done after each document.

    Raises:
      InputError: there is no text at all.
    """
    kind = np.uint16 if tokenizer.vocab_size <= 2**16 else np.uint32
    parts, starts, position, size = [], [], 0, 0
    for document in documents:
        if not document.text:
            continue
        ids = np.asarray([tokenizer.boundary, *tokenizer.encode(document.text)], kind)
        parts.append(ids)
        starts.append(position)
        position += len(ids)
        size += len(document.text.encode("utf-8"))
        if progress is not None:
            progress(size)
    if not parts:
        raise InputError("there is no text to tokenise")
    return Tokens(np.concatenate(parts), np.asarray(starts, np.int64), size)


def save_tokens(tokens: Tokens, path: str | Path) -> None:
    """Writes tokens as one .npz file, whole or not at all."""
    with atomic_write(path, "wb") as file:
        np.savez(file, ids=tokens.ids, starts=tokens.starts, bytes=np.int64(tokens.bytes))


def load_tokens(path: str | Path) -> Tokens:
    """Reads what `save_tokens` wrote.

    Raises:
      InputError: the file is missing or not one of ours.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            return Tokens(file["ids"], file["starts"], int(file["bytes"]))
    except (OSError, ValueError, KeyError) as error:
        raise InputError(f"{path} is not a file of packed tokens: {error}") from error


def fingerprint(tokens: Tokens) -> str:
    """A hash of the ids and starts: which text and tokeniser a run was made with."""
    digest = hashlib.sha256(np.ascontiguousarray(tokens.ids).tobytes())
    digest.update(np.ascontiguousarray(tokens.starts).tobytes())
    return digest.hexdigest()[:16]


class PackedTokens:
    """The Source of training windows of `length` tokens.

    Window i shows the flat tokens [i * length, (i + 1) * length) and predicts each one's successor,
    so over all windows every token but the boundaries is predicted exactly once. Tokens of
    different documents are in different segments, and positions count from 0 at each document's
    first token of the window. The last window is padded.
    """

    def __init__(self, tokens: Tokens, length: int):
        """Cuts `tokens` into windows.

        Raises:
          InputError: `length` is not positive.
        """
        if length < 1:
            raise InputError(f"window length must be at least 1, got {length}")
        self.tokens, self.length = tokens, length

    def __len__(self) -> int:
        """Number of windows; the last flat token has no successor and needs none."""
        return max(1, -(-(len(self.tokens.ids) - 1) // self.length))

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        """Window `index` as arrays of `length`: tokens, labels, segments, positions int32, weights
        float32. Labels without weight are 0.
        """  # noqa: D205
        if not 0 <= index < len(self):
            raise IndexError(index)
        first = index * self.length
        ids = self.tokens.ids[first : first + self.length + 1].astype(np.int32)
        shown = min(self.length, len(self.tokens.ids) - first)
        at = first + np.arange(shown)
        document = np.searchsorted(self.tokens.starts, at, side="right")
        begins = np.maximum(self.tokens.starts[document - 1], first)
        window = {
            name: np.zeros(self.length, np.int32)
            for name in ("tokens", "labels", "segments", "positions")
        }
        window["tokens"][:shown] = ids[:shown]
        window["segments"][:shown] = document - document[0] + 1
        window["positions"][:shown] = at - begins
        # A label counts when the next flat token exists and heads no document.
        following = at + 1
        place = np.searchsorted(self.tokens.starts, following)
        place = np.minimum(place, len(self.tokens.starts) - 1)
        counts = (following < len(self.tokens.ids)) & (self.tokens.starts[place] != following)
        window["labels"][:shown][counts] = ids[1 + np.flatnonzero(counts)]
        weights = np.zeros(self.length, np.float32)
        weights[:shown] = counts
        return {**window, "weights": weights}
