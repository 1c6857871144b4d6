"""Early stopping, which keeps the best parameters."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from pangu_jax.core.errors import InputError


@dataclasses.dataclass(frozen=True)
class StopRule:
    """Ends a run after `patience` evaluations in a row without improvement.

    Attributes:
      metric: the name of one that `evaluate` returns; lower is better.
      patience: evaluations. Several seeds count separately: one whose patience is over keeps
        its best parameters while the others go on, and the run ends with the last.
    """

    metric: str
    patience: int

    def __post_init__(self):
        if self.patience < 1:
            raise InputError(f"patience must be at least 1, got {self.patience}")


@struct.dataclass
class Best:
    """The best so far; with several seeds everything has a leading axis.

    Attributes:
      params: the parameters at the best evaluation.
      score: float32, its value; the largest number before the first.
      step: int32, the step of that evaluation.
      waited: int32, evaluations since.
    """

    params: Any
    score: jax.Array
    step: jax.Array
    waited: jax.Array


def begin(params: Any, seeds: int = 1) -> Best:
    """Before the first evaluation."""
    shape = () if seeds == 1 else (seeds,)
    zeros = np.zeros(shape, np.int32)
    score = jnp.full(shape, np.finfo(np.float32).max, jnp.float32)
    # A copy, as every step donates the state's own parameters.
    return Best(jax.tree.map(jnp.copy, params), score, jnp.asarray(zeros), jnp.asarray(zeros))


def judge(best: Best, params: Any, score: Any, step: int, rule: StopRule) -> Best:
    """The best so far, after an evaluation; seeds out of patience stay unchanged.

    Args:
      best: the best before it.
      params: the parameters that were evaluated; they are copied if they are better.
      score: the measured value, lower is better: a scalar or, with several seeds, one for each.
      step: steps done.
      rule: the rule.
    """
    score = np.asarray(score, np.float32).reshape(best.score.shape)
    waited, before = np.asarray(best.waited), np.asarray(best.score)
    running = waited < rule.patience
    better = running & (score <= before)
    return Best(
        _pick(better, params, best.params),
        _like(best.score, np.where(better, score, before)),
        _like(best.step, np.where(better, step, best.step).astype(np.int32)),
        _like(best.waited, np.where(better, 0, waited + running).astype(np.int32)),
    )


def is_over(best: Best, rule: StopRule) -> bool:
    """Whether every seed's patience is over."""
    return bool((np.asarray(best.waited) >= rule.patience).all())


def _like(old: jax.Array, new: np.ndarray) -> jax.Array:
    """Places a value like the old one, committed if it was; else the step would recompile."""
    return jax.device_put(new, old.sharding) if old.committed else jnp.asarray(new)


def _pick(better: np.ndarray, new: Any, old: Any) -> Any:
    if not better.shape:
        return jax.tree.map(jnp.copy, new) if better else old

    def choose(a: jax.Array, b: jax.Array) -> jax.Array:
        return jnp.where(better.reshape(-1, *[1] * (a.ndim - 1)), a, b)

    return jax.tree.map(choose, new, old)
