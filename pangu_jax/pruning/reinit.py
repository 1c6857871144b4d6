"""Pangu Light's re-initialization: RMSNorm gains after width cuts (SLNP), and layers that hand
their best KV groups to the one before when they are removed (CLAP).

Source: arXiv 2505.20155. That SLNP keeps the gain's L2 norm, and that CLAP moves the most important
KV groups of the removed layer into its predecessor, is the paper's; the formulas are our reading,
and the corrections for the gains of the other layer's norms are ours.
"""  # noqa: D205

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from pangu_jax.core.errors import InputError
from pangu_jax.models.decoder import DecoderConfig
from pangu_jax.pruning.plan import LayerPlan, Plan


def norm_gain(whole: jax.Array, kept: jax.Array, plan: Plan, name: str) -> jax.Array:
    """The gains of a norm over the kept channels.

    Dropping channels changes the root mean square that the norm divides by. One factor makes up
    for it: "l2" keeps the L2 norm of the gains (the paper), "dim" is sqrt(D / D'), exact where the
    dropped channels are zero (with eps scaled alike), "calibrated" is the least-squares factor on
    the calibration tokens, "none" leaves the gains.

    Args:
      whole: [D].
      kept: [D'].
      plan: its `norm` and `norm_factors`.
      name: of the norm, for `norm_factors`.

    Raises:
      InputError: "calibrated" without the factor of this norm.
    """
    if plan.norm == "none" or len(kept) == len(whole):
        return kept
    if plan.norm == "dim":
        factor = (len(whole) / len(kept)) ** 0.5
    elif plan.norm == "l2":
        before = np.linalg.norm(np.asarray(whole, np.float64))
        after = np.linalg.norm(np.asarray(kept, np.float64))
        factor = before / after if after else 1.0
    else:
        if name not in plan.norm_factors:
            raise InputError(f"the plan has no calibrated factor for the norm {name}")
        factor = plan.norm_factors[name]
    return (
        (kept.astype(jnp.float32) * jnp.float32(factor)).astype(kept.dtype)
        if (kept.dtype != jnp.float64)
        else kept * factor
    )


def calibrated_factors(
    params: dict[str, Any],
    windows: np.ndarray,
    hidden: np.ndarray,
    *,
    cfg: DecoderConfig,
    batch: int = 8,
) -> dict[str, float]:
    """mean(r' / r) of every norm on the residual stream, r over all and r' over the kept channels.

    Args:
      params: tree of `decoder.spec(cfg)`.
      windows: int32 [windows, T], calibration tokens.
      hidden: the kept channels.
      cfg: a dense decoder.
      batch: windows computed at once.

    Returns:
      {"<layer>/<norm>": factor, "norm": factor}. Sandwich norms are left to "l2"-like handling by
      the caller: their inputs are branches, which are cut alike, so they are measured too.
    """
    from pangu_jax.pruning.norm_inputs import norm_inputs

    sums: dict[str, list[float]] = {}
    kept = jnp.asarray(hidden)
    for first in range(0, len(windows), batch):
        tokens = jnp.asarray(windows[first : first + batch], jnp.int32)
        for name, value in norm_inputs(params, tokens, cfg=cfg):
            total = sums.setdefault(name, [0.0, 0.0])
            total[0] += float(_ratio(value, kept, cfg.norm_eps))
            total[1] += value.shape[0] * value.shape[1]
    return {name: total / number for name, (total, number) in sums.items()}


@jax.jit
def _ratio(x: jax.Array, kept: jax.Array, eps: float) -> jax.Array:
    x = x.astype(jnp.float32)
    full = jnp.sqrt((x * x).mean(-1) + eps)
    part = jnp.sqrt((x[..., kept] ** 2).mean(-1) + eps)
    return (part / full).sum()


def merge_layers(
    scores: list[np.ndarray],
    drop: list[int],
    *,
    groups: list[int] | None = None,
) -> dict[int, list[tuple[int, int]]]:
    """CLAP: the groups that each kept layer ends up with when the layers `drop` are removed.

    The groups of a kept layer and of the removed ones right after it are ranked in one list by
    their contribution, and the best stay. A removed first layer has no predecessor and hands
    nothing on.

    Args:
      scores: for each layer, float64 [K], comparable between layers
        (`importance.contribution_norms`).
      drop: the layers to remove.
      groups: number of groups that each layer keeps; None leaves it unchanged.

    Returns:
      {kept layer: [(layer, group), ...]}, in order of layer and group.
    """
    removed, merged = set(drop), {}
    for layer in range(len(scores)):
        if layer in removed:
            continue
        pool = [(layer, g) for g in range(len(scores[layer]))]
        after = layer + 1
        while after in removed:
            pool += [(after, g) for g in range(len(scores[after]))]
            after += 1
        number = len(scores[layer]) if groups is None else groups[layer]
        ranked = sorted(pool, key=lambda item: -scores[item[0]][item[1]])
        merged[layer] = sorted(ranked[:number])
    return merged


def moved(
    source: Any,
    part: LayerPlan,
    number: int,
    path: str,
    names: tuple,
    value: jax.Array,
    hidden: dict[str, np.ndarray],
    plan: Plan,
) -> jax.Array:
    """A moved group's leaf, corrected for the norms of the layer it moves to.

    It was trained after the gains of its own layer's norm, so the rows of its query, key and value
    kernels are multiplied by gamma_from / gamma_to; with sandwich norms, the columns of its out
    kernel by the ratio of the factors of those norms.
    """
    layer = part.moved[number][0]
    if not plan.gain_correct:
        return value
    if path in ("attention/query/kernel", "attention/key/kernel", "attention/value/kernel"):
        ratio = _gain_ratio(source, layer, part.layer, "attention_norm/scale", hidden)
        return value * ratio.reshape(-1, *(1,) * (value.ndim - 1)).astype(value.dtype)
    if path == "attention/out/kernel" and part.moved_scale:
        ratio = _gain_ratio(source, layer, part.layer, "attention_post_norm/scale", hidden)
        return value * (ratio * part.moved_scale[number]).astype(value.dtype)
    return value


def _gain_ratio(source, layer, to, path, hidden) -> jax.Array:
    old, new = source.leaf(layer, path), source.leaf(to, path)
    if old is None or new is None:
        return jnp.ones(1, jnp.float32)
    xp = np if isinstance(old, np.ndarray) else jnp
    old, new = old.astype(np.float32), new.astype(np.float32)
    # A gain near zero cannot be divided by; what it scales is lost.
    ratio = xp.where(abs(new) > 1e-6, old / xp.where(new == 0, 1, new), 0.0)
    return ratio[hidden["embed"]] if "embed" in hidden else ratio
