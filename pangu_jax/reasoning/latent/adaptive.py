"""Adaptive depth: as `looped`, but each token may skip each layer of the turns after the first.

A router in front of each of these layers decides (`nn.depth`), by the code that sends tokens to
experts. What is aimed at is the share of tokens that run a layer, not which of them do, which the
cross-entropy decides:

    loss = cross-entropy + steer * mean over layers of (share that ran - depth)^2

The share that ran is a count; its gradient is taken to be that of the mean probability.

Source: our reading of the survey's adaptive depth (arXiv 2505.16782), with mixture of depths
(arXiv 2404.02258) and recursions (arXiv 2507.10524) before it.
"""

from collections.abc import Sequence
from functools import lru_cache

import jax
import jax.numpy as jnp

from pangu_jax.losses.language import cross_entropy
from pangu_jax.models import decoder
from pangu_jax.models.thinker import ThinkerConfig, written_out
from pangu_jax.nn.depth import RUN
from pangu_jax.nn.how import HOW, How
from pangu_jax.nn.moe import RouterStats
from pangu_jax.reasoning.latent.config import MethodConfig
from pangu_jax.reasoning.latent.curriculum import no_chain
from pangu_jax.reasoning.latent.method import Method, written
from pangu_jax.train.step import Loss


def model(cfg: decoder.DecoderConfig, own: MethodConfig) -> ThinkerConfig:
    """The decoder in so many turns, of whose layers tokens may skip those after the first."""
    return ThinkerConfig(cfg, turns=own.turns, adaptive=True)


@lru_cache
def depth_loss(
    cfg: ThinkerConfig,
    *,
    start: int,
    thoughts: int,
    feedback: str,
    own: MethodConfig,
    how: How = HOW,
) -> Loss:
    """The loss on batches of `slots.collate`.

    Args:
      cfg: the model.
      start: not read: there are no thoughts.
      thoughts: 0.
      feedback: "".
      own: the share that is aimed at, and its weight.
      how: implementations and type of activations.

    Returns:
      loss(params, None, batch, key) -> (sum in nats, tokens, {"nats", "ran"}); "ran" is the mean
      share, weighed as nats are. Shares are a microbatch's own.
    """
    del start, thoughts, feedback

    def loss(params, frozen, batch, key):
        del frozen, key
        params, plain = written_out(params, cfg)
        places = {name: batch[name] for name in ("positions", "segments")}
        out = decoder.apply(params, batch["tokens"], cfg=plain, how=how, **places)
        nats, weight = cross_entropy(
            out.hidden,
            decoder.head_kernel(params),
            batch["labels"],
            batch["weights"],
            softcap=plain.logit_softcap,
            layout=how.layout,
        )
        ran = shares(out.router)
        apart = jnp.square(ran - own.depth).mean()
        return nats + own.steer * weight * apart, weight, {"nats": nats, "ran": weight * ran.mean()}

    return loss


def shares(router: Sequence[RouterStats | None]) -> jax.Array:
    """The share of tokens that ran each layer that can be skipped, float32 [layers].

    Its gradient is that of the mean probability of running the layer.

    Args:
      router: of `transformer.Output`.
    """
    found = [stats for stats in router if stats is not None]
    ran = jnp.concatenate([x.load[..., 0, RUN] / x.tokens for x in found])
    likely = jnp.concatenate([x.prob_sum[..., 0, RUN] / x.tokens for x in found])
    return jax.lax.stop_gradient(ran - likely) + likely


METHOD = Method(no_chain, written, model=model, loss=depth_loss)
