"""How evenly a router's choices fall on experts and on the devices that hold them.

Device i of n holds the experts i E/n to (i+1) E/n - 1. Everything here is numpy on the host; the
choices of a batch are `RouterStats.ids`, its padding the mask.
"""

import dataclasses
from collections.abc import Iterator, Sequence

import numpy as np

from pangu_jax.core.errors import InputError


def expert_load(ids: np.ndarray, *, experts: int, mask: np.ndarray | None = None) -> np.ndarray:
    """How many (token, expert) pairs each expert got.

    Args:
      ids: int [T, ...], the experts of each token, numbered over all groups.
      experts: E, the number of experts.
      mask: bool [T], false for padding; None for none.

    Returns:
      int64 [E].

    Raises:
      InputError: an id that is not an expert, or a mask of another length.
    """
    return np.bincount(_choices(ids, experts, mask).reshape(-1), minlength=experts)


def imbalance_score(
    ids: np.ndarray, *, experts: int, devices: int, mask: np.ndarray | None = None
) -> float:
    """Pairs on the fullest device less pairs on the emptiest, per token.

    Zero for every batch where each device holds whole groups of a grouped router. Arguments are
    those of `expert_load`; `devices` must divide `experts`.

    Raises:
      InputError: as `expert_load`; or no token; or devices that the experts can't be dealt to.

    Source: arXiv 2505.21411, equations 3-4.
    """
    chosen = _choices(ids, experts, mask)
    if not len(chosen):
        raise InputError("ids holds no token outside the mask; a score needs at least one")
    load = device_load(expert_load(chosen, experts=experts), devices=devices)
    return float(load.max() - load.min()) / len(chosen)


