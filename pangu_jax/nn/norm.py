"""Normalization over the last dimension."""

import typing
from typing import Any, Literal

import jax
import jax.numpy as jnp

from pangu_jax.core.config import check_choice
from pangu_jax.core.spec import Spec, ones, zeros

# RMSNorm; the same with gains that are stored less 1, so that they start at 0 (Gemma); LayerNorm.
NormKind = Literal["rms", "zero_centered_rms", "layer"]


def norm_spec(kind: NormKind, width: int, axis: str = "embed") -> dict[str, Spec]:
    """Spec of a norm of the given kind over `width` features; raises for an unknown kind."""
    check_choice("the kind of a norm", kind, typing.get_args(NormKind))
    if kind == "zero_centered_rms":
        return {"scale": Spec((width,), (axis,), zeros)}
    return rms_norm_spec(width, axis) if kind == "rms" else layer_norm_spec(width, axis)


def norm(params: dict[str, Any], x: jax.Array, *, kind: NormKind, eps: float) -> jax.Array:
    """Applies a norm of a kind: [..., D] to [..., D], in x's type; see each kind's function."""
    if kind == "zero_centered_rms":
        return zero_centered_rms_norm(params, x, eps=eps)
    return (rms_norm if kind == "rms" else layer_norm)(params, x, eps=eps)


def rms_norm_spec(width: int, axis: str = "embed") -> dict[str, Spec]:
    """Spec of an RMSNorm's gains over `width` features."""
    return {"scale": Spec((width,), (axis,), ones)}


def rms_norm(params: dict[str, Any], x: jax.Array, *, eps: float) -> jax.Array:
    """X / sqrt(mean(x^2) + eps) over the last dimension, times the gains.

    The mean and the division are float32; the result is cast back before the gains multiply it,
    as the Hugging Face models do.

    Args:
      params: {"scale": [D]}.
      x: [..., D].
      eps: added to the mean of squares.

    Returns:
      [..., D] in the type of `x`.

    Source: arXiv 1910.07467, equation 4.
    """
    return _over_rms(x, eps).astype(x.dtype) * params["scale"].astype(x.dtype)


def zero_centered_rms_norm(params: dict[str, Any], x: jax.Array, *, eps: float) -> jax.Array:
    """As `rms_norm`, with gains of 1 + scale, which multiply in float32 before the cast.

    Source: arXiv 2403.08295, section 2; the order is that of the Gemma release.
    """
    return (_over_rms(x, eps) * (1 + params["scale"].astype(jnp.float32))).astype(x.dtype)


def _over_rms(x, eps):
    y = x.astype(jnp.float32)
    return y * jax.lax.rsqrt(jnp.mean(y * y, axis=-1, keepdims=True) + eps)


def layer_norm_spec(width: int, axis: str = "embed") -> dict[str, Spec]:
    """Spec of a LayerNorm's gains and shifts over `width` features."""
    return {"scale": Spec((width,), (axis,), ones), "bias": Spec((width,), (axis,), zeros)}


def layer_norm(params: dict[str, Any], x: jax.Array, *, eps: float) -> jax.Array:
    """(x - mean) / sqrt(variance + eps) over the last dimension, times gains, plus shifts.

    Args:
      params: {"scale": [D], "bias": [D]}.
      x: [..., D]; mean and variance are computed in float32 or wider.
      eps: added to the variance.

    Returns:
      [..., D] in the type of `x`.

    Source: arXiv 1607.06450.
    """
    y = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    y = y - jnp.mean(y, axis=-1, keepdims=True)
    y = y * jax.lax.rsqrt(jnp.mean(y * y, axis=-1, keepdims=True) + eps)
    return (y * params["scale"] + params["bias"]).astype(x.dtype)
