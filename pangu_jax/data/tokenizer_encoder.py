"""What an encoder reads of a text or a pair: ids between special tokens, and which text each is of.

Both are put in by the post-processor of a tokenizer.json, as its makers' own library does it.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import tokenizers

from pangu_jax.core.errors import InputError
from pangu_jax.data.tokenizer import FileTokenizer, Tokenizer
from pangu_jax.data.tokenizer_files import encoding

Texts = Sequence[str] | Sequence[tuple[str, str]]

MANY = 256  # texts that are encoded at once


class Marked(NamedTuple):
    """One text, or a pair of texts, as an encoder reads it.

    Attributes:
      ids: with the special tokens.
      types: as many; 0 in the first text, what the template says in the second.
      cut: whether tokens were left out.
    """

    ids: list[int]
    types: list[int]
    cut: bool


def mark(tokenizer: Tokenizer, texts: Texts, max_length: int) -> Iterator[Marked]:
    """The texts, or pairs, each cut to a length with its special tokens.

    What is cut is the end of a text, never a special token; of a pair, the longer text first.

    Args:
      tokenizer: one of `load_tokenizer`; bytes have no template, but the token they begin with.
      texts: strings, or pairs of strings.
      max_length: most ids of one.

    Raises:
      InputError: the tokeniser has no special tokens to put around a text, they leave no room, it
        has no token for a word, or bytes are to be pairs.
    """
    pairs = any(not isinstance(text, str) for text in texts)
    if not isinstance(tokenizer, FileTokenizer):
        yield from _plain(tokenizer, texts, max_length, pairs)
        return
    inner = tokenizers.Tokenizer.from_str(tokenizer.inner.to_str())
    special = inner.num_special_tokens_to_add(pairs)
    if not special:
        raise InputError(
            f"{tokenizer.name} puts no special tokens around a text, such as [CLS] and [SEP], "
            "which an encoder reads"
        )
    _check_room(max_length, special + 1 + pairs)  # with less the library cuts nothing
    inner.enable_truncation(max_length)
    for first in range(0, len(texts), MANY):
        with encoding(tokenizer.name):
            encoded = inner.encode_batch(list(texts[first : first + MANY]))
        for found in encoded:
            yield Marked(found.ids, found.type_ids, bool(found.overflowing))


def _plain(tokenizer: Tokenizer, texts: Texts, max_length: int, pairs: bool) -> Iterator[Marked]:
    if pairs:
        raise InputError(f"the tokenizer {tokenizer.name} has no template for pairs of texts")
    _check_room(max_length, len(tokenizer.begin) + 1)
    for text in texts:
        ids = [*tokenizer.begin, *tokenizer.encode(str(text))]
        yield Marked(ids[:max_length], [0] * min(len(ids), max_length), len(ids) > max_length)


def _check_room(max_length: int, least: int) -> None:
    if max_length < least:
        raise InputError(
            f"texts cannot be cut to {max_length} tokens: with the special tokens they have at "
            f"least {least}"
        )
