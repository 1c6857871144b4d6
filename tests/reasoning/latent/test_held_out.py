"""Questions that a model was trained on are told from others, however they are written."""

import numpy as np
import pytest

from pangu_jax.core.errors import InputError
from pangu_jax.data.chain_of_thought import Problem
from pangu_jax.reasoning.latent.held_out import (
    TRAINED_ON,
    hashes,
    key,
    load_hashes,
    not_among,
    save_hashes,
)


def problems(*questions):
    return [Problem(question, (), "7") for question in questions]


def test_questions_that_ask_the_same_have_one_key():
    assert key("1 2 * 3 4") == key("3 4  *  1 2 ") != key("1 2 * 4 3")
    assert key("Is Bob * a vumpus?") == "Is Bob * a vumpus?" != key("a vumpus? * Is Bob")
    assert key("one\n two") == key("one two")
    assert key("Is Zo\u00e9 here?") == key("Is Zoe\u0301 here?") != key("Is Zoe here?")


def test_what_was_trained_on_is_told_after_a_round_trip(tmp_path):
    seen = hashes(problems("1 * 2", "2 * 1", "a b"))
    assert seen.shape == (2,) and seen.dtype == np.uint64
    save_hashes(tmp_path, seen)
    asked = problems("2 * 1", "3 * 1", "a  b", "b a")
    assert not_among(asked, load_hashes(tmp_path)) == [asked[1], asked[3]]
    assert not_among(asked, hashes([])) == asked
    # Whatever is said of it: a file may write its answer in another way.
    assert not_among([Problem("a b", ("a",), "7.0")], seen) == []


def test_a_file_of_something_else_is_refused(tmp_path):
    with pytest.raises(InputError, match=f"{TRAINED_ON} cannot be read"):
        load_hashes(tmp_path)
    for content in (np.zeros(3), np.zeros((2, 2), np.uint64)):
        np.save(tmp_path / TRAINED_ON, content)
        with pytest.raises(InputError, match="does not hold the hashes"):
            load_hashes(tmp_path)
    (tmp_path / TRAINED_ON).write_bytes(b"text")
    with pytest.raises(InputError, match="cannot be read"):
        load_hashes(tmp_path)
