"""Looped depth: the same layers run several times, and the answer is given without a chain.

So a model computes longer before it answers, with the parameters of one turn. Each turn has keys
and values of its own, as the layers of a model that is as many times deeper would.

Source: arXiv 2502.17416 (a stack of k layers, looped L times). The input is not put in again at
every turn, and the number of turns is the same in training and in use, as there; arXiv 2502.05171
does otherwise.
"""

from pangu_jax.models.decoder import DecoderConfig
from pangu_jax.models.thinker import ThinkerConfig
from pangu_jax.reasoning.latent.config import MethodConfig
from pangu_jax.reasoning.latent.curriculum import no_chain
from pangu_jax.reasoning.latent.method import Method, written


def model(cfg: DecoderConfig, own: MethodConfig) -> ThinkerConfig:
    """The decoder in so many turns."""
    return ThinkerConfig(cfg, turns=own.turns)


METHOD = Method(no_chain, written, model=model)
