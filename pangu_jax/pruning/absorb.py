"""Post-RMSNorm absorption: sandwich norms become constants folded into the projection before.

The norm after a branch gives gamma * u / r, u being the projection's output and r = RMS(u), which
depends on the token. With a constant c in the place of 1 / r it folds: W' = W diag(c gamma), and
the norm disappears. The least-squares constant is c = E[r] / E[r^2], and the relative squared error
it leaves is exactly Var(r) / E[r^2].

Source: Pangu Light, arXiv 2505.20155 (that post-norms are absorbed); which statistic the paper
takes could not be verified: the default is the least-squares one, which is ours.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from pangu_jax.core.errors import InputError
from pangu_jax.core.spec import check
from pangu_jax.models import decoder, transformer
from pangu_jax.models.decoder import DecoderConfig
from pangu_jax.nn.stack import join, split
from pangu_jax.pruning.stats import SweepConfig, sweep

# From sums of r, r^2 and 1/r over n tokens.
STATS = {
    "lsq": lambda sums, n: sums[0] / sums[1],
    "mean_rms": lambda sums, n: n / sums[0],
    "mean_inv": lambda sums, n: sums[2] / n,
}
BRANCHES = (("attention_post_norm", "attention", "out"), ("mlp_post_norm", "mlp", "down"))


def relative_error(sums: np.ndarray, tokens: float, constant: float) -> float:
    """E[(u/r - c u)^2] / E[(u/r)^2] over tokens: E[(1 - c r)^2].

    Args:
      sums: [3], sums over tokens of r, r^2 and 1/r.
      tokens: number of tokens.
      constant: c.
    """
    return float(1 - 2 * constant * sums[0] / tokens + constant**2 * sums[1] / tokens)


def absorb(
    params: dict[str, Any],
    windows: np.ndarray,
    *,
    cfg: DecoderConfig,
    stat: str = "lsq",
    max_rel_err: float = 0.05,
    batch: int = 8,
) -> tuple[dict[str, Any], DecoderConfig, dict[str, float]]:
    """Folds the sandwich norms of every layer in which both leave little error.

    Do it after width pruning and its re-initialization; before or after distillation is a choice,
    and changes the constants.

    Args:
      params: tree of `decoder.spec(cfg)`.
      windows: int32 [windows, T], calibration tokens.
      cfg: a decoder with sandwich norms in some layers.
      stat: "lsq" E[r] / E[r^2], "mean_rms" 1 / E[r], or "mean_inv" E[1 / r].
      max_rel_err: a layer keeps both its norms if one of them would leave a larger relative
        squared error.
      batch: windows computed at once.

    Returns:
      Parameters, configuration, and the relative squared error of every sandwich norm by
      "<layer>/<norm>", those that were kept too.

    Raises:
      InputError: an unknown statistic, or no layer has sandwich norms.
    """
    if stat not in STATS:
        raise InputError(f"stat must be one of {', '.join(STATS)}, got {stat!r}")
    if not any(layer.norm_place == "sandwich" for layer in cfg.layers):
        raise InputError("no layer has sandwich norms, so there is nothing to absorb")
    sums: list[tuple[np.ndarray, float]] = []
    sweep(
        params,
        windows,
        cfg=cfg,
        sweep_cfg=SweepConfig(batch=batch),
        second_order=False,
        similarity=False,
        keep=lambda s: sums.append((np.asarray(s.post_rms, np.float64), float(s.tokens))),
    )
    errors: dict[str, float] = {}
    layers, configs = [], []
    for i, (layer, weights) in enumerate(zip(cfg.layers, split(params["runs"]), strict=True)):
        if layer.norm_place == "sandwich":
            total, tokens = sums[i]
            constants = [STATS[stat](row, tokens) for row in total]
            found = [relative_error(r, tokens, c) for r, c in zip(total, constants, strict=True)]
            errors |= {f"{i}/{b[0]}": e for b, e in zip(BRANCHES, found, strict=True)}
            if max(found) <= max_rel_err:
                weights = fold(weights, constants)
                layer = dataclasses.replace(layer, norm_place="pre")
        layers.append(weights)
        configs.append(layer)
    new = dataclasses.replace(cfg, layers=tuple(configs))
    runs = join(layers, [number for _, number in transformer.run_lengths(new)])
    tree = {**params, "runs": runs}
    return check(decoder.spec(new), tree), new, errors


def fold(weights: dict[str, Any], constants: list[float]) -> dict[str, Any]:
    """One layer with both sandwich norms replaced by constants times their gains."""
    weights = dict(weights)
    for (norm, branch, name), constant in zip(BRANCHES, constants, strict=True):
        gain = weights.pop(norm)["scale"]
        scaled = {key: _times(leaf, gain, constant) for key, leaf in weights[branch][name].items()}
        weights[branch] = {**weights[branch], name: scaled}
    return weights


def fold_pre_norms(params: dict[str, Any], *, cfg: DecoderConfig) -> dict[str, Any]:
    """Moves the gains of the norms before each branch into the projections after them; exact."""
    layers = []
    for weights in split(params["runs"]):
        weights = dict(weights)
        for norm, branch, names in (
            ("attention_norm", "attention", ("query", "key", "value")),
            ("mlp_norm", "mlp", ("gate", "up")),
        ):
            gain = weights[norm]["scale"]
            weights[norm] = {"scale": jnp.ones_like(gain)}
            inner = dict(weights[branch])
            for name in names:
                kernel = inner[name]["kernel"]
                column = gain.reshape(-1, *(1,) * (kernel.ndim - 1))
                inner[name] = {**inner[name], "kernel": kernel * column.astype(kernel.dtype)}
            weights[branch] = inner
        layers.append(weights)
    return {**params, "runs": join(layers, [n for _, n in transformer.run_lengths(cfg)])}


def _times(leaf: jax.Array, gain: jax.Array, constant: float) -> jax.Array:
    wide = jnp.promote_types(leaf.dtype, jnp.float32)
    return (leaf.astype(wide) * (gain.astype(wide) * constant)).astype(leaf.dtype)
