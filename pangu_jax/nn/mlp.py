"""The gated feed-forward layer."""

import dataclasses
from typing import Any

import jax

from pangu_jax.core.config import check_size
from pangu_jax.nn.linear import linear, linear_spec
from pangu_jax.sharding.layout import Layout, constrain


@dataclasses.dataclass(frozen=True)
class MlpConfig:
    """Hidden width, and which projections have a bias (in: gate and up; out: down)."""

    width: int
    in_bias: bool = False
    out_bias: bool = False

    def __post_init__(self):
        check_size("mlp width", self.width)


def mlp_spec(embed: int, cfg: MlpConfig, *, gain: float = 1.0) -> dict[str, Any]:
    """Spec of a SwiGLU layer on a model width of `embed`; `gain` scales the down projection."""
    into = {"inputs": (embed,), "input_axes": ("embed",)}
    units = {"outputs": (cfg.width,), "output_axes": ("mlp",)}
    return {
        "gate": linear_spec(**into, **units, bias=cfg.in_bias),
        "up": linear_spec(**into, **units, bias=cfg.in_bias),
        "down": linear_spec(
            (cfg.width,), ("mlp",), (embed,), ("embed",), bias=cfg.out_bias, gain=gain
        ),
    }


def mlp(params: dict[str, Any], x: jax.Array, *, layout: Layout | None = None) -> jax.Array:
    """SwiGLU: down(silu(gate(x)) * up(x)).

    Args:
      params: {"gate", "up": kernel [D, F], "down": kernel [F, D]}, biases where present.
      x: [B, T, D].
      layout: how activations are split, or None.

    Returns:
      [B, T, D] in the type of `x`.

    Source: arXiv 2002.05202, equation 6.
    """
    return linear(params["down"], hidden(params, x, layout=layout))


def hidden(params: dict[str, Any], x: jax.Array, *, layout: Layout | None = None) -> jax.Array:
    """What `mlp` gives to its down projection: [B, T, D] to [B, T, F]."""
    gated = jax.nn.silu(linear(params["gate"], x)) * linear(params["up"], x)
    return constrain(gated, ("batch", "length", "mlp"), layout)
