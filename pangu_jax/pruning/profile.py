"""Statistics of the dense model, and the sizes that follow from them."""

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np

from pangu_jax.core.errors import InputError
from pangu_jax.models.decoder import DecoderConfig
from pangu_jax.pruning import allocate, axes, importance, reinit, taylor
from pangu_jax.pruning import plan as plans
from pangu_jax.pruning import repair as repairs
from pangu_jax.pruning import stats as statistics
from pangu_jax.pruning.allocate import Limits, Target
from pangu_jax.pruning.choose import group_scores
from pangu_jax.pruning.plan import LayerPlan, Plan
from pangu_jax.pruning.recipe import Recipe
from pangu_jax.pruning.stats import LayerStats

Progress = Callable[[str, int, int], None]


@dataclasses.dataclass
class Profile:
    """Statistics from the dense model's sweep; each list has one entry per layer.

    Attributes:
      similarity: cosine similarity of the layer's input and output.
      layers: statistics without moments and weights.
      contributions: norms of what each KV group adds to the residual stream, if layers are removed.
      scores: scores of groups and of channels, where units of all layers compete.
    """

    similarity: list[float]
    layers: list[LayerStats]
    contributions: list[np.ndarray]
    scores: list[tuple[np.ndarray, np.ndarray]]


def measure(
    params: dict[str, Any],
    windows: np.ndarray,
    cfg: DecoderConfig,
    target: Target,
    recipe: Recipe,
    say: Progress,
    options: dict[str, Any],
) -> Profile | None:
    """Sweeps the dense model for just the statistics that are needed; None if none are.

    `options` are those of `stats.sweep`.
    """
    hidden = target.hidden is not None or "hidden" in recipe.axes
    depth = target.layers is not None and target.layers < len(cfg.layers)
    ranked = recipe.allocation == "global"
    if not (hidden or depth or ranked or recipe.allocation == "cosine"):
        return None
    saliency = None
    if ranked and recipe.method == "taylor":
        batch = options["sweep_cfg"].batch
        saliency = taylor.saliency(params, windows, cfg=cfg, batch=batch, how=options["how"])
    found = Profile([], [], [], [])

    def keep(stats: LayerStats):
        index = len(found.similarity)
        found.similarity.append(float(importance.similarities((stats,))[0]))
        if depth:
            found.contributions.append(importance.contribution_norms(stats))
        if ranked:
            if saliency is not None:
                stats = stats.replace(saliency=saliency[index])
            seed = recipe.seed * 1000 + index
            method = recipe.method
            groups = group_scores(method, stats, seed=seed)
            found.scores.append((groups, importance.channel_scores(method, stats, seed=seed)))
        found.layers.append(
            stats.replace(weights=None, heads=None, held_heads=None, channels=None,
                          held_channels=None, saliency=None)
        )  # fmt: skip

    statistics.sweep(
        params,
        windows,
        cfg=cfg,
        propagate="dense",
        second_order=hidden or depth or ranked,
        keep=keep,
        progress=lambda done, total: say("profile", done, total),
        **options,
    )
    return found


def plan_depth(cfg: DecoderConfig, target: Target, recipe: Recipe, profile: Profile | None) -> Plan:
    """Plans the layers to keep, and the groups of removed layers to move.

    Raises:
      InputError: the target number of layers is out of range.
    """
    plan = plans.identity(cfg)
    number = len(cfg.layers) if target.layers is None else target.layers
    if not 1 <= number <= len(cfg.layers):
        raise InputError(f"target layers must be 1 to {len(cfg.layers)}, got {number}")
    if number == len(cfg.layers):
        return plan
    assert profile is not None  # a target of fewer layers is what it was measured for
    # The most similar are removed: they change the residual least (block influence).
    order = np.argsort(-np.asarray(profile.similarity), kind="stable")
    drop = sorted(order[: len(cfg.layers) - number].tolist())
    parts = [part for part in plan.layers if part.layer not in drop]
    if recipe.clap:
        merged = reinit.merge_layers(profile.contributions, drop)
        parts = [_merged(part, merged[part.layer], plan, profile, cfg) for part in parts]
    return dataclasses.replace(plan, layers=tuple(parts), gain_correct=recipe.gain_correct)


