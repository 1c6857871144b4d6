"""The curriculum draws bands by their shares, questions by what they teach, and forgets none."""

import collections

import numpy as np
import pytest

from pangu_jax.core.errors import InputError
from pangu_jax.reasoning.curriculum import CurriculumConfig, learned, mixture, pick, shares

RATES = [0.95, 1.0, 0.5, 0.7, None, 0.0, 0.1]
CFG = CurriculumConfig(7, updates=10)


def drawn(rates, version, busy=(), count=4000, cfg=CFG):
    rng = np.random.default_rng(0)
    found = [pick(cfg, rates, version=version, busy=busy, rng=rng) for _ in range(count)]
    return collections.Counter(found)


@pytest.mark.parametrize(
    "version, want", [(0, (0.5, 0.4, 0.1)), (5, (0.3, 0.45, 0.25)), (99, (0.1, 0.5, 0.4))]
)
def test_bands_are_drawn_by_their_shares(version, want):
    np.testing.assert_allclose(shares(CFG, version), want)
    found = drawn(RATES, version)
    got = [sum(found[q] for q in members) / 4000 for members in ((0, 1), (2, 3, 4), (5, 6))]
    np.testing.assert_allclose(got, want, atol=0.03)


def test_questions_of_a_band_are_drawn_by_what_they_teach_and_none_is_forgotten():
    found = drawn(RATES, 99)
    weights = {5: 0.05, 6: 4 * 0.1 * 0.9}
    assert found[5] / found[6] == pytest.approx(weights[5] / weights[6], rel=0.3) and found[5] > 0
    assert found[4] / found[3] == pytest.approx(1 / (4 * 0.7 * 0.3), rel=0.2), "new ones are 0.5"


def test_an_empty_band_leaves_its_share_to_the_others():
    found = drawn([0.5, 0.6, 0.9], 0)
    assert found[2] / 4000 == pytest.approx(0.5 / 0.9, abs=0.03)
    only = CurriculumConfig(2, first=(1.0, 0.0, 0.0), last=(1.0, 0.0, 0.0))
    assert set(drawn([0.5, 0.5], 0, cfg=only, count=50)) == {0, 1}


def test_questions_under_way_are_left_out_while_there_are_others():
    assert set(drawn([0.5, 0.5, 0.5], 0, busy=[0, 2], count=50)) == {1}
    assert set(drawn([0.5, 0.5], 0, busy=[0, 1], count=50)) == {0, 1}


def test_mean_rewards_are_followed():
    assert learned(CFG, None, [1.0, 0.0]) == 0.5
    assert learned(CFG, 0.5, [3.0]) == pytest.approx(0.7 * 0.5 + 0.3)
    assert learned(CFG, 0.5, []) == 0.5 and learned(CFG, None, []) is None
    found = mixture(CFG, RATES)
    assert found["easy_questions"] == found["hard_questions"] == 2 / 7
    assert found["new_questions"] == pytest.approx(1 / 7) and sum(found.values()) == pytest.approx(
        1
    )


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"questions": 0}, "questions"),
        ({"updates": 0}, "updates"),
        ({"first": (0.5, 0.5, 0.5)}, "first"),
        ({"last": (1.5, -0.5, 0.0)}, "last"),
        ({"easy": 0.1}, "hard <= easy"),
        ({"memory": 1.0}, "memory"),
        ({"floor": 0.0}, "floor"),
    ],
)
def test_settings_that_are_none_are_refused(changes, words):
    with pytest.raises(InputError, match=words):
        CurriculumConfig(**({"questions": 3} | changes))
