"""First and second moments of a projection's inputs: one pass, merged by addition."""

from typing import Any

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import struct


@struct.dataclass
class Moments:
    """Sums over calibration tokens of one site's U inputs; two sets of them merge by addition.

    From these every score, swap, repair and error of a site follows in closed form, without the
    tokens (`contributions`, `repair.fit`).

    Attributes:
      tokens: scalar, number of tokens.
      total: [U], sum of the inputs.
      outer: [U, U], sum of their outer products.
      absolute: [U], sum over windows of (mean over the window's tokens of |input|)^2.
    """

    tokens: Any
    total: Any
    outer: Any
    absolute: Any


def zeros(units: int, dtype: Any, device: Any = None) -> Moments:
    """Empty moments."""
    shapes = {"tokens": (), "total": (units,), "outer": (units, units), "absolute": (units,)}
    return Moments(**{n: jnp.zeros(s, dtype, device=device) for n, s in shapes.items()})


def add(moments: Moments, x: jax.Array) -> Moments:
    """The moments after adding B windows of T tokens.

    Sums have the dtype of the moments: float64 where available. Products of one call's
    tokens are taken around their mean and in the type of `x`, float32 or wider, which is three
    times as fast on a CPU; so their rounding is relative to the inputs' deviations, and does not
    grow with the number of calls.

    Args:
      moments: so far.
      x: [B, T, ...], the site's inputs, U in all after the first two dimensions.
    """
    dtype = moments.outer.dtype
    x = rearrange(x, "b t ... -> b t (...)")
    products = jnp.promote_types(x.dtype, jnp.float32)
    x = x.astype(dtype)
    flat = rearrange(x, "b t u -> (b t) u")
    total = flat.sum(0)
    mean = total / flat.shape[0]
    spread = _outer((flat - mean).astype(products)).astype(dtype)
    return Moments(
        moments.tokens + flat.shape[0],
        moments.total + total,
        moments.outer + spread + mean[:, None] * total[None, :],
        moments.absolute + (jnp.abs(x).mean(1) ** 2).sum(0),
    )


def _outer(x):
    """x^T x, each block off the diagonal computed once and mirrored."""
    half = x.shape[1] // 2
    if half < 256:
        return jnp.matmul(x.T, x, precision=jax.lax.Precision.HIGHEST)
    a, b = x[:, :half], x[:, half:]
    cross = jnp.matmul(a.T, b, precision=jax.lax.Precision.HIGHEST)
    return jnp.block([[_outer(a), cross], [cross.T, _outer(b)]])


def merge(first: Moments, second: Moments | None, *, donate: bool = False) -> Moments:
    """The moments of both sets of tokens; `donate` donates `first`, which saves memory."""
    if second is None:
        return first
    return (_merge_into if donate else _merge)(first, second)


def _add_all(first: Moments, second: Moments) -> Moments:
    return jax.tree.map(jnp.add, first, second)


_merge = jax.jit(_add_all)
_merge_into = jax.jit(_add_all, donate_argnums=0)


def mean(moments: Moments) -> jax.Array:
    """[U], mean over the tokens."""
    return moments.total / moments.tokens


def second(moments: Moments) -> jax.Array:
    """[U, U], mean of the outer products."""
    return moments.outer / moments.tokens


@jax.jit
def covariance(moments: Moments) -> jax.Array:
    """[U, U], population covariance."""
    average = mean(moments)
    return second(moments) - average[:, None] * average[None, :]


@jax.jit
def contributions(cov: jax.Array, kernel: jax.Array) -> jax.Array:
    """Covariance, per output, between the contributions of each two units.

    Args:
      cov: [U * c, U * c], covariance of the site's inputs, c for each of U units.
      kernel: [U, c, D], the projection: unit u adds x_u @ kernel[u].

    Returns:
      [U, U, D]: entry [i, k, j] is cov(x_i kernel[i, :, j], x_k kernel[k, :, j]).
    """
    units, size, _ = kernel.shape
    kernel = kernel.astype(cov.dtype)

    def column(k):
        block = jax.lax.dynamic_slice_in_dim(cov, k * size, size, axis=1)
        spread = jnp.matmul(block, kernel[k], precision=jax.lax.Precision.HIGHEST)
        return (rearrange(spread, "(i c) d -> i c d", c=size) * kernel).sum(1)

    return rearrange(jax.lax.map(column, jnp.arange(units)), "k i j -> i k j")
