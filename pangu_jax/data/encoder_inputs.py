"""Token ids for embedding models: special tokens added, truncated to a length.

Encoders read texts or pairs, with the type of each token; `encode_for_encoder` returns both, as
the post-processor of a tokenizer.json defines them. `encode_for_decoder` is for decoders, which
need no special tokens, and may have a prefix that is not pooled.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import tokenizers

from pangu_jax.core.errors import InputError
from pangu_jax.data.tokenizer import FileTokenizer, Tokenizer
from pangu_jax.data.tokenizer_files import encoding, leading_ids, trailing_ids

Texts = Sequence[str] | Sequence[tuple[str, str]]

MANY = 256  # texts that are encoded at once


class EncodedText(NamedTuple):
    """One text, or a pair of texts, in the form a model reads.

    Attributes:
      ids: with the special tokens.
      types: as many; 0 in the first text, the template's in the second.
      cut: whether the text was truncated.
      prefix: number of ids of the prefix and of what comes before it.
    """

    ids: list[int]
    types: list[int]
    cut: bool
    prefix: int = 0


def encode_for_encoder(
    tokenizer: Tokenizer, texts: Texts, max_length: int
) -> Iterator[EncodedText]:
    """The texts, or pairs, with special tokens, each truncated to a length.

    Truncation drops the end of a text, never a special token; of a pair, the longer text first.

    Args:
      tokenizer: one of `load_tokenizer`; bytes have no template, but the token they begin with.
      texts: strings, or pairs of strings.
      max_length: most ids of one.

    Raises:
      InputError: the tokenizer has no special tokens to put around a text, they leave no room, it
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
            yield EncodedText(found.ids, found.type_ids, bool(found.overflowing))


def encode_for_decoder(
    tokenizer: Tokenizer,
    texts: Sequence[str],
    max_length: int,
    *,
    prefixes: Sequence[str],
    append_eos: bool = False,
) -> Iterator[EncodedText]:
    """Texts after their prefixes, each truncated to a length, in the form a decoder reads.

    A text begins as a prompt does, and ends with the post-processor's ids. Truncation drops the end
    of the text, none of these. A text without any token becomes the boundary of documents.

    Args:
      tokenizer: one of `load_tokenizer`.
      texts: strings.
      max_length: most ids of one.
      prefixes: one per text, possibly empty. A token that is of both is the text's.
      append_eos: whether the first of the tokens that end a text is appended, unless it ends
        with that already.

    Raises:
      InputError: the special tokens leave no room, or the tokenizer has no token for a word.
    """
    last = _end(tokenizer)
    if append_eos and last[-1:] != tokenizer.eos_ids[:1]:
        last = (*last, *tokenizer.eos_ids[:1])
    begin = tokenizer.begin
    room = max_length - len(begin) - len(last)
    _check_room(max_length, len(begin) + len(last) + 1)
    for first in range(0, len(texts), MANY):
        some = slice(first, first + MANY)
        for prefix, (body, size) in zip(
            prefixes[some], _bodies(tokenizer, prefixes[some], texts[some]), strict=True
        ):
            ids = [*begin, *body[:room], *last] or [tokenizer.boundary]
            before = len(begin) + min(size, room) if prefix else 0
            yield EncodedText(ids, [0] * len(ids), len(body) > room, before)


def stacked(inputs: Sequence[EncodedText], length: int) -> dict[str, np.ndarray]:
    """The texts as rows padded to one length: "tokens", int32 [B, T], "valid", bool [B, T].

    Args:
      inputs: B results of `encode_for_encoder` or `encode_for_decoder`, each of at most `length`
        ids.
      length: T.
    """
    tokens = np.zeros((len(inputs), length), np.int32)
    valid = np.zeros((len(inputs), length), bool)
    for row, item in enumerate(inputs):
        tokens[row, : len(item.ids)] = item.ids
        valid[row, : len(item.ids)] = True
    return {"tokens": tokens, "valid": valid}


def _end(tokenizer: Tokenizer) -> tuple[int, ...]:
    """Ids that a tokenizer puts after a text.

    Bytes have none, nor has a run of ours, which begins texts with its own boundary.
    """
    if not isinstance(tokenizer, FileTokenizer) or leading_ids(tokenizer.inner) != tokenizer.begin:
        return ()
    return trailing_ids(tokenizer.inner)


def _bodies(
    tokenizer: Tokenizer, prefixes: Sequence[str], texts: Sequence[str]
) -> list[tuple[list[int], int]]:
    """Ids of each prefixed text, without special tokens, and the number that are the prefix's."""
    if not isinstance(tokenizer, FileTokenizer):
        parts = [
            [tokenizer.encode(a), tokenizer.encode(b)] for a, b in zip(prefixes, texts, strict=True)
        ]
        return [(a + b, len(a)) for a, b in parts]
    whole = [prefix + text for prefix, text in zip(prefixes, texts, strict=True)]
    with encoding(tokenizer.name):
        found = tokenizer.inner.encode_batch(whole, add_special_tokens=False)
    return [
        (text.ids, sum(end <= len(prefix) for _, end in text.offsets))
        for text, prefix in zip(found, prefixes, strict=True)
    ]


def _plain(
    tokenizer: Tokenizer, texts: Texts, max_length: int, pairs: bool
) -> Iterator[EncodedText]:
    if pairs:
        raise InputError(f"the tokenizer {tokenizer.name} has no template for pairs of texts")
    _check_room(max_length, len(tokenizer.begin) + 1)
    for text in texts:
        ids = [*tokenizer.begin, *tokenizer.encode(str(text))]
        yield EncodedText(ids[:max_length], [0] * min(len(ids), max_length), len(ids) > max_length)


def _check_room(max_length: int, least: int) -> None:
    if max_length < least:
        raise InputError(
            f"texts cannot be cut to {max_length} tokens: with the special tokens they have at "
            f"least {least}"
        )
