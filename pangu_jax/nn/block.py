"""The transformer layer of all models: an attention half and a feed-forward half.

Each half reads the residual stream and gives the next one; `norm_place` says where its norms are:

    pre        x + branch(norm(x))
    post       norm(x + branch(x))
    sandwich   x + post_norm(branch(norm(x)))

Whoever walks layers (calibration, probes, export) calls the halves, and sees or changes what is
read inside by a tap: a function that is called with the place of the parameters that read an array
("attention_norm", "attention", "attention/out", "attention_post_norm", "mlp_norm", "mlp" or "moe",
"mlp/down", "mlp_post_norm") and the array, and returns the array to continue with.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp

from pangu_jax.core.config import check_choices
from pangu_jax.core.errors import InputError
from pangu_jax.nn import depth
from pangu_jax.nn.attention import AttentionConfig, LayerCache, Source, attention_spec, mix
from pangu_jax.nn.how import HOW, How
from pangu_jax.nn.linear import linear
from pangu_jax.nn.mlp import MlpConfig, hidden, mlp_spec
from pangu_jax.nn.moe import MoEConfig, RouterStats, moe, moe_spec
from pangu_jax.nn.norm import NormKind, norm, norm_spec
from pangu_jax.ops.packed import Packed
from pangu_jax.sharding.layout import constrain

Tap = Callable[[str, jax.Array], jax.Array]


@dataclasses.dataclass(frozen=True)
class LayerConfig:
    """One layer: its attention, and either a dense or a routed feed-forward part.

    Attributes:
      attention: head structure, and what the heads see.
      mlp: the dense feed-forward part, or None.
      moe: the routed feed-forward part, or None.
      norm: the kind of the layer's norms.
      norm_place: before each branch, after its sum, or around the branch.
      dropout: dropout rate of each branch's output.
      skippable: whether a router lets tokens skip the layer; see `nn.depth`.
    """

    attention: AttentionConfig
    mlp: MlpConfig | None = None
    moe: MoEConfig | None = None
    norm: NormKind = "rms"
    norm_place: Literal["pre", "post", "sandwich"] = "pre"
    dropout: float = 0.0
    skippable: bool = False

    def __post_init__(self):
        check_choices(self, "a layer's")
        if (self.mlp is None) == (self.moe is None):
            raise InputError("a layer needs exactly one of mlp and moe")
        if not 0 <= self.dropout < 1:
            raise InputError(f"a layer's dropout must be in [0, 1), got {self.dropout}")
        if self.skippable and self.moe is not None:
            raise InputError("a layer of experts can't be skippable: its router's figures are one")


def block_spec(embed: int, cfg: LayerConfig, *, gain: float = 1.0) -> dict[str, Any]:
    """Spec of one layer; `gain` scales each branch's initial contribution to the residual."""
    spec = {
        "attention_norm": norm_spec(cfg.norm, embed),
        "attention": attention_spec(embed, cfg.attention, gain=gain),
        "mlp_norm": norm_spec(cfg.norm, embed),
    }
    if cfg.mlp is not None:
        spec["mlp"] = mlp_spec(embed, cfg.mlp, gain=gain)
    if cfg.moe is not None:
        spec["moe"] = moe_spec(embed, cfg.moe, gain=gain)
    if cfg.norm_place == "sandwich":
        spec["attention_post_norm"] = norm_spec(cfg.norm, embed)
        spec["mlp_post_norm"] = norm_spec(cfg.norm, embed)
    if cfg.skippable:
        spec["depth"] = depth.depth_spec(embed)
    return spec


def block(
    params: dict[str, Any],
    x: jax.Array,
    rotation: tuple[jax.Array, jax.Array] | None,
    mask: jax.Array | Packed | None,
    valid: jax.Array | None = None,
    *,
    cfg: LayerConfig,
    eps: float,
    cache: LayerCache | None = None,
    key: jax.Array | None = None,
    how: How = HOW,
) -> tuple[jax.Array, LayerCache | None, RouterStats | None]:
    """One self-attention layer.

    Args:
      params: tree of `block_spec`.
      x: [B, T, D], the residual stream.
      rotation: cosines and sines of the positions, float32 [B, T, C/2] each, or None.
      mask: bool [B, T, S], packed rows, or None for what `cfg.attention` says of one
        document per row.
      valid: bool [B, T], false for padding, which router statistics leave out; None for none.
      cfg: the layer's configuration; sizes are read from the arrays.
      eps: of the norms.
      cache: the layer's keys and values, or None.
      key: for dropout; None drops nothing.
      how: layout and implementations.

    Returns:
      [B, T, D], the cache, and the router's statistics, of a skippable layer those of its own
      (None for another dense layer).
    """
    keys = (None, None) if key is None else jax.random.split(key)
    before = x
    x, cache = attention_half(
        params, x, rotation, mask, cfg=cfg, eps=eps, cache=cache, key=keys[0], how=how
    )
    x, router = mlp_half(params, x, valid, cfg=cfg, eps=eps, key=keys[1], how=how)
    if cfg.skippable:
        x, router = depth.skip(params["depth"], before, x, valid)
    return constrain(x, ("batch", "length", "embed"), how.layout), cache, router


