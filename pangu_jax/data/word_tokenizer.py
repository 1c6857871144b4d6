"""Tokenizers of one token per word, and tokenizers with tokens added, as files.

Synthetic tasks, such as multiplications or ProsQA, have few words; one token for each spares a
small model from learning to spell.
"""

import contextlib
import functools
import json
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import tokenizers
from tokenizers import models, pre_tokenizers

from pangu_jax.core.errors import InputError
from pangu_jax.data.tokenizer import FileTokenizer, Tokenizer, load_tokenizer
from pangu_jax.data.tokenizer_files import json_file, with_prefix
from pangu_jax.data.tokenizer_save import GENERATION, tokenizer_files

BOUNDARY, UNKNOWN = "<|endoftext|>", "<|unknown|>"


def word_files(texts: Iterable[str], names: Iterable[str] = ()) -> dict[str, bytes]:
    """The files of a tokenizer whose tokens are the words and the marks of punctuation of texts.

    Spaces are not kept: decoding puts one between any two tokens. A word that is in none of the
    texts becomes one token for all such.

    Args:
      texts: all words are in them.
      names: of special tokens, which texts do not have.

    Returns:
      {name: content}, for `opened` or a folder.

    Raises:
      InputError: the texts have no word.
    """
    split = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Punctuation("isolated")]
    )
    spaced = {word for text in texts for word in text.split()}  # few, where texts are many
    words = {word for part in spaced for word, _ in split.pre_tokenize_str(part)}
    if not words:
        raise InputError("a tokenizer of words needs texts with at least one word")
    vocab = {word: i for i, word in enumerate((BOUNDARY, UNKNOWN, *sorted(words)))}
    inner = tokenizers.Tokenizer(models.WordLevel(vocab, unk_token=UNKNOWN))
    inner.pre_tokenizer = split
    inner.add_special_tokens([BOUNDARY, *names])
    ends = {"bos_token_id": 0, "eos_token_id": 0}
    return {"tokenizer.json": _json(with_prefix(inner, (0,))), GENERATION: json_file(ends)}


def files_with_tokens(tokenizer: Tokenizer, names: Iterable[str]) -> dict[str, bytes]:
    """The files of a tokenizer with more special tokens, whose ids follow all existing ones.

    Args:
      tokenizer: from `load_tokenizer`; a byte tokenizer has no names to add to.
      names: of the tokens; existing ones keep their ids.

    Raises:
      InputError: a tokenizer of bytes.
    """
    if not isinstance(tokenizer, FileTokenizer):
        raise InputError(f"tokens cannot be added to the tokenizer {tokenizer.name}")
    files = tokenizer_files(tokenizer)
    inner = tokenizers.Tokenizer.from_str(files["tokenizer.json"].decode())
    inner.add_special_tokens(list(names))
    return {**files, "tokenizer.json": _json(inner)}


def unknown_id(tokenizer: Tokenizer) -> int | None:
    """The id of text without a token of its own; None if the tokenizer can encode every text."""
    if not isinstance(tokenizer, FileTokenizer):
        return None
    return _unknown_id(tokenizer.inner)


@functools.lru_cache(maxsize=8)
def _unknown_id(inner: tokenizers.Tokenizer) -> int | None:
    model = json.loads(inner.to_str())["model"]
    if model.get("unk_id") is not None:  # Unigram has the id, the others have the name
        return model["unk_id"]
    name = model.get("unk_token")
    return None if name is None else inner.token_to_id(name)


@contextlib.contextmanager
def opened(files: Mapping[str, bytes]) -> Iterator[Tokenizer]:
    """The tokenizer of such files, which lie in a temporary folder meanwhile."""
    with tempfile.TemporaryDirectory() as folder:
        for name, content in files.items():
            (Path(folder) / name).write_bytes(content)
        yield load_tokenizer(folder)


def _json(inner: tokenizers.Tokenizer) -> bytes:
    """tokenizer.json, the same bytes for the same tokenizer."""
    return json.dumps(json.loads(inner.to_str()), ensure_ascii=False).encode()
