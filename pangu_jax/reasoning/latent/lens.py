"""Every layer's states at the places that thoughts come from, and what the head reads in them.

The logit lens applies the final norm and the head to a layer's states, as if it were the last one.
A thought spreads its probability over ids: superposition here means how much of it is on the ids of
a set, and over how many of them it is spread.
"""

import dataclasses
from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from pangu_jax.core.errors import InputError
from pangu_jax.decode.engine import round_up
from pangu_jax.models import decoder, transformer
from pangu_jax.nn.how import HOW, How
from pangu_jax.ops.attention import visible
from pangu_jax.reasoning.latent.curriculum import Phase
from pangu_jax.reasoning.latent.method import Method
from pangu_jax.reasoning.latent.slots import Encoded, Markers, Slots, collate


@dataclasses.dataclass(frozen=True)
class Spread:
    """Probability that each thought puts on sets of ids, one set per problem.

    Attributes:
      problems: number of problems with a set.
      size: mean number of ids in a set.
      mass: for each thought, the mean probability of the set.
      effective: for each thought, the mean of exp(entropy in nats) of the probabilities on the
        set, normalized to sum to 1: the number of ids, if all were equally likely.
    """

    problems: int
    size: float
    mass: tuple[float, ...]
    effective: tuple[float, ...]


def states_by_layer(
    params: dict[str, Any],
    problems: Sequence[Encoded],
    thoughts: np.ndarray,
    method: Method,
    phase: Phase,
    markers: Markers,
    *,
    cfg: decoder.DecoderConfig,
    batch: int = 32,
    how: How = HOW,
) -> np.ndarray:
    """The state from which each thought is made, after every layer, before the final norm.

    Args:
      params: tree of `decoder.spec(cfg)`.
      problems: only their questions are read.
      thoughts: float [problems, n, D], of `answer.think`.
      method: turns a question into a row.
      phase: the one that the model was trained in last.
      markers: of the tokenizer.
      cfg: the model.
      batch: problems at once.
      how: implementations, and type of the activations.

    Returns:
      float32 [problems, L, n, D]; if thoughts are fed-back states, the last layer's are the
      thoughts once they are `normed`.
    """
    rows = [method.slots(Encoded(x.question, (), ()), phase, markers, 0) for x in problems]
    start, params = round_up(max(len(row.prefix) for row in rows)), transformer.by_layer(params)
    given, found = thoughts[:, :-1], []
    for first in range(0, len(rows), batch):
        chosen = [min(first + i, len(rows) - 1) for i in range(batch)]  # one program serves all
        bare = [Slots(rows[i].prefix, (), 0) for i in chosen]
        inputs = collate(bare, start=start, thoughts=given.shape[1], tail=0)
        states = _states(params, inputs, given[chosen], start=start, cfg=cfg, how=how)
        found.append(np.asarray(states, np.float32)[: len(rows) - first])
    return np.concatenate(found)


def normed(params: dict[str, Any], states: np.ndarray, *, cfg: decoder.DecoderConfig) -> np.ndarray:
    """Applies the final norm, as for the head: [..., D] to float32 [..., D].

    Args:
      params: tree of `decoder.spec(cfg)`.
      states: float [..., D], of any layer.
      cfg: the model.
    """
    return np.asarray(transformer.final_norm(params, jnp.asarray(states), cfg=cfg), np.float32)


def spread(
    params: dict[str, Any],
    states: np.ndarray,
    sets: Sequence[Sequence[int]],
    *,
    cfg: decoder.DecoderConfig,
) -> Spread:
    """Measures how the head spreads probability over sets of ids.

    Args:
      params: tree of `decoder.spec(cfg)`.
      states: float [problems, n, D], n thoughts each, after the final norm.
      sets: for each problem, ids without repetition; a problem whose set is empty is left out.
      cfg: the model.

    Raises:
      InputError: all sets are empty.
    """
    kept = [i for i, ids in enumerate(sets) if ids]
    if not kept:
        raise InputError("there is no set of ids to look for in thoughts")
    mass, effective = np.zeros((2, len(kept), states.shape[1]))
    for row, i in enumerate(kept):
        chances = np.asarray(_chances(params, jnp.asarray(states[i]), cfg=cfg), np.float64)
        on = chances[:, list(sets[i])]  # [n, ids]
        mass[row] = on.sum(-1)
        share = on / np.maximum(mass[row][:, None], 1e-300)
        effective[row] = np.exp(-(share * np.log(np.maximum(share, 1e-300))).sum(-1))
    size = float(np.mean([len(sets[i]) for i in kept]))
    return Spread(len(kept), size, tuple(mass.mean(0)), tuple(effective.mean(0)))


@partial(jax.jit, static_argnames=("start", "cfg", "how"))
def _states(params, batch, thoughts, *, start, cfg, how):
    x = decoder.embed(params, batch["tokens"][:, :start], cfg=cfg, how=how)
    x = jnp.concatenate([x, thoughts.astype(x.dtype)], axis=1)
    own, at, found = batch["segments"], batch["positions"], []
    for number in range(len(cfg.layers)):
        one = dataclasses.replace(cfg, layers=cfg.layers[number : number + 1])

        def sees(heads):
            return visible(own, at, own, at, causal=True, window=heads.window)

        layers = params["layers"][number : number + 1]
        x, _ = transformer.unrolled(layers, x, at, sees, [None], cfg=one, how=how)
        found.append(x[:, start - 1 :])
    return jnp.stack(found, axis=1)


@partial(jax.jit, static_argnames="cfg")
def _chances(params, states, *, cfg):
    return jax.nn.softmax(decoder.logits(params, states[None], cfg=cfg)[0], -1)
