"""The Bradley-Terry loss on pairs of scores."""

import jax
import jax.numpy as jnp


def bradley_terry(
    chosen: jax.Array, rejected: jax.Array, weights: jax.Array | None = None
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Summed -log sigmoid(chosen - rejected), in nats.

    Args:
      chosen: [B], scores of what is preferred, of any float type; the arithmetic is float32.
      rejected: [B], scores of what it is preferred to.
      weights: float [B], 0 for padding; None is 1.

    Returns:
      float32 scalars: the sum, the sum of weights, and the weighted count of pairs whose chosen
      score is the higher; a tie counts half.

    Source: Bradley and Terry 1952, doi 10.2307/2334029, as a loss in arXiv 1909.08593, equation 1.
    """
    gap = chosen.astype(jnp.float32) - rejected.astype(jnp.float32)
    weights = jnp.ones_like(gap) if weights is None else weights.astype(jnp.float32)
    right = jnp.where(gap == 0, 0.5, (gap > 0).astype(jnp.float32))
    return -(weights * jax.nn.log_sigmoid(gap)).sum(), weights.sum(), (weights * right).sum()
