"""Soft thinking: a model reads mixtures of tokens while it thinks, then writes; no training.

At each step of thinking the next input is the mean of the likeliest tokens' embeddings, weighed by
their probabilities, in place of one token's. Thinking ends when the likeliest token is one that
ends it, when the distribution has been nearly certain for a while (cold stop), or when room ends.
What was thought is then a prompt of embeddings, which `decode.engine` continues as any other.

Source: arXiv 2505.15778, section 3, and its released code, whose order is kept: temperature, then
the cuts top-k, top-p and min-p; the entropy is that before the cuts.
"""

import dataclasses
from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from pangu_jax.decode.engine import check_prompt, round_up
from pangu_jax.decode.soft_thinking_config import SoftThinkingConfig
from pangu_jax.models import decoder
from pangu_jax.models.decoder import DecoderConfig
from pangu_jax.models.transformer import by_layer
from pangu_jax.nn.how import HOW, How

OF_THOUGHTS = 2**32 - 1  # folded into a request's key, whose tokens take 0, 1, ... of it


@dataclasses.dataclass(frozen=True)
class SoftThought:
    """What a model thought.

    Attributes:
      inputs: float [n, D], the mixtures.
      ids: int32 [n], the likeliest token of each, to be shown as text.
      entropies: float32 [n], nats, of the distributions.
      end: why it ended: "token", "cold" for the cold stop, or "length".
    """

    inputs: np.ndarray
    ids: np.ndarray
    entropies: np.ndarray
    end: str


def think(
    params: Any,
    prompt: Sequence[int],
    *,
    cfg: DecoderConfig,
    soft: SoftThinkingConfig = SoftThinkingConfig(),
    stop_ids: Sequence[int] = (),
    key: jax.Array | None = None,
    how: How = HOW,
) -> SoftThought:
    """Reads a prompt, and thinks.

    Args:
      params: tree of `decoder.spec(cfg)`, or of `transformer.by_layer`, which saves a copy.
      prompt: ids, at least one.
      cfg: the model.
      soft: how it thinks.
      stop_ids: tokens that end thinking where they are the likeliest; they are not read.
      key: of the noise; None is `jax.random.key(0)`.
      how: implementations, and the type of activations and cache.

    Raises:
      InputError: an empty prompt, or an id outside the vocabulary.
    """
    check_prompt("the prompt", prompt, cfg)
    ids = np.zeros((1, round_up(len(prompt))), np.int32)
    ids[0, : len(prompt)] = prompt
    stops = np.array(sorted({-1, *map(int, stop_ids)}), np.int32)
    key = jax.random.fold_in(jax.random.key(0) if key is None else key, OF_THOUGHTS)
    made = _think(
        by_layer(params), ids, np.array([len(prompt)], np.int32), stops, key, cfg, soft, how
    )
    count, inputs, found, entropies, stopped, cold = jax.device_get(made)
    end = "token" if stopped else "cold" if cold else "length"
    return SoftThought(inputs[:count], found[:count], entropies[:count], end)


def thought_prompt(
    params: Any,
    prompt: Sequence[int],
    thought: SoftThought,
    after: Sequence[int] = (),
    *,
    cfg: DecoderConfig,
    how: How = HOW,
) -> np.ndarray:
    """Prompt, thought, and what is written behind it, as embeddings [T, D] for an engine.

    Args:
      params: as in `think`.
      prompt: ids.
      thought: what was thought about it.
      after: ids that end the thought, such as those of "</think>".
      cfg: the model.
      how: the type of the activations.
    """
    ids = np.array([[*prompt, *after]], np.int32)
    rows = np.asarray(decoder.embed(params, jnp.asarray(ids), cfg=cfg, how=how))[0]
    return np.concatenate([rows[: len(prompt)], thought.inputs, rows[len(prompt) :]])


def mixture(
    logits: jax.Array, soft: SoftThinkingConfig, key: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The tokens that are mixed.

    Args:
      logits: float32 [V].
      soft: temperature, cuts and noise.
      key: of the noise.

    Returns:
      Ids int32 [k], the likeliest first; their weights float32 [k], whose sum is 1; and the
      entropy in nats of the distribution before the cuts.
    """
    log_probs = jax.nn.log_softmax(logits / soft.think_temperature)
    entropy = -(jnp.exp(log_probs) * jnp.maximum(log_probs, jnp.log(1e-12))).sum()
    best, ids = jax.lax.top_k(log_probs, min(soft.think_top_k, logits.shape[-1]))
    probs = jax.nn.softmax(best)
    # A token is kept if those before it have not reached top_p; the best one always is.
    probs = jnp.where(jnp.cumsum(probs) - probs < soft.think_top_p, probs, 0)
    probs = jnp.where(probs < soft.think_min_p * probs[0], 0, probs)
    if soft.think_noise:
        drawn = jnp.log(probs) + jax.random.gumbel(key, probs.shape)
        probs = jax.nn.softmax(drawn / soft.think_noise)
    return ids, probs / probs.sum(), entropy


@partial(jax.jit, static_argnames=("cfg", "soft", "how"))
def _think(params, ids, length, stops, key, cfg, soft, how):
    most, kind = soft.think_tokens, how.dtype or params["embed"]["table"].dtype
    logits, caches = decoder.prefill(params, ids, length, cfg=cfg, how=how)
    room = ((0, 0), (0, most), (0, 0), (0, 0))
    caches = jax.tree.map(lambda rows: jnp.pad(rows, room), caches)

    def judged(logits, number, cold):
        """What is mixed, and whether it ends the thought, by a token or by certainty."""
        mixed = mixture(logits[0], soft, jax.random.fold_in(key, number))
        cold = jnp.where(mixed[2] < soft.cold_entropy, cold + 1, 0)
        return mixed, (logits[0].argmax() == stops).any(), cold

    def go_on(carry):
        number, (_, stopped, cold), *_ = carry
        return (number < most) & ~stopped & (cold < soft.cold_steps)

    def body(carry):
        number, ((tokens, weights, entropy), _, cold), made, caches = carry
        rows = decoder.embed(params, tokens, cfg=cfg, how=how)
        x = (weights[:, None] * rows.astype(jnp.float32)).sum(0).astype(kind)
        put = lambda whole, row: whole.at[number].set(row)  # noqa: E731
        made = tuple(map(put, made, (x, tokens[0], entropy)))
        logits, caches = decoder.step(params, x[None], length + number, caches, cfg=cfg, how=how)
        return number + 1, judged(logits, number + 1, cold), made, caches

    made = (
        jnp.zeros((most, cfg.width), kind),
        jnp.zeros(most, jnp.int32),
        jnp.zeros(most, jnp.float32),
    )
    carry = (jnp.int32(0), judged(logits, 0, jnp.int32(0)), made, caches)
    number, (_, stopped, cold), made, _ = jax.lax.while_loop(go_on, body, carry)
    return number, *made, stopped, cold >= soft.cold_steps
