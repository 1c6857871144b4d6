"""Rotary position embedding in the half-split ("rotate half") pairing."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np

from pangu_jax.core.config import check_size
from pangu_jax.core.errors import InputError


@dataclasses.dataclass(frozen=True)
class Llama3Scaling:
    """Llama 3's scaling of low frequencies for longer contexts.

    Frequencies whose wavelength is under original_length / high_freq_factor stay, those over
    original_length / low_freq_factor are divided by `factor`, between them both are blended.
    """

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_length: int

    def __post_init__(self):
        if self.factor <= 0 or self.high_freq_factor <= self.low_freq_factor:
            raise InputError(
                "rope scaling needs factor > 0 and high_freq_factor > low_freq_factor, got "
                f"{self.factor}, {self.high_freq_factor}, {self.low_freq_factor}"
            )
        check_size("rope scaling's original length", self.original_length)


@dataclasses.dataclass(frozen=True)
class RopeConfig:
    """Base of the rotary frequencies, and optional scaling."""

    theta: float = 10000.0
    scaling: Llama3Scaling | None = None

    def __post_init__(self):
        if not 0 < self.theta < float("inf"):
            raise InputError(f"rope theta must be positive and finite, got {self.theta}")


def frequencies(head_dim: int, cfg: RopeConfig) -> np.ndarray:
    """Angle per position of each of the C/2 pairs: float32 [C/2], radians.

    Source: arXiv 2104.09864, section 3.2; the scaling is that of the Llama 3.1 release.
    """
    inverse = 1.0 / cfg.theta ** (np.arange(0, head_dim, 2, dtype=np.float32) / head_dim)
    if cfg.scaling is not None:
        inverse = _scale(inverse, cfg.scaling)
    return inverse.astype(np.float32)


def rotation(positions: jax.Array, head_dim: int, cfg: RopeConfig) -> tuple[jax.Array, jax.Array]:
    """Cosines and sines for `rotate`: two float32 [B, T, C/2] for int32 positions [B, T]."""
    angles = positions[..., None].astype(jnp.float32) * frequencies(head_dim, cfg)
    return jnp.cos(angles), jnp.sin(angles)


def rotate(x: jax.Array, cos: jax.Array, sin: jax.Array) -> jax.Array:
    """Rotates each pair (x[i], x[i + C/2]) by its angle.

    Args:
      x: [B, T, ..., C]: queries or keys, any number of head dimensions.
      cos: float32 [B, T, C/2].
      sin: float32 [B, T, C/2].

    Returns:
      The shape and type of `x`; computed in float32.
    """
    middle = (1,) * (x.ndim - 3)
    cos = cos.reshape(*cos.shape[:2], *middle, cos.shape[-1])
    sin = sin.reshape(*sin.shape[:2], *middle, sin.shape[-1])
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    turned = [first * cos - second * sin, second * cos + first * sin]
    return jnp.concatenate(turned, axis=-1).astype(x.dtype)


def _scale(inverse: np.ndarray, cfg: Llama3Scaling) -> np.ndarray:
    wavelength = 2 * math.pi / inverse
    blend = (cfg.original_length / wavelength - cfg.low_freq_factor) / (
        cfg.high_freq_factor - cfg.low_freq_factor
    )
    blend = np.clip(blend, 0.0, 1.0)
    return (1 - blend) * inverse / cfg.factor + blend * inverse
