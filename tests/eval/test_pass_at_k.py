"""avg@k and pass@k against drawing every set of k answers, and intervals that cover."""

import itertools

import numpy as np
import pytest

from pangu_jax.core.errors import InputError
from pangu_jax.eval.pass_at_k import avg_at_k, mean, pass_at, repeated, wilson

RIGHT, TRIED = np.array([0, 1, 3, 5, 0, 2]), np.array([5, 5, 4, 5, 0, 2])


@pytest.mark.parametrize("k", [1, 2, 3, 5])
def test_pass_at_k_is_the_share_of_all_sets_of_k_that_hold_a_right_answer(k):
    shares = []
    for c, n in zip(RIGHT, TRIED, strict=True):
        sets = list(itertools.combinations([1] * c + [0] * (n - c), k))
        shares += [np.mean([any(s) for s in sets])] if sets else []
    found = pass_at(k, RIGHT, TRIED)
    assert found.value == pytest.approx(np.mean(shares)) and found.questions == len(shares)


def test_repeated_questions_are_those_that_occur_earlier():
    assert repeated("abcabca") == 4 and repeated(()) == repeated("ab") == 0


def test_the_average_leaves_out_what_could_not_be_judged():
    found = avg_at_k(RIGHT, TRIED)
    assert found.questions == 5 and found.value == pytest.approx((0 + 1 / 5 + 3 / 4 + 1 + 1) / 5)
    assert found.value == pytest.approx(pass_at(1, RIGHT, TRIED).value)
    assert np.isnan(avg_at_k(np.array([0]), np.array([0])).value)


@pytest.mark.parametrize(("right", "count"), [(0, 10), (3, 7), (30, 30), (81, 164)])
def test_of_zeros_and_ones_the_interval_is_wilson_s(right, count):
    from scipy.stats import binomtest

    found = wilson(np.array([1.0] * right + [0.0] * (count - right)))
    want = binomtest(right, count).proportion_ci(method="wilson")
    assert (found.low, found.high) == pytest.approx((want.low, want.high), abs=1e-9)


@pytest.mark.long
def test_the_interval_of_a_mean_covers_it_as_often_as_it_says():
    rng = np.random.default_rng(0)
    draws = [mean(rng.gamma(2.0, 50.0, size=60)) for _ in range(100)]
    assert 88 <= sum(x.low <= 100 <= x.high for x in draws) <= 100


@pytest.mark.parametrize(
    "call",
    [
        lambda: pass_at(0, RIGHT, TRIED),
        lambda: avg_at_k(TRIED + 1, TRIED),
        lambda: avg_at_k(RIGHT[:2], TRIED),
    ],
)
def test_counts_that_are_none_are_refused(call):
    with pytest.raises(InputError):
        call()
