"""The loss of preferences against its formula."""

import jax.numpy as jnp
import numpy as np
import pytest

from pangu_jax.losses.preference import bradley_terry


def test_it_is_the_log_chance_that_the_chosen_one_wins():
    chosen, rejected = np.array([2.0, -1.0, 0.5, 0.0]), np.array([1.0, 3.0, 0.5, 9.0])
    weights = np.array([2.0, 1.0, 1.0, 0.0])
    nats, weight, right = bradley_terry(*map(jnp.asarray, (chosen, rejected, weights)))
    chance = np.exp(chosen) / (np.exp(chosen) + np.exp(rejected))
    assert float(nats) == pytest.approx(-(weights * np.log(chance)).sum(), rel=1e-6)
    assert (float(weight), float(right)) == (4, 2.5)
    assert float(bradley_terry(jnp.array([200.0]), jnp.array([-200.0]))[0]) == 0
    assert float(bradley_terry(jnp.array([-200.0]), jnp.array([200.0]))[0]) == pytest.approx(400)
