"""Splits series into overlapping patches."""

import jax
import jax.numpy as jnp
import numpy as np

from pangu_jax.nn.patch_count import patch_count


def patches(x: jax.Array, *, size: int, stride: int) -> jax.Array:
    """Windows of `size` every `stride` steps; the last value is first repeated `stride` times.

    Args:
      x: [..., T].
      size: steps of a patch, at most T.
      stride: steps between the beginnings of two patches.

    Returns:
      [..., P, size] with P = (T - size) // stride + 2.

    Source: arXiv 2211.14730, section 3.1.
    """
    count = patch_count(x.shape[-1], size, stride)
    # Steps past the end read the last value: the padding without a copy.
    at = np.minimum(np.arange(count)[:, None] * stride + np.arange(size), x.shape[-1] - 1)
    return jnp.take(x, jnp.asarray(at), axis=-1)
