"""The loss of pairs in training: randomness of the two sides."""

import jax
import numpy as np

from pangu_jax.train.preference import preference_loss


def test_each_side_of_a_pair_draws_with_a_key_of_its_own():
    keys = []

    def score(params, frozen, inputs, key):
        del params, frozen
        keys.append(tuple(jax.random.key_data(key).tolist()))
        return inputs

    batch = {"chosen": np.ones(2, np.float32), "rejected": np.zeros(2, np.float32)}
    given = jax.random.key(0)
    _, weight, sums = preference_loss(score)(None, None, batch, given)
    assert (float(weight), float(sums["agreement"])) == (2, 2)
    assert len({*keys, tuple(jax.random.key_data(given).tolist())}) == 3
