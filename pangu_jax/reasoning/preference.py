"""A preference model: a scalar score for an answer, from a decoder's hidden states.

    rows = [ids(question, answer) for ...]                 # chosen and rejected answers
    model = fit(features(params, chosen, cfg=cfg), features(params, rejected, cfg=cfg))
    model.score(features(params, others, cfg=cfg))         # for `reward_sources.preferred_by_model`

The decoder stays as it is: each answer is read once, and a head on the hidden state of its last
token is trained on pairs.
"""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from pangu_jax.core.errors import InputError
from pangu_jax.core.spec import Spec
from pangu_jax.data.text import records
from pangu_jax.decode.engine import round_up
from pangu_jax.eval.pass_at_k import Estimate, wilson
from pangu_jax.models import decoder
from pangu_jax.nn.how import HOW, How
from pangu_jax.train.loop import train
from pangu_jax.train.loop_config import LoopConfig
from pangu_jax.train.optimizer import make_optimizer
from pangu_jax.train.optimizer_config import OptimizerConfig
from pangu_jax.train.preference import preference_loss

OPTIMIZER = OptimizerConfig(learning_rate=1e-2, weight_decay=0.0)


@dataclasses.dataclass(frozen=True)
class Pair:
    """Two answers to a question, of which one is better."""

    prompt: str
    chosen: str
    rejected: str


@dataclasses.dataclass(frozen=True)
class Preference:
    """A trained head.

    Attributes:
      mean: float32 [D], of the features that it was trained on.
      scale: float32 [D], their standard deviations.
      kernel: float32 [D].
    """

    mean: np.ndarray
    scale: np.ndarray
    kernel: np.ndarray

    def score(self, features: np.ndarray) -> np.ndarray:
        """Scores of features [N, D], float32 [N]; only differences are meaningful."""
        return ((features - self.mean) / self.scale) @ self.kernel

    def agreement(self, chosen: np.ndarray, rejected: np.ndarray) -> Estimate:
        """How often the chosen one of pairs, features [N, D] each, scores higher; a tie is half."""
        gap = self.score(chosen) - self.score(rejected)
        return wilson(np.where(gap == 0, 0.5, gap > 0))


def read_pairs(path: str | Path) -> list[Pair]:
    """Reads a file of {"prompt", "chosen", "rejected": texts}, one per line, possibly .gz.

    Raises:
      InputError: the file cannot be read, or a line is of another form; names it.
    """
    keys = ("prompt", "chosen", "rejected")
    return [Pair(*(record[key] for key in keys)) for _, _, record in records(path, *keys)]


def features(
    params: Any,
    rows: Sequence[Sequence[int]],
    *,
    cfg: decoder.DecoderConfig,
    batch: int = 8,
    how: How = HOW,
    progress: Callable[[int, int], None] | None = None,
) -> np.ndarray:
    """The last hidden state of each row of ids, float32 [N, D].

    Args:
      params: tree of `decoder.spec(cfg)`.
      rows: ids of questions with their answers, at least one id each.
      cfg: the model.
      batch: rows read at once.
      how: layout, implementations, and the type of activations.
      progress: called with rows done and rows in all.

    Raises:
      InputError: a row is empty.
    """
    empty = [i for i, row in enumerate(rows) if not len(row)]
    if empty:
        raise InputError(f"row {empty[0]} has no token")
    found = np.zeros((len(rows), cfg.width), np.float32)
    order = sorted(range(len(rows)), key=lambda i: len(rows[i]))
    for first in range(0, len(rows), batch):
        part = order[first : first + batch]
        tokens = np.zeros((batch, round_up(len(rows[part[-1]]))), np.int32)
        last = np.zeros(batch, np.int32)
        for row, i in enumerate(part):  # causal, so what is behind a row does not reach it
            tokens[row, : len(rows[i])], last[row] = rows[i], len(rows[i]) - 1
        found[part] = np.asarray(_last(params, tokens, last, cfg=cfg, how=how))[: len(part)]
        if progress is not None:
            progress(min(first + batch, len(rows)), len(rows))
    return found


def fit(
    chosen: np.ndarray,
    rejected: np.ndarray,
    *,
    steps: int = 200,
    batch: int = 64,
    decay: float = 1e-2,
    optimizer: OptimizerConfig = OPTIMIZER,
    seed: int = 0,
) -> Preference:
    """Trains a head on pairs.

    Args:
      chosen: features [N, D] of the better answers.
      rejected: features [N, D] of the others.
      steps: optimizer steps.
      batch: pairs per step, drawn without return within a pass.
      decay: what the sum of the head's squares, over two, is multiplied by in the loss: pairs are
        few and features many.
      optimizer: of the head.
      seed: of the order of pairs.

    Raises:
      InputError: no pairs, or features that do not fit or are not finite.
    """
    if chosen.shape != rejected.shape or chosen.ndim != 2 or not len(chosen):
        raise InputError(
            f"pairs need features [N, D] of both sides, got {chosen.shape} and {rejected.shape}"
        )
    both = np.concatenate([chosen, rejected]).astype(np.float64)
    if not np.isfinite(both).all():
        raise InputError("features of pairs must be finite")
    mean, scale = both.mean(0), both.std(0)
    scale = np.where(scale > 0, scale, 1.0)
    sides = {
        name: ((x - mean) / scale).astype(np.float32)
        for name, x in (("chosen", chosen), ("rejected", rejected))
    }
    found = train(
        _decayed(decay),
        {"kernel": Spec((chosen.shape[1],), ("embed",))},
        lambda step: _batches(sides, min(batch, len(chosen)), seed, step),
        cfg=LoopConfig(steps, seed=seed, checkpoint_every=steps, chunk=min(steps, 20)),
        optimizer=make_optimizer(optimizer, steps),
        folder=None,
        unit="pairs",
        label=None,
    )
    return Preference(
        mean.astype(np.float32), scale.astype(np.float32), np.asarray(found.params["kernel"])
    )


def _decayed(decay: float):
    """The loss of a linear head with a penalty, which is the same for each pair of the batch."""
    pairs = preference_loss(lambda params, frozen, inputs, key: inputs @ params["kernel"])

    def loss(params, frozen, batch, key):
        nats, weight, more = pairs(params, frozen, batch, key)
        return nats + weight * decay / 2 * (params["kernel"] ** 2).sum(), weight, more

    return loss


def _batches(
    sides: dict[str, np.ndarray], batch: int, seed: int, step: int
) -> Iterator[dict[str, np.ndarray]]:
    """Batches from a step on: pass after pass, each in an order of its own; a rest is left out."""
    count = len(sides["chosen"])
    each = count // batch
    while True:
        order = np.random.default_rng([seed, step // each]).permutation(count)
        rows = order[step % each * batch :][:batch]
        yield {name: x[rows] for name, x in sides.items()}
        step += 1


@partial(jax.jit, static_argnames=("cfg", "how"))
def _last(params, tokens, last, *, cfg, how):
    hidden = decoder.apply(params, tokens, cfg=cfg, how=how).hidden
    return jnp.take_along_axis(hidden, last[:, None, None], axis=1)[:, 0].astype(jnp.float32)
