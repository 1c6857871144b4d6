"""What counts as better, and when a seed's patience is over."""

import jax.numpy as jnp
import pytest

from pangu_jax.core.errors import InputError
from pangu_jax.train.early_stopping import StopRule, begin, is_over, judge

RULE = StopRule("mse", 2)


def test_a_score_as_good_as_the_best_is_better_and_patience_begins_anew():
    best = judge(begin(jnp.zeros(1)), jnp.ones(1), 0.5, 1, RULE)
    best = judge(best, jnp.full(1, 2.0), 0.7, 2, RULE)
    assert (best.params.tolist(), int(best.step), int(best.waited)) == ([1.0], 1, 1)
    best = judge(best, jnp.full(1, 3.0), 0.5, 3, RULE)
    assert (best.params.tolist(), int(best.step), int(best.waited)) == ([3.0], 3, 0)


def test_a_seed_whose_patience_is_over_takes_nothing_any_more():
    best = begin(jnp.zeros((2, 1)), 2)
    for step, scores in enumerate(([0.5, 0.9], [0.6, 0.8], [0.6, 0.7]), start=1):
        best = judge(best, jnp.full((2, 1), float(step)), scores, step, RULE)
    assert not is_over(best, RULE)
    best = judge(best, jnp.full((2, 1), 4.0), [0.1, 0.6], 4, RULE)
    assert best.params.tolist() == [[1.0], [4.0]]
    assert (best.step.tolist(), best.waited.tolist()) == ([1, 4], [2, 0])


def test_no_patience_at_all_is_refused():
    with pytest.raises(InputError, match="patience must be at least 1, got 0"):
        StopRule("mse", 0)
