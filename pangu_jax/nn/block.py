"""One decoder layer: attention and a feed-forward part, each in a residual branch."""

import dataclasses
from typing import Any

import jax

from pangu_jax.core.errors import InputError
from pangu_jax.nn.attention import AttentionConfig, LayerCache, attention, attention_spec
from pangu_jax.nn.mlp import MlpConfig, mlp, mlp_spec
from pangu_jax.nn.moe import MoEConfig, RouterStats, moe, moe_spec
from pangu_jax.nn.norm import rms_norm, rms_norm_spec
from pangu_jax.sharding.layout import Layout, constrain


@dataclasses.dataclass(frozen=True)
class LayerConfig:
    """One layer: its attention, and exactly one of a dense or a routed feed-forward part.

    Attributes:
      attention: head structure.
      mlp: the dense feed-forward part, or None.
      moe: the routed feed-forward part, or None.
      sandwich_norm: whether each branch's output is normalised again before it is added.
    """

    attention: AttentionConfig
    mlp: MlpConfig | None = None
    moe: MoEConfig | None = None
    sandwich_norm: bool = False

    def __post_init__(self):
        if (self.mlp is None) == (self.moe is None):
            raise InputError("a layer needs exactly one of mlp and moe")


def block_spec(embed: int, cfg: LayerConfig, *, gain: float = 1.0) -> dict[str, Any]:
    """Spec of one layer; `gain` scales what each branch adds to the residual at the start."""
    spec = {
        "attention_norm": rms_norm_spec(embed),
        "attention": attention_spec(embed, cfg.attention, gain=gain),
        "mlp_norm": rms_norm_spec(embed),
    }
    if cfg.mlp is not None:
        spec["mlp"] = mlp_spec(embed, cfg.mlp, gain=gain)
    if cfg.moe is not None:
        spec["moe"] = moe_spec(embed, cfg.moe, gain=gain)
    if cfg.sandwich_norm:
        spec["attention_post_norm"] = rms_norm_spec(embed)
        spec["mlp_post_norm"] = rms_norm_spec(embed)
    return spec


def block(
    params: dict[str, Any],
    x: jax.Array,
    rotation: tuple[jax.Array, jax.Array],
    mask: jax.Array | None,
    valid: jax.Array | None = None,
    *,
    cfg: LayerConfig,
    eps: float,
    cache: LayerCache | None = None,
    layout: Layout | None = None,
    impl: dict[str, str] | None = None,
) -> tuple[jax.Array, LayerCache | None, RouterStats | None]:
    """One layer.

    Args:
      params: tree of `block_spec`.
      x: [B, T, D], the residual stream.
      rotation: cosines and sines of the positions, float32 [B, T, C/2] each.
      mask: bool [B, T, S], or None for plain causal attention.
      valid: bool [B, T], false for padding, which router statistics leave out; None for none.
      cfg: the layer's configuration; sizes are read from the arrays.
      eps: of the norms.
      cache: the layer's place in the key-value cache, or None.
      layout: how activations are split, or None.
      impl: {operator: implementation} for "attention" and "expert_mlp".

    Returns:
      [B, T, D], the cache, and the router's statistics (None for a dense layer).
    """
    impl = impl or {}
    with jax.named_scope("attention"):  # profiles tell the parts of a step by these names
        branch, cache = attention(
            params["attention"],
            rms_norm(params["attention_norm"], x, eps=eps),
            rotation,
            mask,
            eps=eps,
            cache=cache,
            layout=layout,
            impl=impl.get("attention"),
        )
        x = x + _post(params, "attention_post_norm", branch, eps)
    with jax.named_scope("moe" if "moe" in params else "mlp"):
        normed = rms_norm(params["mlp_norm"], x, eps=eps)
        if "moe" in params:
            kind = impl.get("expert_mlp")
            branch, router = moe(
                params["moe"], normed, valid, cfg=cfg.moe, layout=layout, impl=kind
            )
        else:
            branch, router = mlp(params["mlp"], normed, layout=layout), None
        x = x + _post(params, "mlp_post_norm", branch, eps)
    return constrain(x, ("batch", "length", "embed"), layout), cache, router


def _post(params: dict[str, Any], name: str, branch: jax.Array, eps: float) -> jax.Array:
    return rms_norm(params[name], branch, eps=eps) if name in params else branch
