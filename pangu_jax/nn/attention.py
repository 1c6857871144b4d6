"""Grouped-query attention: self-attention, cached self-attention, or cross-attention."""

import dataclasses
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from pangu_jax.core.config import check_size
from pangu_jax.core.errors import InputError
from pangu_jax.nn.how import HOW, How
from pangu_jax.nn.linear import linear, linear_spec
from pangu_jax.nn.norm import rms_norm, rms_norm_spec
from pangu_jax.nn.rotary import rotate
from pangu_jax.ops.attention import attention as attend
from pangu_jax.ops.cache_write import cache_write
from pangu_jax.ops.packed import Packed
from pangu_jax.sharding.layout import constrain

HEADS = ("kv_heads", "q_per_kv", "head_dim")


@dataclasses.dataclass(frozen=True)
class AttentionConfig:
    """Head structure of one layer, and what its heads attend to.

    Attributes:
      kv_heads: K, key-value heads.
      q_per_kv: Q, query heads that share one key-value head.
      head_dim: C, size of a head.
      query_bias: whether the query projection has a bias; the same for key, value and out.
      key_bias: see `query_bias`.
      value_bias: see `query_bias`.
      out_bias: see `query_bias`.
      qk_norm: whether each query and key head is RMS-normalized before rotation (Qwen3).
      rotary: whether queries and keys are rotated by their positions.
      causal: whether a token sees no later one.
      window: how many tokens, itself among them, a token looks back; None is all. Causal only.
      scale: of the products of queries and keys; None is C^-1/2.
      softcap: bound of the scores, by tanh; None for none (Gemma 2).
    """

    kv_heads: int
    q_per_kv: int
    head_dim: int
    query_bias: bool = False
    key_bias: bool = False
    value_bias: bool = False
    out_bias: bool = False
    qk_norm: bool = False
    rotary: bool = True
    causal: bool = True
    window: int | None = None
    scale: float | None = None
    softcap: float | None = None

    def __post_init__(self):
        for name in ("kv_heads", "q_per_kv", "head_dim"):
            check_size(f"attention {name}", getattr(self, name))
        if self.rotary and self.head_dim % 2:
            raise InputError(f"attention head_dim must be even to rotate, got {self.head_dim}")
        if self.window is not None:
            check_size("attention window", self.window)
            if not self.causal:
                raise InputError("a sliding window needs causal attention")
        for name in ("scale", "softcap"):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise InputError(f"attention {name} must be positive and finite, got {value}")


class Source(NamedTuple):
    """Another sequence to attend to.

    Attributes:
      key: [B, S, D], what keys are projected from.
      value: [B, S, D], what values are projected from; often the same.
    """

    key: jax.Array
    value: jax.Array


class LayerCache(NamedTuple):
    """One layer's key-value cache, and the position to write at.

    Attributes:
      key: [B, S, K, C].
      value: the same.
      start: int32 scalar, the first slot to write; or int32 [B], the slot of each row's one token.
    """

    key: jax.Array
    value: jax.Array
    start: jax.Array


def attention_spec(embed: int, cfg: AttentionConfig, *, gain: float = 1.0) -> dict[str, Any]:
    """Spec of an attention layer for model width `embed`; `gain` scales the out kernel."""
    heads = (cfg.kv_heads, cfg.q_per_kv, cfg.head_dim)
    into = {"inputs": (embed,), "input_axes": ("embed",)}
    one = {"outputs": (cfg.kv_heads, cfg.head_dim), "output_axes": ("kv_heads", "head_dim")}
    spec = {
        "query": linear_spec(**into, outputs=heads, output_axes=HEADS, bias=cfg.query_bias),
        "key": linear_spec(**into, **one, bias=cfg.key_bias),
        "value": linear_spec(**into, **one, bias=cfg.value_bias),
        "out": linear_spec(heads, HEADS, (embed,), ("embed",), bias=cfg.out_bias, gain=gain),
    }
    if cfg.qk_norm:
        spec["query_norm"] = rms_norm_spec(cfg.head_dim, "head_dim")
        spec["key_norm"] = rms_norm_spec(cfg.head_dim, "head_dim")
    return spec


