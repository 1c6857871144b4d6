"""Whole windows of text."""

import numpy as np
import pytest

from pangu_jax.core.errors import InputError
from pangu_jax.data.calibration import as_documents, cut_windows
from pangu_jax.data.packing import tokenize
from pangu_jax.data.text import Document
from pangu_jax.data.tokenizer import ByteTokenizer


def test_windows_take_all_ids_once_and_are_headed_by_the_boundary():
    texts = ["abcdefg", "hij", "klmnopq"]
    tokens = tokenize([Document(t, t) for t in texts], ByteTokenizer())
    found = cut_windows(tokens, 5)
    flat = [*b"abcdefg", 256, *b"hij", 256, *b"klmnopq"]
    assert found.shape == (len(flat) // 4, 5)
    assert (found[:, 0] == 256).all()
    assert found[:, 1:].reshape(-1).tolist() == flat[: len(flat) // 4 * 4]
    again = as_documents(found)
    assert again.starts.tolist() == list(range(0, found.size, 5))
    np.testing.assert_array_equal(again.ids, found.reshape(-1))


def test_text_that_fills_no_window_is_refused():
    tokens = tokenize([Document("a", "abc")], ByteTokenizer())
    with pytest.raises(InputError, match="3 tokens, which do not fill one window of 5"):
        cut_windows(tokens, 5)
    with pytest.raises(InputError, match="at least 2"):
        cut_windows(tokens, 1)


@pytest.mark.parametrize("begin", [(), (300,), (300, 301)])
def test_windows_begin_as_prompts_do(begin):
    tokens = tokenize([Document(t, t) for t in ("abcdefg", "hij")], ByteTokenizer())
    found = cut_windows(tokens, 4, begin)
    flat = [*b"abcdefg", 256, *b"hij"]
    size = 4 - len(begin)
    assert found.shape == (len(flat) // size, 4)
    assert (found[:, : len(begin)] == begin).all()
    assert found[:, len(begin) :].reshape(-1).tolist() == flat[: len(flat) // size * size]


def test_windows_hold_more_than_their_head():
    tokens = tokenize([Document("a", "abc")], ByteTokenizer())
    with pytest.raises(InputError, match="at least 3 tokens, got 2"):
        cut_windows(tokens, 2, (1, 2))
