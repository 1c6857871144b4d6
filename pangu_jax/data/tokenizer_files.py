"""Settings in a tokenizer's files beyond the encoding of text."""

import contextlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import tokenizers

from pangu_jax.core.config import read_json
from pangu_jax.core.errors import InputError

CONFIG = "tokenizer_config.json"


def tokenizer_config(folder: Path) -> dict:
    """The content of tokenizer_config.json, completed by older files beside it.

    Raises:
      InputError: one of them holds no JSON object.
    """
    names = (CONFIG, "special_tokens_map.json", "added_tokens.json")
    config, tokens, added = (read_object(folder / name) for name in names)
    if added and "added_tokens_decoder" not in config:
        special = json.dumps(tokens)
        config["added_tokens_decoder"] = {
            str(number): {"content": name, "special": json.dumps(name) in special}
            for name, number in added.items()
        }
    return {**tokens, **config}


def read_object(path: Path) -> dict:
    """The JSON object in a file, {} if the file is missing.

    Raises:
      InputError: it cannot be read, or holds something else.
    """
    values = read_json(path) if path.is_file() else {}
    if not isinstance(values, dict):
        raise InputError(f"{path} holds no JSON object")
    return values


def json_file(values: dict) -> bytes:
    """The content of a JSON file, formatted for people."""
    return (json.dumps(values, indent=2, ensure_ascii=False) + "\n").encode()


@contextlib.contextmanager
def encoding(name: str) -> Iterator[None]:
    """Turns the library's exceptions, as for words without a token, into one sentence.

    Raises:
      InputError: the tokenizer of that name cannot encode a text.
    """
    try:
        yield
    except InputError:
        raise
    except Exception as error:  # the library raises a bare one
        raise InputError(f"{name} cannot encode a text: {error}") from error


def leading_ids(inner: tokenizers.Tokenizer) -> tuple[int, ...]:
    """Ids that the post-processor puts before a text."""
    return _around(inner)[0]


def trailing_ids(inner: tokenizers.Tokenizer) -> tuple[int, ...]:
    """Ids that the post-processor puts after a text."""
    return _around(inner)[1]


def _around(inner: tokenizers.Tokenizer) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Ids that the post-processor puts before and after a text."""
    if not inner.num_special_tokens_to_add(False):
        return (), ()
    # A text that becomes a token shows where the text begins and ends.
    for text in ("a", *inner.get_vocab(with_added_tokens=False)):
        if inner.encode(text, add_special_tokens=False).ids:
            found = inner.encode(text)
            first, size = found.sequence_ids.index(0), found.sequence_ids.count(0)
            return tuple(found.ids[:first]), tuple(found.ids[first + size :])
    return (), ()


def with_prefix(inner: tokenizers.Tokenizer, prefix: Sequence[int]) -> tokenizers.Tokenizer:
    """The same tokenizer with a post-processor that puts these ids before a text."""
    names = [inner.id_to_token(i) for i in prefix]
    single = [{"SpecialToken": {"id": n, "type_id": 0}} for n in names]
    places = [{"Sequence": {"id": x, "type_id": i}} for i, x in enumerate("AB")]
    state = {
        "type": "TemplateProcessing",
        "single": [*single, places[0]],
        "pair": [*single, *places],
        "special_tokens": {
            n: {"id": n, "ids": [i], "tokens": [n]} for n, i in zip(names, prefix, strict=True)
        },
    }
    values = {**json.loads(inner.to_str()), "post_processor": state}
    return tokenizers.Tokenizer.from_str(json.dumps(values))