def device_load(load: np.ndarray, *, devices: int) -> np.ndarray:
    """Sums loads [..., E] of experts into loads [..., devices] of the devices that hold them.

    Raises:
      InputError: if `devices` does not divide E.
    """
    experts = load.shape[-1]
    if devices < 1 or experts % devices:
        raise InputError(f"devices is {devices}; it must divide the {experts} experts")
    return load.reshape(*load.shape[:-1], devices, experts // devices).sum(-1)


def straggler(load: np.ndarray, *, devices: int) -> float:
    """Load of the fullest device over the mean: how much longer the slowest works.

    Args:
      load: [E], of `expert_load`.
      devices: how many; must divide E.

    Returns:
      At least 1; 1 also where there is no load at all.
    """
    each = device_load(load, devices=devices)
    return float(each.max() / each.mean()) if each.any() else 1.0


def group_variation(load: np.ndarray, *, groups: int) -> np.ndarray:
    """Standard deviation over mean of the loads inside each group; 0 for a group without load.

    Args:
      load: [..., E].
      groups: G; must divide E.

    Returns:
      float64 [..., G].
    """
    mean = device_load(load, devices=groups) * (groups / load.shape[-1])
    inside = np.asarray(load, np.float64).reshape(*load.shape[:-1], groups, -1)
    return inside.std(-1) / np.where(mean > 0, mean, 1)


def coactivation(ids: np.ndarray, *, experts: int, mask: np.ndarray | None = None) -> np.ndarray:
    """How many tokens chose both of two experts.

    Arguments are those of `expert_load`.

    Returns:
      int64 [E, E], symmetric; the diagonal counts the tokens that chose the expert.
    """
    chosen = _choices(ids, experts, mask)
    total = np.zeros((experts, experts), np.int64)
    for start in range(0, len(chosen), 8192):  # in pieces: one-hot rows are wide
        piece = chosen[start : start + 8192]
        hot = np.zeros((len(piece), experts), np.float32)
        hot[np.arange(len(piece))[:, None], piece] = 1
        total += (hot.T @ hot).astype(np.int64)
    return total


@dataclasses.dataclass(frozen=True)
class ImbalancePoint:
    """Imbalance of batches of one size on one number of devices.

    Attributes:
      devices: number of devices.
      tokens: tokens of a batch.
      batches: how many batches were measured.
      mean: mean imbalance score.
      sd: its standard deviation over batches.
      straggler: mean over batches of the fullest device's load over the mean load.
    """

    devices: int
    tokens: int
    batches: int
    mean: float
    sd: float
    straggler: float


def imbalance_curve(
    ids: np.ndarray,
    *,
    experts: int,
    devices: Sequence[int],
    sizes: Sequence[int],
    mask: np.ndarray | None = None,
    most: int = 1000,
    seed: int = 0,
) -> list[ImbalancePoint]:
    """Imbalance over random disjoint batches, for each number of devices and batch size.

    Args:
      ids: int [T, ...], the experts of each token.
      experts: E.
      devices: numbers of devices; each must divide E.
      sizes: tokens of a batch; at most the unmasked tokens.
      mask: bool [T], false for padding; None for none.
      most: how many batches of a size to measure at most.
      seed: of the shuffle.

    Raises:
      InputError: a size that is below 1 or exceeds the tokens; others as `imbalance_score`.
    """
    chosen = _choices(ids, experts, mask)
    chosen = chosen[np.random.default_rng(seed).permutation(len(chosen))]
    points = []
    for size in sizes:
        if not 1 <= size <= len(chosen):
            raise InputError(f"sizes holds {size}; there are {len(chosen)} tokens to draw from")
        batches = min(most, len(chosen) // size)
        batch = chosen[: batches * size].reshape(batches, -1)
        loads = _batch_load(batch, experts)
        for count in devices:
            scores, slowest = _scores(loads, size, count)
            points.append(
                ImbalancePoint(
                    count, size, batches, float(scores.mean()), float(scores.std()), slowest
                )
            )
    return points


def simulate_uniform(
    *,
    experts: int,
    top_k: int,
    devices: int,
    tokens: int,
    batches: int,
    distinct: bool = True,
    seed: int = 0,
) -> np.ndarray:
    """Imbalance scores of an ordinary top-k router that likes every expert equally.

    Args:
      experts: E.
      top_k: experts of a token.
      devices: number of devices; must divide E.
      tokens: tokens of a batch.
      batches: how many batches to draw.
      distinct: whether a token's experts differ; false draws them independently, as the paper does.
      seed: of the draws.

    Returns:
      float64 [batches].

    Source: arXiv 2505.21411, section 2.2 (its experiment: 64, 8, 8 devices, 16 tokens).
    """
    if distinct and top_k > experts:
        raise InputError(f"top_k is {top_k}; a token can choose at most {experts} distinct experts")
    rng = np.random.default_rng(seed)
    scores = []
    for piece in _pieces(batches, tokens * experts):
        if distinct:
            order = rng.random((piece, tokens, experts), np.float32)
            ids = np.argpartition(order, top_k - 1, axis=-1)[..., :top_k]
        else:
            ids = rng.integers(experts, size=(piece, tokens, top_k))
        scores.append(_scores(_batch_load(ids.reshape(piece, -1), experts), tokens, devices)[0])
    return np.concatenate(scores)


def _choices(ids, experts, mask) -> np.ndarray:
    """The unmasked tokens' experts as int [T, K]."""
    ids = np.asarray(ids)
    ids = ids.reshape(len(ids), -1) if ids.size else ids.reshape(0, 1).astype(int)
    if mask is not None:
        mask = np.asarray(mask, bool)
        if mask.shape != (len(ids),):
            raise InputError(f"mask is {mask.shape}; it must be ({len(ids)},), one for each token")
        ids = ids[mask]
    if ids.size and not 0 <= ids.min() <= ids.max() < experts:
        raise InputError(f"ids spans {ids.min()} to {ids.max()}; experts are 0 to {experts - 1}")
    return ids


def _batch_load(ids, experts) -> np.ndarray:
    """Loads [batches, E] of ids [batches, pairs]."""
    batches = len(ids)
    flat = ids + np.arange(batches)[:, None] * experts
    return np.bincount(flat.reshape(-1), minlength=batches * experts).reshape(batches, experts)


def _scores(loads, tokens, devices):
    """Scores [batches] and the mean straggler factor."""
    each = device_load(loads, devices=devices)
    scores = (each.max(-1) - each.min(-1)) / tokens
    return scores, float((each.max(-1) / each.mean(-1)).mean())


def _pieces(batches, each) -> Iterator[int]:
    """Splits `batches` so that a piece draws some four million numbers."""
    step = max(1, 4_000_000 // each)
    for start in range(0, batches, step):
        yield min(step, batches - start)
