"""Tokenizers of checkpoints that are merged must give the same ids."""

import json

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers

from pangu_jax.core.errors import InputError
from pangu_jax.reasoning.merge_checkpoints import Source, same_tokens

WORDS = {"<s>": 0, "a": 1, "b": 2}


def source(folder, words=None, *, whole=False):
    """A checkpoint of which only the tokenizer is there, or not even that."""
    folder.mkdir()
    if words is not None:
        inner = Tokenizer(models.WordLevel(words, unk_token="<s>"))
        inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit() if whole else None
        inner.add_special_tokens(["<s>"])
        inner.save(str(folder / "tokenizer.json"))
        (folder / "config.json").write_text(json.dumps({"eos_token_id": 0}))
    return Source(str(folder), None, None, str(folder), "llama")


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"words": {"<s>": 0, "a": 2, "b": 1}}, "differ: 'a' is id 1 and 2"),
        ({"words": {**WORDS, "c": 3}}, "differ: 'c' is id none and 3"),
        ({"words": WORDS, "whole": True}, "differ in pre_tokenizer, so they cut texts differently"),
        ({"words": WORDS}, None),
        ({}, None),
    ],
)
def test_a_token_that_differs_is_named(other, message, tmp_path):
    one, two = source(tmp_path / "one", WORDS), source(tmp_path / "two", **other)
    if message is None:
        same_tokens(one, two)
        return
    with pytest.raises(InputError, match=message):
        same_tokens(one, two)


def test_bytes_and_tokens_are_not_the_same(tmp_path):
    run = Source(str(tmp_path), None, None, "bytes", None)
    with pytest.raises(InputError, match="one is of bytes, the other of tokens"):
        same_tokens(source(tmp_path / "one", WORDS), run)
