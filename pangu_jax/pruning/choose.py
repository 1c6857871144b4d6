"""Selects the units of a layer to keep, for each method."""

import dataclasses
from typing import Any

import jax
import numpy as np
from einops import rearrange, repeat

from pangu_jax.pruning import importance, moments, pearson
from pangu_jax.pruning.axes import Sizes
from pangu_jax.pruning.stats import LayerStats

# Units of the out kernel, each with its inputs in a row.
BY_GROUP = "k q c d -> k (q c) d"
BY_HEAD = "k q c d -> (k q) c d"


@dataclasses.dataclass(frozen=True)
class Chosen:
    """The KV groups to keep, the query heads to keep in each, and the scores that decided."""

    units: tuple[int, ...]
    heads: tuple[tuple[int, ...], ...]
    scores: np.ndarray


def choose_heads(
    stats: LayerStats, size: Sizes, recipe: Any, layer: int, mask: np.ndarray | None = None
) -> Chosen:
    """Selects KV groups, and then query heads in each group, to keep.

    Args:
      stats: the layer's statistics.
      size: number to keep; not used for groups if a mask is given.
      recipe: `recipe.Recipe`.
      layer: its number, for the random method.
      mask: bool [K], the groups that a global rank keeps.
    """
    kernel = stats.weights["attention"]["out"]["kernel"]
    groups, heads = kernel.shape[:2]
    seed = recipe.seed * 1000 + layer
    if recipe.method == "slimllm":
        between = _between(stats, BY_GROUP)
        scores = -pearson.removal_similarity(between)
    else:
        between, scores = None, importance.group_scores(recipe.method, stats, seed=seed)
    if mask is not None:
        units = np.flatnonzero(mask)
    elif between is not None:
        units = np.flatnonzero(pearson.choose(between, size.groups, greedy=recipe.greedy))
    else:
        units = _best(scores, size.groups)
    if size.heads == heads:
        each = [tuple(range(heads))] * len(units)
    elif recipe.method == "slimllm":
        labels = repeat(np.arange(groups), "k -> (k q)", q=heads)
        kept = pearson.choose(
            _between(stats, BY_HEAD), size.heads, labels=labels, greedy=recipe.greedy
        )
        kept = rearrange(kept, "(k q) -> k q", q=heads)
        each = [tuple(np.flatnonzero(kept[g]).tolist()) for g in units]
    else:
        by_head = importance.head_scores(recipe.method, stats, seed=seed)
        each = [tuple(_best(by_head[g], size.heads).tolist()) for g in units]
    return Chosen(tuple(units.tolist()), tuple(each), scores)


def choose_channels(
    stats: LayerStats, size: Sizes, recipe: Any, layer: int, mask: np.ndarray | None = None
) -> tuple[tuple[int, ...], np.ndarray]:
    """The FFN channels that stay, ascending, and all channels' scores, float64 [F].

    The arguments are those of `choose_heads`; here `mask` is bool [F].
    """
    scores = importance.channel_scores(recipe.method, stats, seed=recipe.seed * 1000 + layer)
    if mask is not None:
        return tuple(np.flatnonzero(mask).tolist()), scores
    number = len(scores)
    order = np.argsort(scores, kind="stable")  # least important first
    spared = min(round(recipe.keep_lowest * number), size.ffn)
    dropped = order[spared : spared + number - size.ffn]
    return tuple(np.setdiff1d(np.arange(number), dropped).tolist()), scores


def group_scores(method: str, stats: LayerStats, *, seed: int = 0) -> np.ndarray:
    """Importance of each KV group, float64 [K]; SlimLLM's is -(similarity without the group)."""
    if method != "slimllm":
        return importance.group_scores(method, stats, seed=seed)
    return -pearson.removal_similarity(_between(stats, BY_GROUP))


def _between(stats: LayerStats, units: str) -> np.ndarray:
    """C[i, k, j] of the units that a pattern makes of the out kernel."""
    kernel = stats.weights["attention"]["out"]["kernel"]
    with jax.enable_x64(True):
        cov = moments.covariance(stats.heads)
        return np.asarray(moments.contributions(cov, rearrange(kernel, units)), np.float64)


def _best(scores: np.ndarray, number: int) -> np.ndarray:
    return np.sort(np.argsort(-scores, kind="stable")[:number])
