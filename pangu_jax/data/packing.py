"""Documents packed end to end into windows, without attention across documents."""

import dataclasses
import hashlib
import zipfile
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np

from pangu_jax.core.errors import InputError
from pangu_jax.core.files import atomic_write
from pangu_jax.data.text import Document
from pangu_jax.data.tokenizer import Tokenizer

BOUNDARY = "the boundary token"


@dataclasses.dataclass(frozen=True)
class Tokens:
    """Documents as one flat array, each headed by the boundary id unless `head` says otherwise.

    Attributes:
      ids: [tokens], of the smallest unsigned type that holds the vocabulary, in memory or mapped.
      starts: int64 [documents], index of each document's first id.
      bytes: UTF-8 bytes of all the text.
      head: what precedes each document, in words; "" if nothing does, its first token being text.
    """

    ids: np.ndarray
    starts: np.ndarray
    bytes: int
    head: str = BOUNDARY


def tokenize(
    documents: Iterable[Document],
    tokenizer: Tokenizer,
    *,
    as_prompts: bool = False,
    progress: Callable[[int], None] | None = None,
) -> Tokens:
    """Encodes every document once; empty ones are left out.

    Args:
      documents: read once, in order; the result is in memory, 1, 2 or 4 bytes per token.
      tokenizer: its boundary id is put before each document, so that the first token of a
        document is predicted too.
      as_prompts: each document begins as a prompt does, with the tokenizer's `begin`, if any.
      progress: called with the number of text bytes done after each document.

    Raises:
      InputError: there is no text at all, or a prompt begins with more than one token.
    """
    flat = bytearray()  # grows in place, where joining arrays would take twice the memory
    begin = tokenizer.begin if as_prompts else (tokenizer.boundary,)
    if len(begin) > 1:
        raise InputError(
            f"{tokenizer.name} puts {len(begin)} tokens before a text; only one can be left out of "
            "what is predicted"
        )
    starts, size = _encode(documents, tokenizer, begin, flat.extend, progress)
    return Tokens(np.frombuffer(flat, _kind(tokenizer)), starts, size, head(tokenizer, begin))


def head(tokenizer: Tokenizer, begin: Sequence[int]) -> str:
    """Ids that head a document or a window, in words; "" for none."""
    if tuple(begin) == (tokenizer.boundary,):
        return BOUNDARY
    return f"the begin token {' '.join(map(tokenizer.id_to_token, begin))}" if begin else ""


def cached_tokens(
    documents: Callable[[], Iterable[Document]],
    tokenizer: Tokenizer,
    folder: str | Path,
    *,
    progress: Callable[[int], None] | None = None,
) -> Tokens:
    """Returns the tokens of `tokenize`, memory-mapped from files that later calls reuse.

    The files are named by a hash of the texts and the tokenizer, and appear whole or not at all.
    One document is in memory at a time, and the ids are read from disk as they are used.

    Args:
      documents: called once to hash the texts, and again if they must be encoded.
      tokenizer: as in `tokenize`.
      folder: folder of the files; made if missing.
      progress: as in `tokenize`; not called when the files are found.

    Raises:
      InputError: there is no text at all, or the folder cannot be written.
    """
    path = Path(folder) / _key(documents(), tokenizer)
    found = _load(path, _kind(tokenizer))
    if found is not None:
        return found
    with atomic_write(path.with_suffix(".ids"), "wb") as file:
        begin = (tokenizer.boundary,)
        starts, size = _encode(documents(), tokenizer, begin, file.write, progress)
        length = file.tell()
    with atomic_write(path.with_suffix(".npz"), "wb") as file:
        np.savez(file, starts=starts, bytes=np.int64(size), length=np.int64(length))
    found = _load(path, _kind(tokenizer))
    if found is None:
        raise InputError(f"the tokens just written to {folder} cannot be read back")
    return found


def fingerprint(tokens: Tokens) -> str:
    """A hash of the ids and starts, which identifies the text and tokenizer of a run."""
    digest = hashlib.sha256(np.ascontiguousarray(tokens.ids).view(np.uint8))
    digest.update(np.ascontiguousarray(tokens.starts).view(np.uint8))
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

    @property
    def bytes(self) -> int:
        """UTF-8 bytes of all the text, for bits per byte."""
        return self.tokens.bytes

    @property
    def most_documents(self) -> int:
        """The most documents in a window, counting padding as one."""
        firsts = np.arange(len(self)) * self.length
        lasts = np.minimum(firsts + self.length, len(self.tokens.ids)) - 1
        first, last = (np.searchsorted(self.tokens.starts, at, "right") for at in (firsts, lasts))
        found = last - first + 1
        found[-1] += lasts[-1] - firsts[-1] + 1 < self.length
        return int(found.max())

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


def _kind(tokenizer: Tokenizer) -> np.dtype:
    return np.min_scalar_type(tokenizer.vocab_size - 1)


def _encode(
    documents: Iterable[Document],
    tokenizer: Tokenizer,
    begin: tuple[int, ...],
    write: Callable[[bytes], object],
    progress: Callable[[int], None] | None,
) -> tuple[np.ndarray, int]:
    """Writes the ids of all documents; returns where each starts, and the bytes of text."""
    kind, starts, position, size = _kind(tokenizer), [], 0, 0
    for document in documents:
        if not document.text:
            continue
        ids = np.asarray([*begin, *tokenizer.encode(document.text)], kind)
        write(ids.tobytes())
        starts.append(position)
        position += len(ids)
        size += len(document.text.encode("utf-8"))
        if progress is not None:
            progress(size)
    if not starts:
        raise InputError("there is no text to tokenize")
    return np.asarray(starts, np.int64), size


def _key(documents: Iterable[Document], tokenizer: Tokenizer) -> str:
    digest = hashlib.sha256(f"1 {tokenizer.digest} {tokenizer.boundary}".encode())
    for document in documents:
        text = document.text.encode("utf-8")
        digest.update(len(text).to_bytes(8, "little"))
        digest.update(text)
    return digest.hexdigest()[:32]


def _load(path: Path, kind: np.dtype) -> Tokens | None:
    """The tokens of that key, or None if a file is missing or damaged."""
    try:
        # Opened here, as numpy leaves a damaged file open.
        with open(path.with_suffix(".npz"), "rb") as raw, np.load(raw) as file:
            starts, size, length = file["starts"], int(file["bytes"]), int(file["length"])
        ids = np.memmap(path.with_suffix(".ids"), kind, mode="r")
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None
    return Tokens(ids, starts, size) if ids.nbytes == length else None
