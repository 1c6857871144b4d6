"""From scores to a token: greedy, temperature, top-k, top-p."""

import dataclasses
import math

import jax
import jax.numpy as jnp

from pangu_jax.core.errors import InputError


@dataclasses.dataclass(frozen=True)
class SamplingConfig:
    """How the next token is drawn.

    Attributes:
      temperature: scores are divided by it; 0 takes the best token.
      top_k: only so many best tokens; 0 for all.
      top_p: only the smallest set of best tokens whose probability reaches it; 1 for all.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0

    def __post_init__(self):
        if not 0 <= self.temperature < math.inf:
            raise InputError(f"temperature must be 0 or more, got {self.temperature}")
        if self.top_k < 0:
            raise InputError(f"top_k must be 0 or more, got {self.top_k}")
        if not 0 < self.top_p <= 1:
            raise InputError(f"top_p must be in (0, 1], got {self.top_p}")


def adjusted_logits(logits: jax.Array, cfg: SamplingConfig) -> jax.Array:
    """Scores whose softmax is the distribution that `sample` draws from.

    Temperature comes first, then top-k, then top-p on what top-k left. Equal scores: the lower
    token id goes first. Unless temperature is 0, the best score of a row becomes 0.

    Args:
      logits: [B, V].
      cfg: how to draw.

    Returns:
      float32 [B, V]; tokens that cannot be drawn are -inf. With temperature 0 all but the best.
    """
    logits = logits.astype(jnp.float32)
    vocab = logits.shape[-1]
    if cfg.temperature == 0:
        best = jax.nn.one_hot(jnp.argmax(logits, -1), vocab, dtype=bool)
        return jnp.where(best, logits, -jnp.inf)
    # The best at 0, so that a small temperature overflows to -inf and nothing becomes a NaN.
    logits = (logits - logits.max(-1, keepdims=True)) / max(cfg.temperature, 1e-30)
    if cfg.top_k in (0, vocab) and cfg.top_p == 1:
        return logits
    order = jnp.argsort(-logits, axis=-1, stable=True)
    ranked = jnp.take_along_axis(logits, order, axis=-1)
    keep = jnp.ones_like(ranked, bool)
    if cfg.top_k:
        keep = keep & (jnp.arange(vocab) < cfg.top_k)
    if cfg.top_p < 1:
        probs = jax.nn.softmax(jnp.where(keep, ranked, -jnp.inf), axis=-1)
        # A token stays while those before it have not reached top_p: the best one always does.
        keep = keep & (jnp.cumsum(probs, axis=-1) - probs < cfg.top_p)
    ranked = jnp.where(keep, ranked, -jnp.inf)
    back = jnp.argsort(order, axis=-1)
    return jnp.take_along_axis(ranked, back, axis=-1)


def sample(logits: jax.Array, cfg: SamplingConfig, *, key: jax.Array) -> jax.Array:
    """Draws one token a row.

    Args:
      logits: [B, V].
      cfg: how to draw.
      key: one PRNG key a row, [B]; a row's token does not depend on the other rows.

    Returns:
      int32 [B].
    """
    if cfg.temperature == 0:
        return jnp.argmax(logits, axis=-1).astype(jnp.int32)
    adjusted = adjusted_logits(logits, cfg)
    return jax.vmap(jax.random.categorical)(key, adjusted).astype(jnp.int32)
