"""Pooling of hidden states into one vector per text, shared by encoders and embedders."""

import jax
import jax.numpy as jnp

from pangu_jax.models.pooling_config import Pooling, PoolingConfig, check_pooling


def pooled(hidden: jax.Array, valid: jax.Array, *, cfg: PoolingConfig) -> jax.Array:
    """A model's vectors from its hidden states, by `pool`, scaled to length 1 if it says so.

    Args:
      hidden: [B, T, D].
      valid: bool [B, T], which states are pooled.
      cfg: the model.

    Returns:
      float32 [B, D].

    Raises:
      InputError: `cfg` names no pooling.
    """
    found = pool(hidden, valid, check_pooling(cfg))
    if not cfg.normalize:
        return found
    return found / jnp.maximum(jnp.sqrt(jnp.sum(found * found, -1, keepdims=True)), 1e-12)


def pool(hidden: jax.Array, valid: jax.Array, kind: Pooling) -> jax.Array:
    """One vector per row, of its real tokens alone.

    Args:
      hidden: [B, T, D].
      valid: bool [B, T], false for padding, wherever in the row that is.
      kind: "cls" is the first real token, "last" the last; "mean" and "max" are over all of them;
        "weighted" is the mean with weights 1, 2, 3 and so on, so that later tokens count more.

    Returns:
      float32 [B, D]; finite but meaningless for a row that is all padding.

    Source: arXiv 1908.10084, section 3, weights arXiv 2202.08904; padding as in the
      sentence-transformers release.
    """
    x, real = hidden.astype(jnp.float32), valid[..., None]
    if kind == "mean":
        return jnp.where(real, x, 0).sum(1) / jnp.maximum(real.sum(1), 1)
    if kind == "weighted":
        weight = jnp.where(valid, jnp.cumsum(valid, axis=1), 0).astype(jnp.float32)[..., None]
        return (jnp.where(real, x, 0) * weight).sum(1) / jnp.maximum(weight.sum(1), 1)
    if kind == "max":
        return jnp.where(real, x, jnp.finfo(jnp.float32).min).max(1)
    slots = jnp.arange(x.shape[1], dtype=jnp.int32)
    if kind == "cls":
        at = jnp.where(valid, slots, x.shape[1] - 1).min(1)
    else:
        at = jnp.where(valid, slots, 0).max(1)
    return jnp.take_along_axis(x, at[:, None, None], axis=1, mode="clip")[:, 0]
