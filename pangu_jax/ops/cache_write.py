"""Writes one new row per sequence into a key-value cache, each at its own position.

| implementation | picked when |
|---|---|
| scatter | always: it writes the new rows alone, so a donated cache is updated in place |
| mask | exported: it has no scatter, but writes the layer's whole cache again |
"""

import jax
import jax.numpy as jnp

from pangu_jax.core.config import check_choice
from pangu_jax.core.platform import target

EXPORT = "mask"  # the form that lowers everywhere, from any machine

# What `pangu-jax backends` shows: arguments of `choose` after the platform.
EXAMPLES = {"any shape": ()}


def cache_write(
    cache: jax.Array, rows: jax.Array, slots: jax.Array, *, impl: str | None = None
) -> jax.Array:
    """Writes one new row for each row of the batch.

    Args:
      cache: [B, S, K, C], a layer's keys or values.
      rows: [B, K, C], cast to the cache's type.
      slots: int32 [B], at least 0; nothing is written for one that is S or more.
      impl: "scatter", "mask", or None to choose by platform.

    Returns:
      The new cache.

    Raises:
      InputError: an unknown `impl`.
    """
    name = choose(target()) if impl is None else impl
    check_choice("impl of cache_write", name, IMPLEMENTATIONS)
    return IMPLEMENTATIONS[name](cache, rows.astype(cache.dtype), slots)


def choose(platform: str) -> str:
    """The implementation that `impl=None` picks: the same on every platform."""
    return "scatter"


def _scatter(cache, rows, slots):
    at = cache.at[jnp.arange(cache.shape[0], dtype=jnp.int32), slots]
    return at.set(rows, mode="drop", unique_indices=True, indices_are_sorted=True)


def _mask(cache, rows, slots):
    every = jnp.arange(cache.shape[1], dtype=jnp.int32)
    new = (every == slots[:, None])[..., None, None]  # [B, S, 1, 1]
    return jnp.where(new, rows[:, None], cache)


IMPLEMENTATIONS = {"scatter": _scatter, "mask": _mask}