def attention_half(
    params: dict[str, Any],
    x: jax.Array,
    rotation: tuple[jax.Array, jax.Array] | None,
    mask: jax.Array | Packed | None,
    *,
    cfg: LayerConfig,
    eps: float,
    source: Source | None = None,
    cache: LayerCache | None = None,
    key: jax.Array | None = None,
    how: How = HOW,
    tap: Tap | None = None,
) -> tuple[jax.Array, LayerCache | None]:
    """The attention branch of a layer, added to its input; same arguments as `block`.

    Args:
      params: has "attention" and its norms.
      x: [B, T, D].
      rotation: as in `block`.
      mask: as in `block`.
      cfg: the layer's configuration.
      eps: of the norms.
      source: another sequence to attend to in place of `x`'s own.
      cache: as in `block`.
      key: for dropout.
      how: layout and implementations.
      tap: see the module.

    Returns:
      [B, T, D], and the cache.
    """
    tap = _untouched if tap is None else tap
    with jax.named_scope("attention"):  # profiles tell the parts of a step by these names
        read = tap("attention", _before(params, "attention", x, cfg, eps, tap))
        mixed, cache = mix(
            params["attention"],
            read,
            rotation,
            mask,
            cfg=cfg.attention,
            eps=eps,
            source=source,
            cache=cache,
            how=how,
        )
        branch = linear(params["attention"]["out"], tap("attention/out", mixed), inputs=3)
        return _added(params, "attention", x, branch, cfg, eps, key, tap), cache


def mlp_half(
    params: dict[str, Any],
    x: jax.Array,
    valid: jax.Array | None = None,
    *,
    cfg: LayerConfig,
    eps: float,
    key: jax.Array | None = None,
    how: How = HOW,
    tap: Tap | None = None,
) -> tuple[jax.Array, RouterStats | None]:
    """The feed-forward branch of a layer, dense or routed, added to its input.

    Args:
      params: has "mlp" or "moe", and the norms.
      x: [B, T, D].
      valid: as in `block`.
      cfg: the layer's configuration.
      eps: of the norms.
      key: for dropout.
      how: layout and implementations.
      tap: see the module.

    Returns:
      [B, T, D], and the router's statistics (None for a dense layer).
    """
    tap, part = _untouched if tap is None else tap, "moe" if cfg.mlp is None else "mlp"
    with jax.named_scope(part):
        read = tap(part, _before(params, "mlp", x, cfg, eps, tap))
        if cfg.mlp is None:
            branch, router = moe(params["moe"], read, valid, cfg=cfg.moe, how=how)
        else:
            units = tap("mlp/down", hidden(params["mlp"], read, cfg=cfg.mlp, how=how))
            branch, router = linear(params["mlp"]["down"], units), None
        return _added(params, "mlp", x, branch, cfg, eps, key, tap), router


def _untouched(_: str, x: jax.Array) -> jax.Array:
    return x


def _before(params, part, x, cfg, eps, tap):
    """The branch's input."""
    if cfg.norm_place == "post":
        return x
    name = f"{part}_norm"
    return norm(params[name], tap(name, x), kind=cfg.norm, eps=eps)


def _added(params, part, x, branch, cfg, eps, key, tap):
    """The branch added to its input, with any norms that follow."""
    if key is not None and cfg.dropout:
        keep = jax.random.bernoulli(key, 1 - cfg.dropout, branch.shape)
        branch = jnp.where(keep, branch / (1 - cfg.dropout), 0).astype(branch.dtype)
    if cfg.norm_place == "sandwich":
        name = f"{part}_post_norm"
        branch = norm(params[name], tap(name, branch), kind=cfg.norm, eps=eps)
    x = x + branch
    if cfg.norm_place == "post":
        name = f"{part}_norm"
        x = norm(params[name], tap(name, x), kind=cfg.norm, eps=eps)
    return x
