"""Latent attention: hidden states attend to a trained dictionary before pooling.

    y = x + out(attention of norm(x) over context_norm(table))
    y + down(gelu(gate(norm(y))) * up(norm(y)))

Keys and values are made by one map, and so are gate and up: as files have them.
Source: arXiv 2405.17428, section 3.1; norms and the gate as in the NV-Embed release.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from pangu_jax.core.config import check_size
from pangu_jax.core.spec import Normal, Spec
from pangu_jax.nn.attention import HEADS, AttentionConfig, Source
from pangu_jax.nn.block import LayerConfig, attention_half, mlp_half
from pangu_jax.nn.how import HOW, How
from pangu_jax.nn.linear import linear_spec
from pangu_jax.nn.mlp import MlpConfig
from pangu_jax.nn.norm import layer_norm, layer_norm_spec

EPS = 1e-5  # of the norms, which the release leaves to torch


@dataclasses.dataclass(frozen=True)
class LatentAttentionConfig:
    """Sizes of a latent attention layer.

    Attributes:
      latents: N, entries of the dictionary.
      heads: H, heads that look things up.
      head_dim: C, size of a head.
      units: F, hidden units of the feed-forward part.
    """

    latents: int
    heads: int
    head_dim: int
    units: int

    def __post_init__(self):
        for name in ("latents", "heads", "head_dim", "units"):
            check_size(f"latent {name}", getattr(self, name))

    @property
    def layer(self) -> LayerConfig:
        """The equivalent cross-attention layer."""
        heads = AttentionConfig(self.heads, 1, self.head_dim, rotary=False, causal=False)
        mlp = MlpConfig(self.units, in_bias=True, out_bias=True, activation="gelu")
        return LayerConfig(heads, mlp=mlp, norm="layer")


def latent_attention_spec(width: int, cfg: LatentAttentionConfig) -> dict[str, Any]:
    """Spec of latent attention for model width D (`width`).

    {"table": [N, D], "context_norm", "attention_norm", "mlp_norm": {"scale": [D], "bias": [D]},
     "attention": {"query": {"kernel": [D, H, 1, C]}, "key_value": {"kernel": [D, 2, H, C]},
                   "out": {"kernel": [H, 1, C, D]}},
     "mlp": {"up_gate": {"kernel": [D, 2, F], "bias": [2, F]},
             "down": {"kernel": [F, D], "bias": [D]}}}
    """
    into, heads = ((width,), ("embed",)), (cfg.heads, 1, cfg.head_dim)
    both = (2, cfg.heads, cfg.head_dim)
    units = ((2, cfg.units), (None, "mlp"))
    return {
        "table": Spec((cfg.latents, width), (None, "embed"), Normal(1.0)),
        **{f"{name}_norm": layer_norm_spec(width) for name in ("context", "attention", "mlp")},
        "attention": {
            "query": linear_spec(*into, heads, HEADS),
            "key_value": linear_spec(*into, both, (None, "kv_heads", "head_dim")),
            "out": linear_spec(heads, HEADS, *into),
        },
        "mlp": {
            "up_gate": linear_spec(*into, *units, bias=True),
            "down": linear_spec((cfg.units,), ("mlp",), *into, bias=True),
        },
    }


def latent_attention(
    params: dict[str, Any], x: jax.Array, *, cfg: LatentAttentionConfig, how: How = HOW
) -> jax.Array:
    """Cross-attention from each token of `x` to the trained dictionary.

    Args:
      params: tree of `latent_attention_spec`.
      x: [B, T, D], hidden states.
      cfg: the sizes.
      how: layout, and the implementation of "attention".

    Returns:
      [B, T, D] in the type of `x`.
    """
    table = layer_norm(params["context_norm"], params["table"].astype(x.dtype), eps=EPS)
    table = jnp.broadcast_to(table, (x.shape[0], *table.shape))
    key, value = _halves(params["attention"]["key_value"])
    up, gate = _halves(params["mlp"]["up_gate"])
    layer = {
        **params,
        "attention": {**params["attention"], "key": key, "value": value},
        "mlp": {"up": up, "gate": gate, "down": params["mlp"]["down"]},
    }
    source, kind = Source(table, table), cfg.layer
    x, _ = attention_half(layer, x, None, None, cfg=kind, eps=EPS, source=source, how=how)
    return mlp_half(layer, x, cfg=kind, eps=EPS, how=how)[0]


def _halves(params: dict[str, jax.Array]) -> tuple[dict[str, jax.Array], dict[str, jax.Array]]:
    """Splits one map into two: kernel [D, 2, ...], bias [2, ...]."""
    axes = {"kernel": 1, "bias": 0}

    def half(number: int) -> dict[str, jax.Array]:
        return {name: jnp.take(x, number, axis=axes[name]) for name, x in params.items()}

    return half(0), half(1)
