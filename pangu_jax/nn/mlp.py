"""The feed-forward layer, gated or plain."""

import dataclasses
from functools import partial
from typing import Any, Literal

import jax

from pangu_jax.core.config import check_choices, check_size
from pangu_jax.nn.how import HOW, How
from pangu_jax.nn.linear import linear, linear_spec
from pangu_jax.sharding.layout import constrain

Activation = Literal["silu", "gelu", "gelu_tanh", "relu"]
ACTIVATIONS = {
    "silu": jax.nn.silu,
    "gelu": partial(jax.nn.gelu, approximate=False),
    "gelu_tanh": partial(jax.nn.gelu, approximate=True),
    "relu": jax.nn.relu,
}


@dataclasses.dataclass(frozen=True)
class MlpConfig:
    """The feed-forward part of one layer.

    Attributes:
      width: F, hidden width.
      in_bias: whether the projections into it (gate and up) have a bias.
      out_bias: whether the projection out of it (down) has one.
      activation: of the gate, or of the hidden units where there is no gate.
      gated: whether there is a gate.
    """

    width: int
    in_bias: bool = False
    out_bias: bool = False
    activation: Activation = "silu"
    gated: bool = True

    def __post_init__(self):
        check_choices(self, "mlp")
        check_size("mlp width", self.width)


def mlp_spec(embed: int, cfg: MlpConfig, *, gain: float = 1.0) -> dict[str, Any]:
    """Spec of a feed-forward layer for model width `embed`; `gain` scales the down kernel."""
    into = {"inputs": (embed,), "input_axes": ("embed",)}
    units = {"outputs": (cfg.width,), "output_axes": ("mlp",)}
    return {
        name: linear_spec(**into, **units, bias=cfg.in_bias)
        for name in (("gate", "up") if cfg.gated else ("up",))
    } | {
        "down": linear_spec(
            (cfg.width,), ("mlp",), (embed,), ("embed",), bias=cfg.out_bias, gain=gain
        )
    }


def mlp(params: dict[str, Any], x: jax.Array, *, cfg: MlpConfig, how: How = HOW) -> jax.Array:
    """Gated, down(act(gate(x)) * up(x)), or plain, down(act(up(x))).

    Args:
      params: {"gate", "up": kernel [D, F], "down": kernel [F, D]}, biases where present; no "gate"
        where the layer is plain.
      x: [B, T, D].
      cfg: the activation; sizes are read from the arrays.
      how: its layout is used.

    Returns:
      [B, T, D] in the type of `x`.

    Source: arXiv 2002.05202, equation 6; plain arXiv 1706.03762, section 3.3.
    """
    return linear(params["down"], hidden(params, x, cfg=cfg, how=how))


def hidden(params: dict[str, Any], x: jax.Array, *, cfg: MlpConfig, how: How = HOW) -> jax.Array:
    """The input of `mlp`'s down projection: [B, T, D] to [B, T, F]."""
    act = ACTIVATIONS[cfg.activation]
    up = linear(params["up"], x)
    units = act(linear(params["gate"], x)) * up if "gate" in params else act(up)
    return constrain(units, ("batch", "length", "mlp"), how.layout)
