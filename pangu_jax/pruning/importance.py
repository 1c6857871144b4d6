"""Importance scores of units: SlimLLM, Minitron (Pangu Light) and baselines, in one interface.

| method | channels | heads and KV groups |
|---|---|---|
| slimllm | PCA-weighted norms | Pearson similarity, greedy swaps (`pearson.py`) |
| minitron, pangu-light | mean absolute activation | the same, L2 over the unit's dimensions |
| flap | fluctuation of the input times squared weights | the same, summed over dimensions |
| wanda-sp | input norm times absolute weights | the same, summed over dimensions |
| taylor | first-order change of the loss, gate + up + down | the same, over q, k, v and out |
| magnitude | L2 norm of the unit's weights | the same |
| random | uniform draws | the same |

Scores are float64 arrays; the lowest are dropped. Group scores are those of the unit that is cut
as a whole: a KV head with all its query heads.

Sources: SlimLLM arXiv 2505.22689 and its released code; Pangu Light arXiv 2505.20155, whose
importance we read as that of Minitron (arXiv 2407.14679); FLAP arXiv 2312.11983; Wanda arXiv
2306.11695; LLM-Pruner arXiv 2305.11627. Where the papers leave the aggregation over a KV group
open, it is ours: the unit's weights and activations are taken together.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange, reduce

from pangu_jax.core.config import check_choice
from pangu_jax.core.errors import InputError
from pangu_jax.pruning import moments
from pangu_jax.pruning.stats import LayerStats

METHODS = (
    "slimllm",
    "pangu-light",
    "minitron",
    "flap",
    "wanda-sp",
    "taylor",
    "magnitude",
    "random",
)


def check_method(method: str) -> str:
    """Returns the name of a known method.

    Raises:
      InputError: an unknown one.
    """
    check_choice("method", method, METHODS)
    return method


def channel_scores(method: str, stats: LayerStats, *, seed: int = 0) -> np.ndarray:
    """Importance of each of the F channels, float64 [F].

    Args:
      method: one of `METHODS`.
      stats: the layer's statistics.
      seed: of the random scores; give each layer its own.
    """
    check_method(method)
    if method == "random":
        return np.random.default_rng((seed, 0)).random(_shape(stats)[2])
    if method == "taylor":
        return _saliency(stats, "channels")
    weights = stats.weights["mlp"]
    if method == "magnitude":
        names = ("gate", "up", "down")
        squares = (_square(weights[n]["kernel"]).sum(1 if n == "down" else 0) for n in names)
        return np.sqrt(sum(squares))
    with jax.enable_x64(True):
        if method == "slimllm":
            return np.asarray(_pca(stats.channels, stats.mlp_squares, weights), np.float64)
        found = _per_input(method, stats.channels, weights["down"]["kernel"])
    return np.asarray(found, np.float64)


def head_scores(method: str, stats: LayerStats, *, seed: int = 0) -> np.ndarray:
    """Importance of each query head, float64 [K, heads per group]; for SlimLLM see `pearson.py`."""
    groups, heads, _ = _shape(stats)
    if method == "random":
        return np.random.default_rng((seed, 1)).random((groups, heads))
    if method == "taylor":
        return _saliency(stats, "heads")
    weights = stats.weights["attention"]
    if method == "magnitude":
        squares = reduce(_square(weights["query"]["kernel"]), "d k q c -> k q", "sum")
        return np.sqrt(squares + reduce(_square(weights["out"]["kernel"]), "k q c d -> k q", "sum"))
    return _attention_inputs(method, stats, (groups, heads, -1))


def group_scores(method: str, stats: LayerStats, *, seed: int = 0) -> np.ndarray:
    """Importance of each KV group, float64 [K]; for SlimLLM see `pearson.py`."""
    groups, _, _ = _shape(stats)
    if method == "random":
        return np.random.default_rng((seed, 2)).random(groups)
    if method == "taylor":
        return _saliency(stats, "groups")
    weights = stats.weights["attention"]
    if method == "magnitude":
        squares = reduce(_square(weights["query"]["kernel"]), "d k q c -> k", "sum")
        squares = squares + reduce(_square(weights["out"]["kernel"]), "k q c d -> k", "sum")
        for name in ("key", "value"):
            squares = squares + reduce(_square(weights[name]["kernel"]), "d k c -> k", "sum")
        return np.sqrt(squares)
    return _attention_inputs(method, stats, (groups, -1))


def hidden_scores(layers: tuple[LayerStats, ...]) -> np.ndarray:
    """Importance of each channel of the residual stream, float64 [D].

    The mean absolute output of every norm, as a root of summed squares over windows, summed over
    the norms.
    """
    found = [np.sqrt(np.asarray(s.norm_absolute, np.float64)).sum(0) for s in layers]
    return np.sum(found, 0)


def similarities(layers: tuple[LayerStats, ...]) -> np.ndarray:
    """Mean over tokens of cos(layer input, layer output), float64 [L]."""
    return np.asarray([float(s.similarity) / float(s.tokens) for s in layers])


def contribution_norms(stats: LayerStats) -> np.ndarray:
    """Root mean square of what each KV group adds to the residual, float64 [K].

    Comparable between layers, unlike raw activations: it is measured after the out projection, and
    after the sandwich norm's gain if there is one.
    """
    kernel = stats.weights["attention"]["out"]["kernel"]
    with jax.enable_x64(True):
        second = moments.second(moments.merge(stats.heads, stats.held_heads))
        scale = _post_scale(stats)
        flat = rearrange(kernel.astype(second.dtype), "k q c d -> k (q c) d") * scale
        groups, size, _ = flat.shape
        blocks = second.reshape(groups, size, groups, size)
        own = jnp.stack([blocks[g, :, g] for g in range(groups)])
        energy = jnp.einsum("gcd,gce,ged->g", flat, own, flat)
        return np.sqrt(np.maximum(np.asarray(energy, np.float64), 0))


def post_rms(stats: LayerStats, branch: int = 0) -> float:
    """Mean root mean square that the branch's sandwich norm divides by; 1 without such a norm."""
    value = float(stats.post_rms[branch, 0]) / float(stats.tokens)
    return value if value > 0 else 1.0


