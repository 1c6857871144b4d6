"""Questions are kept by how hard they are for the current student."""

import numpy as np
import pytest

from pangu_jax.core.errors import InputError
from pangu_jax.reasoning.select import AttemptCounts, Selection, select

TRIED = 8


def student(rates, seed=0):
    """What a student with these pass rates does."""
    rng = np.random.default_rng(seed)
    return AttemptCounts(rng.binomial(TRIED, rates), np.full(len(rates), TRIED))


def test_each_share_of_passes_is_kept_as_the_curve_says():
    from scipy.stats import chi2

    attempts = student(np.random.default_rng(1).random(40_000))
    kept = select(attempts, Selection(hard=0.02), seed=2)
    statistic, bins = 0.0, 0
    for right in range(TRIED + 1):
        these = attempts.right == right
        chance = np.exp(-((1 - right / TRIED - 0.5) ** 2) / (2 * 0.2**2))
        chance = {0: min(chance, 0.02), TRIED: 0.0}.get(right, chance)
        found, number = kept[these].sum(), these.sum()
        if chance in (0, 1):  # what is mastered, and what is at the middle
            assert found == chance * number
        else:
            statistic += (found - chance * number) ** 2 / (number * chance * (1 - chance))
            bins += 1
    assert bins == TRIED - 1 and chi2.sf(statistic, bins) > 0.01


def test_what_the_next_student_masters_leaves_the_set():
    rates = np.linspace(0.05, 0.95, 500)
    before = select(student(rates), seed=3)
    better = student(np.minimum(1.0, rates + 0.5))
    after = select(better, seed=3)
    mastered = before & (better.complexity == 0)
    assert mastered.any() and not (after & mastered).any()
    assert (after & ~before).any()  # and what was out of reach comes in
    assert (select(better, seed=3) == after).all() and (select(better, seed=4) != after).any()


def test_an_estimate_says_how_good_it_is():
    attempts = AttemptCounts(np.array([4, 400, 8]), np.array([8, 800, 8]))
    np.testing.assert_allclose(attempts.complexity, [0.5, 0.5, 0])
    np.testing.assert_allclose(attempts.error, [0.125**0.5 / 2, 0.00125**0.5 / 2, 0])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: AttemptCounts(np.array([1, 9]), np.array([8, 8])),
            "question 1 has 9 right answers of 8",
        ),
        (
            lambda: AttemptCounts(np.array([0]), np.array([0])),
            "question 0 has 0 right answers of 0",
        ),
        (lambda: AttemptCounts(np.array([0]), np.array([1, 2])), "must be of one length"),
        (lambda: Selection(mu=1.5), "mu and hard must be from 0 to 1"),
        (lambda: Selection(sigma=0.0), "sigma must be above 0"),
    ],
)
def test_counts_and_shares_that_are_none_are_refused(make, message):
    with pytest.raises(InputError, match=message):
        make()
