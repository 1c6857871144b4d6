"""Which score is the best, and which merge is let through."""

import math

import pytest

from pangu_jax.core.errors import InputError
from pangu_jax.data.multiple_choice import Question
from pangu_jax.data.tokenizer import ByteTokenizer
from pangu_jax.models import timepro
from pangu_jax.reasoning.merge_gate import Gate, read_gate

BYTES, NAN = ByteTokenizer(), math.nan
TEXT = Gate(BYTES, None, None)
ASKED = Gate(BYTES, (Question("?", ("a", "b"), 0),), None)


@pytest.mark.parametrize(
    ("gate", "scores", "best"),
    [
        (TEXT, {"a": 2.0, "b": 1.0, "c": 1.0}, "b"),
        (ASKED, {"a": 0.2, "b": 0.5, "c": 0.1}, "b"),
        (TEXT, {"a": NAN, "b": 9.0}, "b"),
        (ASKED, {"a": 0.1, "b": NAN}, "a"),
    ],
)
def test_fewer_bits_and_more_right_answers_are_better(gate, scores, best):
    assert gate.best(scores) == best


@pytest.mark.parametrize(
    ("gate", "merged", "best", "tolerance", "want"),
    [
        (TEXT, 1.0, 1.0, 0.0, True),
        (TEXT, 1.1, 1.0, 0.0, False),
        (TEXT, 1.1, 1.0, 0.2, True),
        (TEXT, 0.9, 1.0, 0.0, True),
        (ASKED, 0.9, 1.0, 0.0, False),
        (ASKED, 0.9, 1.0, 0.2, True),
        (ASKED, 1.0, 0.9, 0.0, True),
        (TEXT, NAN, NAN, 9.0, False),
        (TEXT, 1.0, NAN, 0.0, True),
    ],
)
def test_a_merge_passes_that_is_no_worse_than_is_tolerated(gate, merged, best, tolerance, want):
    assert gate.passes(merged, best, tolerance) is want


def test_the_file_says_what_is_measured(tmp_path):
    file = tmp_path / "x.jsonl"
    file.write_text('{"instruction": "Is it?", "label": "True"}\n')
    assert read_gate(file, BYTES).asked == (Question("Is it?", ("yes", "no"), 0),)
    file.write_text('{"text": "abc"}\n')
    assert read_gate(file, BYTES).tokens.ids.tolist() == [256, *b"abc"]
    with pytest.raises(InputError, match="there is no file or folder"):
        read_gate(tmp_path / "none.txt", BYTES)
    with pytest.raises(InputError, match="a gate measures decoders"):
        TEXT.score(None, timepro.TimeProConfig(16, 4, 1, 16, 8, 8))
