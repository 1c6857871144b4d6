"""Chunked cross-entropy: equal to the plain one in value and gradient, for any padding; bounded."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pangu_jax.losses.language import cross_entropy, token_log_probs

B, T, D, V = 3, 7, 5, 11


def arrays(seed=0):
    rng = np.random.default_rng(seed)
    hidden = rng.normal(size=(B, T, D))
    kernel = rng.normal(size=(D, V))
    labels = rng.integers(0, V, (B, T))
    weights = rng.integers(0, 2, (B, T)) * rng.uniform(0.5, 2, (B, T))
    return hidden, kernel, labels, weights


def by_loops(hidden, kernel, labels, weights):
    """Sum of weighted nats, and the gradients of hidden and kernel, one token at a time."""
    total, dh, dk = 0.0, np.zeros_like(hidden), np.zeros_like(kernel)
    for b in range(B):
        for t in range(T):
            scores = hidden[b, t] @ kernel
            p = np.exp(scores - scores.max())
            p /= p.sum()
            total -= weights[b, t] * np.log(p[labels[b, t]])
            p[labels[b, t]] -= 1
            dh[b, t] = weights[b, t] * kernel @ p
            dk += weights[b, t] * np.outer(hidden[b, t], p)
    return total, dh, dk


@pytest.mark.parametrize("chunk", [1, 4, 21, 1000])
def test_values_and_gradients_equal_loops(chunk):
    hidden, kernel, labels, weights = arrays()
    want, dh, dk = by_loops(hidden, kernel, labels, weights)

    def loss(h, k):
        return cross_entropy(h, k, jnp.asarray(labels), weights, chunk=chunk)

    (total, weight), grads = jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)(
        jnp.float32(hidden), jnp.float32(kernel)
    )
    np.testing.assert_allclose(total, want, rtol=1e-5)
    np.testing.assert_allclose(weight, weights.sum(), rtol=1e-6)
    np.testing.assert_allclose(grads[0], dh, atol=1e-5)
    np.testing.assert_allclose(grads[1], dk, atol=1e-5)


@pytest.mark.parametrize("chunk", [4, 1000])
def test_each_tokens_score_and_its_gradient_equal_loops(chunk):
    hidden, kernel, labels, weights = arrays()
    hot = (hidden / 0.7, kernel, labels)

    def scores(h, k):
        found = token_log_probs(h, k, jnp.asarray(labels), temperature=0.7, chunk=chunk)
        return (weights * found).sum(), found

    take = jax.jit(jax.grad(scores, argnums=(0, 1), has_aux=True))
    grads, found = take(jnp.float32(hidden), jnp.float32(kernel))
    total, dh, dk = by_loops(*hot, weights)
    np.testing.assert_allclose(grads[0], -dh / 0.7, atol=1e-5)
    np.testing.assert_allclose(grads[1], -dk, atol=1e-5)
    for place in np.ndindex(B, T):
        one = np.zeros((B, T))
        one[place] = 1
        assert found[place] == pytest.approx(-by_loops(*hot, one)[0], rel=1e-5)
    assert -(weights * found).sum() == pytest.approx(total, rel=1e-5)


def test_extreme_scores_are_finite_and_bfloat16_is_close():
    hidden, kernel, labels, weights = arrays()
    total, _ = cross_entropy(jnp.float32(1e4 * hidden), jnp.float32(kernel), labels, weights)
    assert np.isfinite(total)
    want = by_loops(hidden, kernel, labels, weights)[0]
    got, _ = cross_entropy(jnp.bfloat16(hidden), jnp.float32(kernel), labels, weights)
    assert got.dtype == jnp.float32
    np.testing.assert_allclose(got, want, rtol=2e-2)


def test_the_gradient_never_holds_all_the_logits():
    """A vocabulary of 32,768 and 4,096 tokens: the logits alone would be 512 MiB."""
    tokens, width, vocab, chunk = 4096, 16, 32768, 256
    shapes = [(1, tokens, width), (width, vocab), (1, tokens), (1, tokens)]
    kinds = [jnp.float32, jnp.float32, jnp.int32, jnp.float32]
    inputs = [jax.ShapeDtypeStruct(s, k) for s, k in zip(shapes, kinds, strict=True)]

    def temporary(chunk):
        grad = jax.grad(lambda h, k, *r: cross_entropy(h, k, *r, chunk=chunk)[0], argnums=(0, 1))
        return jax.jit(grad).lower(*inputs).compile().memory_analysis().temp_size_in_bytes

    one = chunk * vocab * 4
    assert temporary(chunk) < 5 * one  # a chunk's logits, their gradient, the kernel's gradient
    assert temporary(tokens) > 512 * 2**20  # the same measurement sees them where they are
