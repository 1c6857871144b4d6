"""The chunked sum: that of all tokens at once, whatever the chunk, with its gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pangu_jax.losses.chunked import LOGITS, chunked_sum, tokens_at_once

RNG = np.random.default_rng(0)
X, WEIGHTS = RNG.normal(size=(2, 7, 3)), RNG.random((2, 7))


def weighted(x, weights):
    return (weights * jnp.exp(x).sum(-1)).sum()


@pytest.mark.parametrize("chunk", [1, 5, 7, 14, 100])
def test_it_is_the_sum_of_all_tokens(chunk):
    """14 tokens in chunks that divide them, do not, or are longer; padding adds nothing."""
    found, slope = jax.jit(
        jax.value_and_grad(lambda x: chunked_sum(weighted, x, jnp.float32(WEIGHTS), chunk=chunk))
    )(jnp.float32(X))
    want = sum(
        w * sum(np.exp(v) for v in x)
        for row, weights in zip(X, WEIGHTS, strict=True)
        for x, w in zip(row, weights, strict=True)
    )
    np.testing.assert_allclose(found, want, rtol=1e-5)
    np.testing.assert_allclose(slope, WEIGHTS[..., None] * np.exp(X), rtol=1e-5)


def test_the_function_gets_a_chunk_of_tokens_at_a_time():
    seen = []

    def function(x, weights):
        seen.append(x.shape)
        return weighted(x, weights)

    jax.eval_shape(lambda x, w: chunked_sum(function, x, w, chunk=4), X, WEIGHTS)
    assert set(seen) == {(4, 3)}


def test_small_vocabularies_are_taken_more_tokens_at_a_time():
    assert tokens_at_once(None, 151_936) == 1024
    assert LOGITS - 264 < 264 * tokens_at_once(None, 264) <= LOGITS
    assert tokens_at_once(7, 264) == 7
