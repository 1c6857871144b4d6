"""KL and hidden-state losses against plain numpy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pangu_jax.losses.distill import hidden_state_loss, logit_kl

RNG = np.random.default_rng(0)


def softmax(x):
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


@pytest.mark.parametrize("chunk", [4, 100])
@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_kl_is_that_of_softened_predictions(chunk, temperature):
    mine, theirs = RNG.normal(size=(2, 5, 6)), RNG.normal(size=(2, 5, 8))
    a, b = RNG.normal(size=(6, 11)), RNG.normal(size=(8, 11))
    weights = RNG.integers(0, 2, (2, 5)).astype(np.float32)
    q, p = softmax(mine @ a / temperature), softmax(theirs @ b / temperature)
    want = (weights * (p * np.log(p / q)).sum(-1)).sum() * temperature**2
    arrays = jax.tree.map(jnp.float32, (mine, a, theirs, b))

    def loss(mine, a, theirs, b):
        return logit_kl(
            (mine, a), (theirs, b), jnp.asarray(weights), temperature=temperature, chunk=chunk
        )

    assert float(loss(*arrays)) == pytest.approx(want, rel=1e-4)
    grads = jax.grad(loss, argnums=(0, 2))(*arrays)
    assert np.abs(grads[0]).max() > 0
    assert not np.abs(grads[1]).any()  # the teacher's hidden states get none
    wanted = ((q - p) @ a.T) * weights[..., None] * temperature
    np.testing.assert_allclose(grads[0], wanted, rtol=1e-3, atol=1e-5)
    same = logit_kl(arrays[:2], arrays[:2], jnp.asarray(weights))
    assert abs(float(same)) < 1e-5


def test_hidden_states_are_compared_relative_to_the_teacher():
    mine, theirs = RNG.normal(size=(2, 5, 6)), 10 * RNG.normal(size=(2, 5, 6))
    weights = RNG.integers(0, 2, (2, 5)).astype(np.float32)
    on = weights.astype(bool)
    want = weights.sum() * ((mine - theirs)[on] ** 2).mean() / (theirs[on] ** 2).mean()
    found = hidden_state_loss(*map(jnp.float32, (mine, theirs)), jnp.asarray(weights))
    assert float(found) == pytest.approx(want, rel=1e-5)
    assert not jax.grad(hidden_state_loss, 1)(*map(jnp.float32, (mine, theirs, weights))).any()