def _post_scale(stats: LayerStats) -> Any:
    if "attention_post_norm" not in stats.weights:
        return 1.0
    return stats.weights["attention_post_norm"]["scale"] / post_rms(stats)


def _attention_inputs(method: str, stats: LayerStats, shape: tuple[int, ...]) -> np.ndarray:
    with jax.enable_x64(True):
        kernel = stats.weights["attention"]["out"]["kernel"]
        each = _per_input(method, stats.heads, rearrange(kernel, "k q c d -> (k q c) d"))
    each = np.asarray(each, np.float64).reshape(shape)
    if method in ("minitron", "pangu-light"):
        return np.sqrt((each**2).sum(-1))
    return each.sum(-1)


@partial(jax.jit, static_argnums=0)
def _per_input(method: str, sums: moments.Moments, kernel: jax.Array) -> jax.Array:
    """Importance of each input of a projection [U, D]."""
    kernel = kernel.astype(sums.outer.dtype)
    if method in ("minitron", "pangu-light"):
        return jnp.sqrt(sums.absolute)
    if method == "flap":
        variance = jnp.diagonal(sums.outer) / sums.tokens - moments.mean(sums) ** 2
        return variance * (kernel**2).sum(1)
    if method == "wanda-sp":
        return jnp.sqrt(jnp.diagonal(sums.outer)) * jnp.abs(kernel).sum(1)
    raise InputError(f"method {method} has no score of single inputs")


@jax.jit
def _pca(sums: moments.Moments, mlp_squares: jax.Array, weights: dict[str, Any]) -> jax.Array:
    """SlimLLM's channel score.

    With omega = sigmoid(eigenvalue / mean eigenvalue) of the output's covariance: the norm of a
    channel's output row on the principal axes, each axis weighted by omega, times the channel's
    norm, plus the input-weighted norms of its gate and up columns.
    """
    high = jax.lax.Precision.HIGHEST
    dtype = sums.outer.dtype
    down = weights["down"]["kernel"].astype(dtype)
    spread = jnp.matmul(moments.covariance(sums), down, precision=high)
    values, axes = jnp.linalg.eigh(jnp.matmul(down.T, spread, precision=high))
    average = jnp.maximum(values.mean(), jnp.finfo(dtype).tiny)
    omega = jax.nn.sigmoid(values / average)
    out = jnp.linalg.norm(jnp.matmul(down, axes, precision=high) * omega, axis=1)
    score = jnp.sqrt(jnp.diagonal(sums.outer)) * out
    for name in ("gate", "up"):
        squares = weights[name]["kernel"].astype(dtype) ** 2
        score = score + jnp.sqrt((squares * mlp_squares[:, None]).sum(0))
    return score


def _shape(stats: LayerStats) -> tuple[int, int, int]:
    groups, heads = stats.weights["attention"]["out"]["kernel"].shape[:2]
    return groups, heads, stats.weights["mlp"]["down"]["kernel"].shape[0]


def _saliency(stats: LayerStats, name: str) -> np.ndarray:
    if stats.saliency is None:
        raise InputError("the Taylor score needs gradients: collect with taylor.saliency first")
    return np.asarray(stats.saliency[name], np.float64)


def _square(x: Any) -> np.ndarray:
    return np.asarray(x, np.float64) ** 2
