"""Probes of thoughts: linear probes with a baseline, and the logit lens.

Each probe is fitted again to shuffled labels, which cannot be predicted on the half that was not
fitted: that is the accuracy due to the labels' frequencies and chance. It does not show what a
probe could memorize, unlike a control task, whose labels are the same in both halves.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from pangu_jax.core.errors import InputError
from pangu_jax.models import decoder
from pangu_jax.reasoning.latent.slots import Encoded

RIDGE = 1e-2  # of the features' mean square


@dataclasses.dataclass(frozen=True)
class Probe:
    """Accuracy of labels read from features, on the half that was not fitted.

    Attributes:
      examples: number of examples in both halves.
      classes: number of labels.
      accuracy: share of right labels.
      shuffled: the same with labels shuffled beforehand.
      majority: share of the commonest label.
    """

    examples: int
    classes: int
    accuracy: float
    shuffled: float
    majority: float

    @property
    def above_shuffled(self) -> float:
        """Accuracy minus that with shuffled labels."""
        return self.accuracy - self.shuffled


@dataclasses.dataclass(frozen=True)
class Target:
    """An id to look for in thoughts, per problem.

    Attributes:
      name: for tables and plots.
      problems: int [n], indices of the problems that have one.
      ids: int [n], the id of each.
    """

    name: str
    problems: np.ndarray
    ids: np.ndarray


def targets(problems: Sequence[Encoded], *, least: int) -> list[Target]:
    """The telling id of every step and then of the answer, if at least `least` problems have it.

    Args:
      problems: as ids.
      least: fewest problems of a target.
    """
    texts = {
        f"step {step + 1}": {
            i: x.steps[step] for i, x in enumerate(problems) if len(x.steps) > step
        }
        for step in range(max(len(x.steps) for x in problems))
    }
    texts["answer"] = {i: x.answer for i, x in enumerate(problems)}
    found = []
    for name, of in texts.items():
        kept = {i: text for i, text in of.items() if text}
        if len(kept) < least:
            continue
        place = telling_place(list(kept.values()))
        ids = np.array([text[place] for text in kept.values()])
        if len(np.unique(ids)) > 1:
            found.append(Target(name, np.array(list(kept)), ids))
    return found


def linear_probe(features: np.ndarray, labels: np.ndarray, *, seed: int = 0) -> Probe:
    """A ridge classifier on one half of the examples, measured on the other.

    Args:
      features: float [examples, features].
      labels: int [examples].
      seed: of the halves and of the shuffled labels.

    Raises:
      InputError: fewer than four examples, or one label alone.
    """
    known, labels = np.unique(labels, return_inverse=True)
    if len(labels) < 4 or len(known) < 2:
        raise InputError(
            f"a probe needs at least 4 examples and 2 labels, got {len(labels)} and {len(known)}"
        )
    rng = np.random.default_rng(seed)
    order, shuffled = rng.permutation(len(labels)), rng.permutation(labels)
    fitted, kept = order[: len(order) // 2], order[len(order) // 2 :]
    return Probe(
        len(labels),
        len(known),
        _read(features, labels, fitted, kept),
        _read(features, shuffled, fitted, kept),
        float(np.bincount(labels).max() / len(labels)),
    )


def lens_ranks(
    params: dict[str, Any], states: np.ndarray, ids: Sequence[int], *, cfg: decoder.DecoderConfig
) -> np.ndarray:
    """The rank of an id among all, by the head's scores of a state.

    Args:
      params: tree of `decoder.spec(cfg)`.
      states: float [problems, n, D], n states each, after the final norm.
      ids: one per problem.
      cfg: the model.

    Returns:
      int [problems, n]; 0 where no id has a higher score.
    """
    scores = np.asarray(decoder.logits(params, jnp.asarray(states), cfg=cfg))
    own = np.take_along_axis(scores, np.asarray(ids)[:, None, None], axis=-1)
    return (scores > own).sum(-1)


def telling_place(texts: Sequence[Sequence[int]]) -> int:
    """The first position with the most distinct ids, as it distinguishes texts best.

    Raises:
      InputError: an empty text.
    """
    if not texts or not all(texts):
        raise InputError("there is an empty text, which nothing can be read of")
    shortest = min(map(len, texts))
    return int(np.argmax([len({text[i] for text in texts}) for i in range(shortest)]))


def _read(features, labels, fitted, kept) -> float:
    """The share of kept examples whose label is read."""
    x = np.asarray(features, np.float64)
    x = (x - x[fitted].mean(0)) / (x[fitted].std(0) + 1e-6)
    targets = np.eye(labels.max() + 1)[labels[fitted]]
    middle = targets.mean(0)
    gram = x[fitted].T @ x[fitted] / len(fitted) + RIDGE * np.eye(x.shape[1])
    weights = np.linalg.solve(gram, x[fitted].T @ (targets - middle) / len(fitted))
    return float(np.mean(np.argmax(x[kept] @ weights + middle, -1) == labels[kept]))
