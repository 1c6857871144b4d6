"""Cross-entropy over a vocabulary, chunked so that the logits are never all in memory."""

import jax
import jax.numpy as jnp
from einops import rearrange

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

    @jax.checkpoint
    def piece(total, inputs):
        x, label, weight = inputs
        logits = soft_cap(jnp.dot(x, kernel, preferred_element_type=jnp.float32), softcap)
        found = jnp.take_along_axis(logits, label[:, None], axis=-1)[:, 0]
        return total + (weight * (jax.nn.logsumexp(logits, axis=-1) - found)).sum(), None

    inputs = [_cut(x, chunk) for x in (hidden, labels, weights)]
    total, _ = jax.lax.scan(piece, jnp.float32(0), inputs)
    return total, weights.sum()


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

    found = jax.lax.map(piece, (_cut(hidden, chunk), _cut(labels, chunk)))
    return found.reshape(-1)[: labels.size].reshape(labels.shape)


def _cut(x: jax.Array, chunk: int) -> jax.Array:
    """[B, T, ...] as [pieces, tokens, ...], at most `chunk` tokens each, filled up with zeros."""
    tokens = x.shape[0] * x.shape[1]
    chunk = min(chunk, tokens)
    pieces = -(-tokens // chunk)
    x = rearrange(x, "b t ... -> (b t) ...")
    pad = [(0, pieces * chunk - tokens)] + [(0, 0)] * (x.ndim - 1)
    return rearrange(jnp.pad(x, pad), "(piece t) ... -> piece t ...", t=chunk)
