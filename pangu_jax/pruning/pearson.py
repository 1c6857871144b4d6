"""SlimLLM's choice of heads: Pearson similarity of the output without them, and greedy swaps.

Everything is computed from C[i, k, j] = cov(o_i[j], o_k[j]), o_i being what unit i adds to output
dimension j (`moments.contributions`), so no token is needed.

Source: arXiv 2505.22689, equation of the head score and Algorithm 1, as its released code does it.
"""

import numpy as np


def similarity(between: np.ndarray, keep: np.ndarray) -> float:
    """Sum over output dimensions of |Pearson(output of the kept units, output of all)|.

    Args:
      between: float64 [U, U, D], covariances of U units' outputs; see `moments.contributions`.
      keep: bool [U].
    """
    rows = between[keep].sum(1)  # [kept, D], covariance of each kept unit with the whole
    mine = between[np.ix_(keep, keep)].sum((0, 1))
    return float(_pearson(rows.sum(0), mine, between.sum((0, 1))).sum())


def removal_similarity(between: np.ndarray) -> np.ndarray:
    """Similarity of the output without each unit to the whole, float64 [U]; the importance is its
    negative.
    """  # noqa: D205
    rows = between.sum(1)  # cov(o_i, y)
    whole = rows.sum(0)
    own = np.einsum("iij->ij", between)
    return _pearson(whole - rows, whole - 2 * rows + own, whole).sum(-1)


def choose(
    between: np.ndarray, keep: int, *, labels: np.ndarray | None = None, greedy: bool = True
) -> np.ndarray:
    """Chooses the units to keep: one-shot, then one pass of swaps that raise the similarity.

    The dropped units are tried, least important first; each takes the place of the kept unit whose
    replacement gives the highest similarity, if that beats the best so far.

    Args:
      between: float64 [U, U, D].
      keep: units to keep of each label.
      labels: int [U]; swaps stay within a label, and each label keeps `keep` units. None is one
        label for all.
      greedy: whether to swap at all.

    Returns:
      bool [U].
    """
    between = np.asarray(between, np.float64)
    labels = np.zeros(len(between), int) if labels is None else labels
    score = removal_similarity(between)
    kept = np.zeros(len(between), bool)
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        kept[members[np.argsort(score[members], kind="stable")[:keep]]] = True
    if not greedy or kept.all() or not kept.any():
        return kept
    best = similarity(between, kept)
    order = np.flatnonzero(~kept)
    for unit in order[np.argsort(-score[order], kind="stable")]:
        places = np.flatnonzero(kept & (labels == labels[unit]))
        found = _swapped(between, kept, unit, places)
        if len(places) and found.max() > best:
            best = float(found.max())
            kept[places[found.argmax()]] = False
            kept[unit] = True
    return kept


def _swapped(between, kept, unit, places) -> np.ndarray:
    """Similarity after putting `unit` in each of the places, float64 [places]."""
    rows = between.sum(1)
    with_kept = between[:, kept].sum(1)  # [U, D], covariance with the kept sum
    own = np.einsum("iij->ij", between)
    variance = with_kept[kept].sum(0)
    cross = rows[kept].sum(0) - rows[places] + rows[unit]
    mine = (
        variance
        - 2 * with_kept[places]
        + own[places]
        + 2 * (with_kept[unit] - between[unit, places])
        + own[unit]
    )
    return _pearson(cross, mine, rows.sum(0)).sum(-1)


def _pearson(cross: np.ndarray, mine: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """|cross| / sqrt(mine * whole), 0 where one does not vary (beyond rounding)."""
    product = np.maximum(mine, 0) * np.maximum(whole, 0)
    live = (mine > 1e-12 * np.maximum(whole, 0)) & (whole > 0)
    return np.where(live, np.abs(cross) / np.sqrt(np.where(live, product, 1.0)), 0.0)
