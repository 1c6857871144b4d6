"""Sampling from logits: greedy, temperature, top-k, top-p; each row with its own settings."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from pangu_jax.decode.sampling_config import SamplingConfig


@struct.dataclass
class Sampling:
    """One `SamplingConfig` per row, as arrays: new settings need no recompilation.

    Attributes:
      temperature: float32 [B].
      top_k: int32 [B].
      top_p: float32 [B].
    """

    temperature: Any
    top_k: Any
    top_p: Any


@struct.dataclass
class Draw:
    """One token per row.

    Attributes:
      ids: int32 [B].
      log_probs: float32 [B], under the softmax of the scores themselves.
      sampled_log_probs: float32 [B], under the distribution that was drawn from; 0 for greedy.
    """

    ids: Any
    log_probs: Any
    sampled_log_probs: Any


def rows_of(configs: Sequence[SamplingConfig]) -> Sampling:
    """The settings of B rows as arrays."""
    most, real = np.iinfo(np.int32).max, np.finfo(np.float32)
    tiny = float(real.tiny)  # what is above 0 stays so in float32
    heats = [c.temperature and min(max(c.temperature, tiny), float(real.max)) for c in configs]
    return Sampling(
        np.array(heats, np.float32),
        np.array([min(c.top_k, most) for c in configs], np.int32),
        np.array([max(c.top_p, tiny) for c in configs], np.float32),
    )


def adjusted_logits(logits: jax.Array, cfg: SamplingConfig | Sampling) -> jax.Array:
    """Scores whose softmax is the distribution that `sample` draws from.

    Temperature comes first, then top-k, then top-p on what top-k left. Equal scores: the lower
    token id goes first. Unless temperature is 0, the best score of a row becomes 0. What a row gets
    does not depend on the settings of the others.

    Args:
      logits: [B, V].
      cfg: how to draw, one for all rows or one per row.

    Returns:
      float32 [B, V]; tokens that cannot be drawn are -inf. With temperature 0 all but the best.
    """
    cfg = _rows(cfg, logits)
    logits = logits.astype(jnp.float32)
    greedy = cfg.temperature == 0
    cuts = ((cfg.top_k > 0) | (cfg.top_p < 1)) & ~greedy
    # The best at 0, so that a small temperature overflows to -inf and nothing becomes a NaN.
    heat = jnp.where(greedy, 1.0, jnp.maximum(cfg.temperature, 1e-30))[:, None]
    hot = (logits - logits.max(-1, keepdims=True)) / heat
    # Sorting takes longer than everything else, so it is done only if a row asks for a cut.
    hot = jax.lax.cond(cuts.any(), _cut, lambda hot, _: hot, hot, cfg)
    best = jnp.arange(logits.shape[-1]) == jnp.argmax(logits, -1, keepdims=True)
    return jnp.where(greedy[:, None], jnp.where(best, logits, -jnp.inf), hot)


def _cut(logits: jax.Array, cfg: Sampling) -> jax.Array:
    """-inf for what top-k and top-p leave out."""
    vocab = logits.shape[-1]
    order = jnp.argsort(-logits, axis=-1, stable=True)
    ranked = jnp.take_along_axis(logits, order, axis=-1)
    rank, k, p = jnp.arange(vocab), cfg.top_k[:, None], cfg.top_p[:, None]
    keep = (k == 0) | (rank < k)
    probs = jax.nn.softmax(jnp.where(keep, ranked, -jnp.inf), axis=-1)
    # A token is kept if those before it have not reached top_p; the best one always is.
    keep = keep & ((p >= 1) | (jnp.cumsum(probs, axis=-1) - probs < p))
    # Score and rank of the last one that is kept decide for every token whether it is.
    last = jnp.where(keep, rank, 0).max(-1, keepdims=True)
    score, token = (jnp.take_along_axis(x, last, axis=-1) for x in (ranked, order))
    stays = (logits > score) | ((logits == score) & (rank <= token))
    return jnp.where(stays, logits, -jnp.inf)


def draw(logits: jax.Array, cfg: SamplingConfig | Sampling, *, key: jax.Array) -> Draw:
    """Samples one token per row, with its log-probability.

    Args:
      logits: [B, V].
      cfg: how to draw, one for all rows or one per row.
      key: one PRNG key per row, [B]; a row's token does not depend on the other rows.
    """
    cfg = _rows(cfg, logits)
    logits = logits.astype(jnp.float32)
    ids, sampled = jax.lax.cond((cfg.temperature > 0).any(), _draw, _best, logits, cfg, key)
    return Draw(ids, _log_prob(logits, ids), sampled)


def sample(logits: jax.Array, cfg: SamplingConfig | Sampling, *, key: jax.Array) -> jax.Array:
    """The ids of `draw`: int32 [B]."""
    return draw(logits, cfg, key=key).ids


def _draw(logits, cfg, key):
    adjusted = adjusted_logits(logits, cfg)
    drawn = jax.vmap(jax.random.categorical)(key, adjusted)
    # The best token itself: if scores are NaN there is nothing to draw from.
    ids = jnp.where(cfg.temperature == 0, jnp.argmax(logits, -1), drawn).astype(jnp.int32)
    return ids, _log_prob(adjusted, ids)


def _best(logits, cfg, key):
    return jnp.argmax(logits, -1).astype(jnp.int32), jnp.zeros(logits.shape[0], jnp.float32)


def _log_prob(logits, ids):
    score = jnp.take_along_axis(logits, ids[:, None], axis=-1)[:, 0]
    return score - jax.nn.logsumexp(logits, axis=-1)


def _rows(cfg: SamplingConfig | Sampling, logits: jax.Array) -> Sampling:
    if isinstance(cfg, SamplingConfig):
        cfg = jax.tree.map(jnp.asarray, rows_of([cfg] * logits.shape[0]))
    return cfg
