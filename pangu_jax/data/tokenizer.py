"""Tokenizers: bytes, any Hugging Face tokenizer.json, or a SentencePiece tokenizer.model."""

import dataclasses
import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
import tokenizers

from pangu_jax.core.errors import InputError
from pangu_jax.data.tokenizer_files import (
    CONFIG,
    encoding,
    leading_ids,
    read_object,
    tokenizer_config,
)

RUN = "model.json"  # makes a folder a run of ours; checkpoint.store.MODEL, which data cannot import


class Tokenizer(Protocol):
    """The tokenizer interface that data, training and generation need.

    Attributes:
      name: "bytes", or the path of the tokenizer.json or tokenizer.model.
      vocab_size: one more than the largest id.
      boundary: the id that separates documents in training.
      begin: ids put before a prompt; () if the tokenizer adds none.
      eos_ids: ids after which generation stops.
      digest: a hash of all that determines a text's ids.
      open_ids: ids whose text may still change when the next id comes.
    """

    name: str
    vocab_size: int
    boundary: int
    begin: tuple[int, ...]
    eos_ids: tuple[int, ...]
    digest: str
    open_ids: frozenset[int]

    def encode(self, text: str) -> list[int]:
        """Ids of the text, no special tokens added."""
        ...

    def decode(self, ids: Sequence[int]) -> str:
        """The text of the ids; special tokens are left out."""
        ...

    def token_to_id(self, token: str) -> int | None:
        """The id of the token of that name, None if there is none."""
        ...

    def id_to_token(self, number: int) -> str:
        """The name of the token with that id."""
        ...


@dataclasses.dataclass(frozen=True)
class ByteTokenizer:
    """One id per UTF-8 byte; 256 is the document boundary, 257 to 263 are reserved."""

    name: str = "bytes"
    vocab_size: int = 264
    boundary: int = 256
    begin: tuple[int, ...] = (256,)
    eos_ids: tuple[int, ...] = (256,)
    digest: str = "bytes"
    open_ids: frozenset[int] = frozenset()

    def encode(self, text: str) -> list[int]:
        """The text's UTF-8 bytes."""
        return list(text.encode("utf-8"))

    def decode(self, ids: Sequence[int]) -> str:
        """The bytes as text; invalid UTF-8 becomes the replacement character."""
        return bytes(i for i in ids if i < 256).decode("utf-8", "replace")

    def token_to_id(self, token: str) -> int | None:
        """None: bytes have no names."""
        del token
        return None

    def id_to_token(self, number: int) -> str:
        """The byte in Python's notation."""
        return repr(bytes([number]))[2:-1] if number < 256 else "boundary"


@dataclasses.dataclass(frozen=True)
class FileTokenizer:
    """A tokenizer.json or tokenizer.model with its boundary, begin and end ids."""

    name: str
    vocab_size: int
    boundary: int
    begin: tuple[int, ...]
    eos_ids: tuple[int, ...]
    digest: str
    open_ids: frozenset[int]
    inner: tokenizers.Tokenizer

    def encode(self, text: str) -> list[int]:
        """Ids of the text, without the special tokens a template would add.

        The library keeps some 200 bytes per token while it works, so long texts are better given as
        many documents; names of special tokens in the text become those tokens.
        """
        with encoding(self.name):
            return self.inner.encode(text, add_special_tokens=False).ids

    def decode(self, ids: Sequence[int]) -> str:
        """The text of the ids; special tokens are left out."""
        return self.inner.decode(list(ids), skip_special_tokens=True)

    def token_to_id(self, token: str) -> int | None:
        """The id of the token of that name."""
        return self.inner.token_to_id(token)

    def id_to_token(self, number: int) -> str:
        """The name of the token with that id."""
        return self.inner.id_to_token(number) or ""


def load_tokenizer(path: str | Path, *, checkpoint: str | Path | None = None) -> Tokenizer:
    """The tokenizer of that name.

    A prompt begins with the ids that the tokenizer.json's post-processor puts before a text, or
    with the begin of text if tokenizer_config.json has `add_bos_token: true`; else with nothing. In
    a run of ours it begins with the boundary, as each document did in training.

    Args:
      path: "bytes", a tokenizer.json or tokenizer.model, or a folder with one (the first if both
        exist); generation_config.json, tokenizer_config.json and config.json beside it are read, in
        that order, for the begin and end of text. Without them the common names <s>,
        <|endoftext|>, </s>, [CLS] are looked up.
      checkpoint: the folder of its model; None is the folder of `path`.

    Raises:
      InputError: no such file, not a tokenizer, or no token that can mark a boundary.
    """
    if str(path) == "bytes":
        return ByteTokenizer()
    file = _file(Path(path))
    inner = _read(file)
    begin, end = _special(file.parent, inner)
    if begin is None and not end:
        raise InputError(f"{file} names no token that begins or ends a text, such as <s>")
    ids = inner.get_vocab(with_added_tokens=True).values()
    boundary = begin if begin is not None else end[0]
    run = ((file.parent if checkpoint is None else Path(checkpoint)) / RUN).is_file()
    with encoding(str(file)):
        prefix = (boundary,) if run else _prefix(file.parent, inner, begin)
    converted = file.suffix == ".model"  # its digest must cover the files beside it too
    content = inner.to_str().encode() if converted else file.read_bytes()
    single = (inner.token_to_id(f"<0x{byte:02X}>") for byte in range(256))
    # Such tokens are one byte each, and a run of them is decoded as a whole.
    open_ids = frozenset(i for i in single if i is not None)
    return FileTokenizer(
        str(file),
        max(ids) + 1,
        boundary,
        prefix,
        tuple(end),
        hashlib.sha256(content).hexdigest(),
        open_ids,
        inner,
    )


