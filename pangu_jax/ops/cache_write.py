"""One new row of a key-value cache for each row of the batch, each in its own slot.

| implementation | picked when |
|---|---|
| scatter | always: it writes the new rows alone, so a donated cache is updated in place |
| mask | exported: it has no scatter, but writes the layer's whole cache again |
"""

import jax
import jax.numpy as jnp

from pangu_jax.core.errors import InputError
from pangu_jax.core.platform import target

EXPORT = "mask"  # the form that lowers everywhere, from any machine

# What `pangu-jax backends` shows: arguments of `choose` after the platform.
EXAMPLES = {"any shape": ()}


def cache_write(
    run: jax.Array, rows: jax.Array, layer: jax.Array, slots: jax.Array, *, impl: str | None = None
) -> tuple[jax.Array, jax.Array]:
    """Writes one new row for each row of the batch.

    Args:
      run: [L, B, S, K, C], keys or values.
      rows: [B, K, C], cast to the cache's type.
      layer: int32 scalar, which of the L layers.
      slots: int32 [B], at least 0; nothing is written for one that is S or more.
      impl: "scatter", "mask", or None to choose by platform.

    Returns:
      The run's new cache, and the layer's part of it, [B, S, K, C].

    Raises:
      InputError: an unknown `impl`.
    """
    name = impl or choose(target())
    if name not in IMPLEMENTATIONS:
        raise InputError(f"impl is {name!r}; cache_write has {', '.join(IMPLEMENTATIONS)}")
    return IMPLEMENTATIONS[name](run, rows.astype(run.dtype), layer, slots)


def choose(platform: str) -> str:
    """The implementation that `impl=None` picks: the same on every platform."""
    return "scatter"


def _scatter(run, rows, layer, slots):
    batch = jnp.arange(run.shape[1], dtype=jnp.int32)
    at = run.at[layer, batch, slots]
    run = at.set(rows, mode="drop", unique_indices=True, indices_are_sorted=True)
    return run, jax.lax.dynamic_index_in_dim(run, layer, keepdims=False)


def _mask(run, rows, layer, slots):
    every = jnp.arange(run.shape[2], dtype=jnp.int32)
    new = (every == slots[:, None])[..., None, None]  # [B, S, 1, 1]
    old = jax.lax.dynamic_index_in_dim(run, layer, keepdims=False)
    wrote = jnp.where(new, rows[:, None], old)
    return jax.lax.dynamic_update_index_in_dim(run, wrote, layer, axis=0), wrote


IMPLEMENTATIONS = {"scatter": _scatter, "mask": _mask}
