"""A decoder with what methods of latent reasoning add to it.

Parameters: the decoder's, and with a projection

    {"thought": {"up": {"kernel": [D, P], "bias": [P]}, "down": {"kernel": [P, D], "bias": [D]},
                 "norm": {"scale": [D], "bias": [D]}}}

and with layers that tokens may skip, for each layer of each turn after the first,

    {"depth": {"kernel": [(R - 1) L, D, 1, 2]}}

It is a kind of its own, so that nothing takes it for a decoder and leaves its turns out.
`written_out` makes of it the decoder that computes the same, for all that reads and decodes.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from pangu_jax.core.config import check_size
from pangu_jax.core.errors import InputError
from pangu_jax.core.spec import stack
from pangu_jax.models import decoder, transformer
from pangu_jax.models.decoder import DecoderConfig
from pangu_jax.models.turns import MOST_TURNS
from pangu_jax.nn.depth import depth_spec
from pangu_jax.nn.linear import linear, uniform_linear_spec
from pangu_jax.nn.norm import norm, norm_spec
from pangu_jax.nn.stack import split
from pangu_jax.sharding.layout import init

NORM_EPS = 1e-5  # of the projection's norm, as torch has it


@dataclasses.dataclass(frozen=True)
class ThinkerConfig:
    """The complete description of a thinker.

    Attributes:
      decoder: the decoder.
      turns: how often its layers run, one turn after another, each with a cache of its own.
      projection: P, hidden width of what makes thoughts of states; 0 where they are not changed.
      adaptive: whether a token may skip each layer of the turns after the first (`nn.depth`).
    """

    decoder: DecoderConfig
    turns: int = 1
    projection: int = 0
    adaptive: bool = False

    def __post_init__(self):
        check_size("a thinker's turns", self.turns, most=MOST_TURNS)
        check_size("a thinker's projection", self.projection, least=0)
        if self.decoder.layers[-1].norm_place == "post" and self.turns > 1:
            raise InputError("layers that run in turns must have their norms before the branches")
        if self.adaptive and self.turns == 1:
            raise InputError("with turns of 1 there is no layer that a token may skip: give 2")


def spec(cfg: ThinkerConfig) -> dict[str, Any]:
    """The spec tree of a thinker."""
    tree, width = decoder.spec(cfg.decoder), cfg.decoder.width
    if cfg.adaptive:
        tree["depth"] = stack(depth_spec(width), (cfg.turns - 1) * len(cfg.decoder.layers))
    if not cfg.projection:
        return tree
    thought = {
        "up": uniform_linear_spec(width, cfg.projection, ("embed", "mlp")),
        "down": uniform_linear_spec(cfg.projection, width, ("mlp", "embed")),
        "norm": norm_spec("layer", width),
    }
    return {**tree, "thought": thought}


def from_decoder(params: dict[str, Any], cfg: ThinkerConfig, *, key: jax.Array) -> dict[str, Any]:
    """A decoder's parameters with drawn ones for what it lacks.

    Args:
      params: tree of `decoder.spec(cfg.decoder)`, or of `spec(cfg)`, which is given back.
      cfg: the thinker.
      key: of the draws.
    """
    missing = {name: tree for name, tree in spec(cfg).items() if name not in params}
    return {**params, **init(missing, key=key)} if missing else params


def written_out(
    params: dict[str, Any], cfg: DecoderConfig | ThinkerConfig
) -> tuple[dict[str, Any], DecoderConfig]:
    """The decoder that computes the same: its layers, copied turn by turn, share their weights.

    Gradients come back to the thinker's parameters, summed over the turns.

    Args:
      params: tree of `spec(cfg)`; a decoder's is given back as it is.
      cfg: a thinker, or a decoder.

    Returns:
      A decoder's parameters, with "thought" beside them, and its configuration.
    """
    if isinstance(cfg, DecoderConfig):
        return params, cfg
    plain = cfg.decoder
    if cfg.turns == 1:
        return params, plain
    later = [dataclasses.replace(x, skippable=cfg.adaptive) for x in plain.layers]
    later *= cfg.turns - 1
    found = dataclasses.replace(plain, layers=(*plain.layers, *later))
    layers = transformer.by_layer(params)["layers"] * cfg.turns
    if cfg.adaptive:
        first, routers = len(plain.layers), split([params["depth"]])
        for own, router in enumerate(routers, first):
            layers[own] = {**layers[own], "depth": router}
    runs, first = [], 0
    for _, number in transformer.run_lengths(found):
        runs.append(jax.tree.map(lambda *x: jnp.stack(x), *layers[first : first + number]))
        first += number
    return {**params, "runs": runs}, found


def project(params: dict[str, Any], state: jax.Array) -> jax.Array:
    """A state made into a thought: norm(down(gelu(up(state)))), [..., D] to [..., D].

    Args:
      params: tree of `spec`, with a projection.
      state: [..., D], after the final norm.

    Source: arXiv 2502.21074 (CODI), section 3, and its released code.
    """
    own = params["thought"]
    units = jax.nn.gelu(linear(own["up"], state), approximate=False)
    return norm(own["norm"], linear(own["down"], units), kind="layer", eps=NORM_EPS)