def text_prompt(text: str, tokenizer: Tokenizer) -> list[int]:
    """Ids of a text to continue, with the ids that precede it.

    An empty text becomes the boundary, as generation needs at least one token.
    """
    ids = tokenizer.encode(text)
    return [*(tokenizer.begin or (() if ids else (tokenizer.boundary,))), *ids]


def check_vocabulary(ids: Sequence[int] | np.ndarray, tokenizer: Tokenizer, vocab: int) -> None:
    """Raises InputError if a text has an id outside a model's `vocab` ids."""
    largest = int(np.max(ids, initial=0))
    if largest >= vocab:
        raise InputError(
            f"the tokenizer {tokenizer.name} gives {tokenizer.id_to_token(largest)!r} "
            f"the id {largest}, the model's vocabulary ends at {vocab - 1}"
        )


class StreamDecoder:
    """Decodes ids that arrive one by one; text once returned never changes.

    The joined results of `push` and `finish` are the tokenizer's `decode` of all ids.
    """

    def __init__(self, tokenizer: Tokenizer):
        """Starts with no ids."""
        self._tokenizer = tokenizer
        self._ids: list[int] = []
        self._done = 0  # ids whose text was given
        self._prefix = 0  # where decoding starts again: a few ids back, for leading spaces
        self._open = False  # inside a run of single bytes, which is decoded as a whole

    def push(self, token: int) -> str:
        """The text that the next id completes, "" while a character is unfinished."""
        self._ids.append(token)
        silent = not self._tokenizer.decode([token])  # a special token does not end a run
        self._open = token in self._tokenizer.open_ids or (self._open and silent)
        before, now = self._texts()
        if self._open or now.endswith("\ufffd") or not now.startswith(before):
            return ""
        if now != before:  # else the ids before still matter to the spaces of the next one
            self._prefix, self._done = self._done, len(self._ids)
        return now[len(before) :]

    def finish(self) -> str:
        """The remaining text; an unfinished character becomes the replacement character."""
        before, now = self._texts()
        self._prefix = self._done = len(self._ids)
        return now[len(before) :]

    def _texts(self) -> tuple[str, str]:
        decode = self._tokenizer.decode
        return decode(self._ids[self._prefix : self._done]), decode(self._ids[self._prefix :])


def _file(path: Path) -> Path:
    """The file of the tokenizer."""
    names = ("tokenizer.json", "tokenizer.model") if path.is_dir() else ("",)
    for name in names:
        if (path / name).is_file():
            return path / name
    raise InputError(f"there is no tokenizer.json at {path}, and no tokenizer.model")


def _read(file: Path) -> tokenizers.Tokenizer:
    if file.suffix == ".model":
        from pangu_jax.data.tokenizer_sentencepiece import from_sentencepiece

        return from_sentencepiece(file, tokenizer_config(file.parent))
    try:
        inner = tokenizers.Tokenizer.from_file(str(file))
    except Exception as error:  # the library raises a bare Exception
        raise InputError(f"{file} is not a tokenizer.json: {error}") from error
    inner.no_truncation()
    inner.no_padding()
    return inner


def _prefix(folder: Path, inner: tokenizers.Tokenizer, begin: int | None) -> tuple[int, ...]:
    """Ids before a prompt, as the tokenizer's files ask for them."""
    found = leading_ids(inner)
    config = read_object(folder / CONFIG)
    if not found and config.get("add_bos_token") is True:
        named = _ids(config, "bos", inner) or ([] if begin is None else [begin])
        found = tuple(named[:1])
    return found


def _special(folder: Path, inner: tokenizers.Tokenizer) -> tuple[int | None, list[int]]:
    begin: int | None = None
    end: list[int] = []
    for name in ("generation_config.json", "tokenizer_config.json", "config.json"):
        values = read_object(folder / name)
        if begin is None:
            begin = next(iter(_ids(values, "bos", inner)), None)
        end = end or _ids(values, "eos", inner)
    begins = _known(("<s>", "<|begin_of_text|>", "<|endoftext|>", "[CLS]"), inner)
    ends = _known(("</s>", "<|end_of_text|>", "<|endoftext|>", "<|im_end|>"), inner)
    ends = ends or _known(("[SEP]",), inner)
    if begin is None and not end:
        begin = next(iter(begins), None)
    return begin, end or ends


def _known(tokens: Sequence[str], inner: tokenizers.Tokenizer) -> list[int]:
    found = (inner.token_to_id(token) for token in tokens)
    return [i for i in found if i is not None]


def _ids(values: dict, kind: str, inner: tokenizers.Tokenizer) -> list[int]:
    """The ids that a file names for "bos" or "eos"; those the tokenizer lacks are left out."""
    found = values.get(f"{kind}_token_id")
    if found is None:
        token = values.get(f"{kind}_token")
        token = token.get("content") if isinstance(token, dict) else token
        return _known([token], inner) if isinstance(token, str) else []
    found = found if isinstance(found, list) else [found]
    there = [i for i in found if type(i) is int and 0 <= i < 2**32]  # the library's own bound
    return [i for i in there if inner.id_to_token(i) is not None]
