"""Cross-entropy over a vocabulary, chunked so that the logits are never all in memory."""

import jax
import jax.numpy as jnp

from pangu_jax.losses.chunked import chunked_sum, cut_tokens, join_tokens
from pangu_jax.ops.soft_cap import soft_cap


def cross_entropy(
    hidden: jax.Array,
    kernel: jax.Array,
    labels: jax.Array,
    weights: jax.Array,
    *,
    softcap: float | None = None,
    chunk: int = 1024,
) -> tuple[jax.Array, jax.Array]:
    """Summed negative log-likelihood of the labels, in nats, and the sum of the weights.

    Tokens are taken `chunk` at a time; a chunk's logits are computed in float32, used, discarded,
    and recomputed in the backward pass, so the largest array is [chunk, V].

    Args:
      hidden: [B, T, D], any float type.
      kernel: [D, V], cast to the type of `hidden`.
      labels: int32 [B, T].
      weights: float32 [B, T]; 0 where there is nothing to predict.
      softcap: bound of the logits, by tanh; None for none.
      chunk: tokens per chunk.

    Returns:
      Two float32 scalars: sum of weights * nats, and sum of weights.
    """
    kernel = kernel.astype(hidden.dtype)

    def nats(x, label, weight):
        logits = soft_cap(jnp.dot(x, kernel, preferred_element_type=jnp.float32), softcap)
        found = jnp.take_along_axis(logits, label[:, None], axis=-1)[:, 0]
        return (weight * (jax.nn.logsumexp(logits, axis=-1) - found)).sum()

    return chunked_sum(nats, hidden, labels, weights, chunk=chunk), weights.sum()


def token_log_probs(
    hidden: jax.Array,
    kernel: jax.Array,
    labels: jax.Array,
    *,
    softcap: float | None = None,
    temperature: float = 1.0,
    chunk: int = 1024,
) -> jax.Array:
    """Log-probability of each label, in chunks as `cross_entropy`.

    Args:
      hidden: [B, T, D], any float type.
      kernel: [D, V], cast to the type of `hidden`.
      labels: int32 [B, T].
      softcap: bound of the logits, by tanh; None for none.
      temperature: what the logits are divided by, above 0.
      chunk: tokens per chunk.

    Returns:
      float32 [B, T].
    """
    kernel = kernel.astype(hidden.dtype)

    @jax.checkpoint
    def piece(inputs):
        x, label = inputs
        logits = soft_cap(jnp.dot(x, kernel, preferred_element_type=jnp.float32), softcap)
        logits = logits / temperature
        found = jnp.take_along_axis(logits, label[:, None], axis=-1)[:, 0]
        return found - jax.nn.logsumexp(logits, axis=-1)

    found = jax.lax.map(piece, cut_tokens(hidden, labels, chunk=chunk))
    return join_tokens(found, labels.shape)
