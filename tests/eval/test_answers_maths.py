"""Expressions are compared as mathematics, in processes that hostile ones cannot hold up."""

import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from pangu_jax.core.errors import InputError
from pangu_jax.eval import answers_maths
from pangu_jax.eval.answers_maths import SECONDS, Judge

# In time they end, one by one: the last is for the slow test.
HANGS = ("9**9**9**9", "(" * 900 + "x" + ")" * 900, "\\sum_{k=1}^{10^{9}}\\sin(k^{k})")


def pairs(most=None):
    """(gold, answer, whether they are equal); the first `most` of each line and side."""
    text = (Path(__file__).parent / "maths_pairs.txt").read_text("utf-8")
    for line in text.splitlines()[1:]:
        gold, *sides = (part.strip() for part in line.split("||"))
        for same, side in zip((True, False), sides, strict=True):
            yield from ((gold, answer.strip(), same) for answer in side.split(";;")[:most])


@pytest.fixture(scope="module")
def judge():
    judge = Judge(workers=2, seconds=1)
    yield judge
    judge.close()


def check(judge, every):
    """Eight threads find what the file says, and what this one finds."""
    with ThreadPoolExecutor(8) as threads:
        found = list(threads.map(lambda pair: judge.equal(*pair[:2]), every))
    wrong = [(pair, got) for pair, got in zip(every, found, strict=True) if got is not pair[2]]
    for same in (True, False):
        of = [pair for pair in every if pair[2] is same]
        assert sum(pair[2] is same for pair, _ in wrong) <= len(of) // 100, wrong
    step = len(every) // 10
    assert [judge.equal(*pair[:2]) for pair in every[::step]] == found[::step]


def test_one_pair_of_each_kind_is_told_right(judge):
    every = list(pairs(1))
    check(judge, [pair for i, pair in enumerate(every) if pair[2] or i % 4 == 1])


@pytest.mark.slow
def test_true_pairs_are_equal_false_ones_not_and_threads_change_nothing(judge):
    every = list(pairs())
    assert sum(same for *_, same in every) >= 200 and sum(not same for *_, same in every) >= 50
    check(judge, every)


@pytest.mark.long
@pytest.mark.parametrize("count", [2, pytest.param(3, marks=pytest.mark.slow)])
def test_what_hangs_returns_in_time_and_leaves_the_pool_whole_until_it_is_closed(count):
    judge = Judge(workers=2, seconds=0)
    begin = time.monotonic()
    with ThreadPoolExecutor(8) as threads:
        assert set(threads.map(lambda hang: judge.equal("9", hang), HANGS[:count])) == {None}
    assert time.monotonic() - begin < 20  # seconds of the processor, on a machine that is busy
    assert judge._idle.qsize() == 2
    judge._seconds = SECONDS  # enough for a busy machine
    assert judge.equal("9", "3^2") and judge.equal("9", "x" * 5000) is False
    process = judge._idle.queue[-1]._process
    assert process.poll() is None
    judge.close()
    assert process.poll() is not None


@pytest.mark.parametrize(
    ("gold", "answer", "want"),
    [
        ("9", None, False),
        ("9", "3**2**a", False),
        ("9", "import os; 9", False),
        ("6", "5 or 6", False),
        ("x^{10}", "x^10", True),
        ("x^{10}", "x**10", True),
        ("2^{-3}", "2**(-3)", True),
        ("", "1", None),
        ("3\\text{ cm}", "3\\text{ m}", False),
        ("3\\text{ cm}", "3 centimeters", True),
        ("3\\text{ cm}", "3", True),
        ("3", "3\\text{ cm}", True),
        ("6\\text{ square feet}", "6 \\text{ ft}^2", True),
    ],
)
def test_a_part_of_an_answer_is_not_taken_for_it(judge, gold, answer, want):
    assert judge.equal(gold, answer) is want


def test_a_process_that_cannot_be_is_one_sentence(monkeypatch):
    monkeypatch.setattr("sys.executable", "/nowhere/python")
    judge = Judge(workers=1)
    with pytest.raises(InputError, match="cannot start Python to compare"):
        judge.equal("1", "1")
    assert judge._idle.qsize() == 1


def test_without_the_library_it_says_what_to_install(monkeypatch):
    monkeypatch.setattr(answers_maths, "_JUDGES", [])
    monkeypatch.setattr(answers_maths, "LIBRARIES", ("no_such_library",))
    with pytest.raises(InputError, match=r"pip install 'pangu-jax\[reasoning\]'"):
        answers_maths.equal_maths("1", "1")