def _merged(part: LayerPlan, pool, plan: Plan, profile, cfg) -> LayerPlan:
    groups = tuple(g for layer, g in pool if layer == part.layer)
    moved = tuple((layer, g) for layer, g in pool if layer != part.layer)
    for layer, _ in moved:
        if plan.sizes[layer].heads != plan.sizes[part.layer].heads:
            raise InputError(
                f"layers {part.layer} and {layer} have different numbers of query heads per group, "
                "so CLAP cannot merge them; use clap=False"
            )
    heads = (tuple(range(plan.sizes[part.layer].heads)),) * (len(groups) + len(moved))
    scale: tuple[float, ...] = ()
    if cfg.layers[part.layer].norm_place == "sandwich" and moved:
        rms = [importance.post_rms(s) for s in profile.layers]
        scale = tuple(rms[part.layer] / rms[layer] for layer, _ in moved)
    return LayerPlan(part.layer, groups, heads, part.channels, moved, scale)


def shrink(
    cfg: DecoderConfig,
    target: Target,
    recipe: Recipe,
    limits: Limits,
    profile: Profile | None,
    kept: list[int],
) -> tuple[tuple[int, ...], DecoderConfig]:
    """Kept hidden channels, and the configuration with the widths of the kept layers.

    Raises:
      InputError: the target cannot be met.
    """
    similarity = np.asarray(profile.similarity)[kept] if profile else np.zeros(len(kept))

    def cosine(ratio: float) -> np.ndarray:
        number = recipe.pruned_layers or len(kept)
        mean = min(ratio * len(kept) / number, limits.max_ratio)
        return allocate.layer_ratios(
            similarity, mean, number=number, alpha=recipe.alpha, max_ratio=limits.max_ratio
        )

    shape = cosine if recipe.allocation == "cosine" else None
    limits = dataclasses.replace(limits, equal=limits.equal and recipe.allocation == "equal")
    small = allocate.shrink(
        cfg,
        target,
        prunable_axes=recipe.axes,
        limits=limits,
        shape=shape,
        kept=kept,
        biased=recipe.repair in repairs.BIASED,
    )
    hidden = tuple(range(cfg.width))
    if small.width < cfg.width:
        assert profile is not None
        score = importance.hidden_scores(tuple(profile.layers))
        hidden = tuple(np.sort(np.argsort(-score, kind="stable")[: small.width]).tolist())
    return hidden, small


def hidden_scores(
    profile: Profile | None, hidden: tuple[int, ...], cfg: DecoderConfig
) -> tuple[float, ...]:
    """The scores by which hidden channels were chosen; empty if all stay."""
    if profile is None or len(hidden) == cfg.width:
        return ()
    return plans.rounded(importance.hidden_scores(tuple(profile.layers)))


def global_masks(
    recipe: Recipe, profile: Profile | None, kept: list[int], small: DecoderConfig
) -> list[tuple[np.ndarray, np.ndarray]] | None:
    """FLAP's allocation: units of all layers in one list of standardized scores.

    Returns:
      For each layer bool [K] and bool [F], the groups and the channels to keep, as many over all
      layers as `small` has; None if layers are cut equally.
    """
    if recipe.allocation != "global":
        return None
    assert profile is not None
    scores = [profile.scores[i] for i in kept]
    masks = []
    for axis, name in ((0, "groups"), (1, "ffn")):
        total = sum(getattr(axes.sizes(layer), name) for layer in small.layers)
        rows = [(s[axis] - s[axis].mean()) / max(s[axis].std(), 1e-30) for s in scores]
        best = np.concatenate([np.delete(row, row.argmax()) for row in rows])
        # One unit of each layer always stays; the rest compete.
        rest = total - len(rows)
        line = -np.inf if rest >= len(best) else np.sort(best)[::-1][rest - 1] if rest else np.inf
        masks.append([(row >= line) | (np.arange(len(row)) == row.argmax()) for row in rows])
    return list(zip(*masks, strict=True))
