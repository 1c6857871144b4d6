"""A decoder with what methods of latent reasoning add to it.

Parameters: the decoder's, and with a projection

    {"thought": {"up": {"kernel": [D, P], "bias": [P]}, "down": {"kernel": [P, D], "bias": [D]},
                 "norm": {"scale": [D], "bias": [D]}}}

It is a kind of its own, so that nothing takes it for a decoder and leaves its turns out.
`written_out` makes of it the decoder that computes the same, for all that reads and decodes.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from pangu_jax.core.config import check_size
from pangu_jax.core.errors import InputError
from pangu_jax.models import decoder, transformer
from pangu_jax.models.decoder import DecoderConfig
from pangu_jax.nn.linear import linear, uniform_linear_spec
from pangu_jax.nn.norm import norm, norm_spec
from pangu_jax.sharding.layout import init

NORM_EPS = 1e-5  # of the projection's norm, as torch has it
MOST_TURNS = 1000


@dataclasses.dataclass(frozen=True)
class ThinkerConfig:
    """The complete description of a thinker.

    Attributes:
      decoder: the decoder.
      turns: how often its layers run, one turn after another, each with a cache of its own.
      projection: P, hidden width of what makes thoughts of states; 0 where they are not changed.
    """

    decoder: DecoderConfig
    turns: int = 1
    projection: int = 0

    def __post_init__(self):
        check_size("a thinker's turns", self.turns, most=MOST_TURNS)
        check_size("a thinker's projection", self.projection, least=0)
        if self.decoder.layers[-1].norm_place == "post" and self.turns > 1:
            raise InputError("layers that run in turns must have their norms before the branches")


def spec(cfg: ThinkerConfig) -> dict[str, Any]:
    """The spec tree of a thinker."""
    tree, width = decoder.spec(cfg.decoder), cfg.decoder.width
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
    found = dataclasses.replace(plain, layers=plain.layers * cfg.turns)
    layers = transformer.by_layer(params)["layers"] * cfg.turns
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
