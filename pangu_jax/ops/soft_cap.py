"""Soft-capping: a smooth bound on scores."""

import jax
import jax.numpy as jnp


def soft_cap(scores: jax.Array, cap: float | None) -> jax.Array:
    """Cap * tanh(scores / cap), which stays within the cap; the scores themselves if cap is None.

    Source: arXiv 2408.00118, section 2.
    """
    return scores if cap is None else cap * jnp.tanh(scores / cap)