def attention(
    params: dict[str, Any],
    x: jax.Array,
    rotation: tuple[jax.Array, jax.Array] | None,
    mask: jax.Array | Packed | None,
    *,
    cfg: AttentionConfig,
    eps: float,
    source: Source | None = None,
    cache: LayerCache | None = None,
    how: How = HOW,
) -> tuple[jax.Array, LayerCache | None]:
    """Attention of one layer, out projection included.

    Args:
      params: tree of `attention_spec`.
      x: [B, T, D].
      rotation: cosines and sines of the T positions, float32 [B, T, C/2] each; None where
        positions do not rotate.
      mask: bool [B, T, S], S being T, the cache's length or the source's; packed rows, without a
        cache or a source; None is what `cfg` says
        of one document per row, and the whole of a source.
      cfg: what the heads see; sizes are read from the arrays.
      eps: of the per-head norms, where there are any.
      source: another sequence to attend to, whose keys are not rotated; None is `x` itself.
      cache: where to write the T new keys and values, and what to attend over.
      how: its layout, and the implementations of "attention" and "cache_write".

    Returns:
      [B, T, D] in the type of `x`, and the cache with its new rows (None without a cache).
    """
    mixed, cache = mix(
        params, x, rotation, mask, cfg=cfg, eps=eps, source=source, cache=cache, how=how
    )
    return linear(params["out"], mixed, inputs=3), cache


def mix(
    params: dict[str, Any],
    x: jax.Array,
    rotation: tuple[jax.Array, jax.Array] | None,
    mask: jax.Array | Packed | None,
    *,
    cfg: AttentionConfig,
    eps: float,
    source: Source | None = None,
    cache: LayerCache | None = None,
    how: How = HOW,
) -> tuple[jax.Array, LayerCache | None]:
    """The input of `attention`'s out projection: [B, T, K, Q, C]; same arguments."""
    key_input, value_input = (x, x) if source is None else source
    query = linear(params["query"], x)
    key, value = linear(params["key"], key_input), linear(params["value"], value_input)
    if "query_norm" in params:
        query = rms_norm(params["query_norm"], query, eps=eps)
        key = rms_norm(params["key_norm"], key, eps=eps)
    if rotation is not None and cfg.rotary:
        query = rotate(query, *rotation)
        key = rotate(key, *rotation) if source is None else key
    query = constrain(query, ("batch", "length", *HEADS), how.layout)
    if cache is not None:
        cache = append(cache, key, value, impl=how.implementation("cache_write"))
        key, value = cache.key, cache.value
    mixed = attend(
        query,
        key.astype(x.dtype),
        value.astype(x.dtype),
        mask=mask,
        causal=cfg.causal and source is None,
        window=cfg.window,
        scale=cfg.scale,
        softcap=cfg.softcap,
        impl=how.implementation("attention"),
    )
    return mixed, cache


def append(
    cache: LayerCache, key: jax.Array, value: jax.Array, *, impl: str | None = None
) -> LayerCache:
    """Writes T new rows at `cache.start`.

    Only the new rows are written, so a donated cache is updated in place.

    Args:
      cache: the layer's.
      key: [B, T, K, C], cast to the cache's type.
      value: [B, T, K, C].
      impl: of "cache_write", where each row of the batch has its own slot.

    Returns:
      The new cache.

    Raises:
      InputError: a slot for each row, but more than one new token per row.
    """
    if jnp.ndim(cache.start) and key.shape[1] != 1:
        raise InputError(f"a slot for each row takes one new token, got {key.shape[1]}")

    def write(whole, rows):
        if jnp.ndim(cache.start):
            return cache_write(whole, rows[:, 0], cache.start, impl=impl)
        return jax.lax.dynamic_update_slice(whole, rows.astype(whole.dtype), (0, cache.start, 0, 0))

    return cache._replace(key=write(cache.key, key), value=write(cache.value, value))
