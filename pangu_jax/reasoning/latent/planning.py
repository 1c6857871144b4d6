"""Planning tokens: each step of a written chain begins with a token that names its kind.

Kinds are clusters of the training problems' steps. Models learn to write the tokens with the rest
of the chain, so nothing else differs from `cot`.

Source: arXiv 2310.05707, and its released code's description. Ours: clusters are of a step's
tokens, hashed into 64 counts, not of the states of a language model that read the question and the
steps before, as a model from scratch has none; one token per step.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np

from pangu_jax.reasoning.latent.curriculum import whole_chain
from pangu_jax.reasoning.latent.method import Method, written
from pangu_jax.reasoning.latent.slots import Encoded

METHOD = Method(whole_chain, written, plans=True)

COUNTS = 64  # of a step's tokens; ids that are equal modulo this are counted together
FITTED = 4096  # different steps that centers are fitted to
ROUNDS = 50


def planned(problems: Sequence[Encoded], plans: Sequence[int]) -> list[Encoded]:
    """Problems whose steps begin with the token of their kind.

    Args:
      problems: to train on; equal ones get equal tokens, whatever their order.
      plans: the ids of the tokens, one for each kind.
    """
    steps = sorted({step for problem in problems for step in problem.steps})
    if not steps:
        return list(problems)
    kinds = clusters(_counts(steps), len(plans))
    token = {step: plans[kind] for step, kind in zip(steps, kinds, strict=True)}
    return [
        dataclasses.replace(x, steps=tuple((token[step], *step) for step in x.steps))
        for x in problems
    ]


def clusters(points: np.ndarray, count: int) -> np.ndarray:
    """Assigns points to clusters by Lloyd's k-means, seeded with far-apart points.

    Args:
      points: float [points, features].
      count: most clusters; equal points never make two.

    Returns:
      int [points], each point's cluster, numbered from the largest cluster on.
    """
    fitted = points[np.random.default_rng(0).permutation(len(points))[:FITTED]]
    centers = fitted[:1]
    while len(centers) < count:  # the point that is farthest from all centers
        far = _squares(fitted, centers).min(-1)
        if not far.max() > 1e-9:
            break
        centers = np.concatenate([centers, fitted[np.argmax(far)][None]])
    for _ in range(ROUNDS):
        own = np.argmin(_squares(fitted, centers), -1)
        members = [fitted[own == kind] for kind in range(len(centers))]
        moved = [x.mean(0) if len(x) else c for x, c in zip(members, centers, strict=True)]
        if np.array_equal(moved, centers):
            break
        centers = np.stack(moved)
    found = np.concatenate(
        [np.argmin(_squares(part, centers), -1) for part in np.array_split(points, _parts(points))]
    )
    order = np.argsort(-np.bincount(found, minlength=len(centers)), kind="stable")
    return np.argsort(order)[found]


def _counts(steps: Sequence[tuple[int, ...]]) -> np.ndarray:
    """Shares of a step's tokens by id modulo COUNTS: float32 [steps, COUNTS]."""
    found = np.zeros((len(steps), COUNTS), np.float32)
    for row, step in zip(found, steps, strict=True):
        np.add.at(row, np.asarray(step, np.int64) % COUNTS, 1 / max(len(step), 1))
    return found


def _squares(points, centers):
    """Squared distances, [points, centers]."""
    return np.stack([((points - center) ** 2).sum(-1) for center in centers], -1)


def _parts(points: np.ndarray) -> int:
    return -(-len(points) // 65536)
