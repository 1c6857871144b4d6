"""The whole pruning method in one call: a checkpoint and calibration windows to a smaller model.

1. A profile of the dense model, where something needs it: similarity of each layer's input and
   output, importance of hidden channels, global ranks.
2. Depth: the layers of least influence go; with CLAP their best KV groups move one layer down.
3. Widths that meet the target (`allocate.shrink`).
4. A sweep that chooses units and repairs their projections, layer by layer, each layer seeing the
   activations of the layers as already pruned (or, on request, of the dense model).
5. One slicing at the end.

Weights are masked with zero rows during the sweep, so all layers of a run share one compilation.
"""

import dataclasses
import hashlib
import os
from collections.abc import Callable
from typing import Any

import numpy as np

from pangu_jax.core.config import check_choice
from pangu_jax.core.errors import InputError
from pangu_jax.models.decoder import DecoderConfig
from pangu_jax.nn.how import HOW, How
from pangu_jax.pruning import allocate, axes, importance, reinit, taylor
from pangu_jax.pruning import plan as plans
from pangu_jax.pruning import repair as repairs
from pangu_jax.pruning import stats as statistics
from pangu_jax.pruning.allocate import Limits, Target
from pangu_jax.pruning.choose import choose_channels, choose_heads, group_scores
from pangu_jax.pruning.fitted import Fitted, fit, insert_fitted
from pangu_jax.pruning.plan import LayerPlan, LayerScores, Plan
from pangu_jax.pruning.prune import prune
from pangu_jax.pruning.repair import SiteReport
from pangu_jax.pruning.stats import LayerStats, Stats, SweepConfig

Progress = Callable[[str, int, int], None]

# What a params or flops target cuts unless told otherwise.
FREE = {"pangu-light": ("groups", "ffn", "hidden"), "minitron": ("groups", "ffn", "hidden")}


@dataclasses.dataclass(frozen=True)
class Recipe:
    """How units are selected and projections repaired.

    Attributes:
      method: one of `importance.METHODS`.
      repair: one of `repair.METHODS`.
      ridge: of the ridge repairs; None chooses it on held-out windows.
      allocation: "equal" (the same share of each layer), "cosine" (SlimLLM's softmax of
        similarity), or "global" (one threshold on standardized scores, as FLAP).
      alpha: unevenness of "cosine".
      pruned_layers: how many layers "cosine" prunes; None is all.
      propagate: "pruned" (scores and repairs see the pruned layers before) or "dense".
      greedy: whether SlimLLM's swaps are done.
      keep_lowest: share of the least important channels that are kept nevertheless, a quirk of the
        released code (0.01 there).
      free: axes that a params or flops target cuts; empty is the method's own.
      norm: re-initialization of RMSNorm gains when hidden channels go.
      clap: whether removed layers hand their best KV groups on.
      gain_correct: whether those are corrected for the other layer's norm.
      seed: of the random method.
    """

    method: str = "slimllm"
    repair: str = "ridge"
    ridge: float | None = None
    allocation: str = "equal"
    alpha: float = 10.0
    pruned_layers: int | None = None
    propagate: str = "pruned"
    greedy: bool = True
    keep_lowest: float = 0.0
    free: tuple[str, ...] = ()
    norm: str = "l2"
    clap: bool = True
    gain_correct: bool = True
    seed: int = 0

    def __post_init__(self):
        importance.check_method(self.method)
        repairs.check_method(self.repair)
        for name, known in (
            ("allocation", ("equal", "cosine", "global")),
            ("propagate", ("pruned", "dense")),
            ("norm", plans.NORMS),
        ):
            check_choice(name, getattr(self, name), known)
        if not 0 <= self.keep_lowest < 1:
            raise InputError(f"keep_lowest must be in [0, 1), got {self.keep_lowest}")
        if self.ridge is not None and self.ridge < 0:
            raise InputError(f"ridge must not be negative, got {self.ridge}")
        for name in self.free:
            check_choice("a free axis", name, ("groups", "ffn", "hidden"))

    @property
    def axes(self) -> tuple[str, ...]:
        """The axes that a params or flops target cuts."""
        return self.free or FREE.get(self.method, ("groups", "ffn"))


@dataclasses.dataclass(frozen=True)
class Result:
    """A pruned model.

    Attributes:
      params: its parameters.
      cfg: its configuration.
      plan: what stayed, replayable.
      sites: {"<original layer>/heads" or "<original layer>/channels": errors}.
    """

    params: dict[str, Any]
    cfg: DecoderConfig
    plan: Plan
    sites: dict[str, SiteReport]


@dataclasses.dataclass
class _Profile:
    """What the dense model's sweep leaves, one entry per layer."""

    similarity: list
    layers: list  # LayerStats without moments and weights
    contributions: list
    scores: list  # (groups, channels) of the methods that rank globally


def compress(
    params: dict[str, Any],
    windows: np.ndarray,
    *,
    cfg: DecoderConfig,
    target: Target | None = None,
    recipe: Recipe = Recipe(),
    limits: Limits = Limits(),
    sweep_cfg: SweepConfig = SweepConfig(),
    plan: Plan | None = None,
    donate: bool = False,
    progress: Progress | None = None,
    how: How = HOW,
) -> Result:
    """Prunes a model.

    Args:
      params: tree of `decoder.spec(cfg)`, dense layers.
      windows: int32 [N, T], calibration tokens.
      cfg: the model.
      target: what is to be left; not used with a plan.
      recipe: how units are chosen and repaired.
      limits: what widths may be.
      sweep_cfg: batches and types of the sweeps.
      plan: choose these units instead of scoring; the repair is still fitted to the windows.
      donate: donates `params`, which saves memory.
      progress: called with what is being done, layers done, and layers in all.
      how: implementations, and the type of activations.

    Raises:
      InputError: the target cannot be met, the windows do not fit the model, activations are not
        finite, or the plan is for another model.
    """
    options: dict[str, Any] = {"sweep_cfg": sweep_cfg, "how": how}
    say = progress or (lambda *_: None)
    if plan is not None:
        depth, width = split(plans.check(plan, cfg))
        inner, inner_cfg = _cut_depth(params, depth, cfg, donate)
        visitor = _Visitor(recipe, given=width)
    else:
        if target is None:
            raise InputError("compress needs a target or a plan")
        profile = _profile(params, windows, cfg, target, recipe, say, options)
        depth = _plan_depth(cfg, target, recipe, profile)
        kept = [part.layer for part in depth.layers]
        hidden, small = _sizes(cfg, target, recipe, limits, profile, kept)
        inner, inner_cfg = _cut_depth(params, depth, cfg, donate)
        visitor = _Visitor(recipe, small=small, ranks=_global(recipe, profile, kept, small))
    if recipe.method == "taylor" and plan is None:
        say("gradients", 0, 1)
        visitor.saliency = taylor.saliency(
            inner, windows, cfg=inner_cfg, batch=sweep_cfg.batch, how=how
        )
    if plan is None or recipe.repair != "none":
        from threadpoolctl import threadpool_limits  # here, as it sets an environment variable

        # LAPACK's threads spin while they wait for one another. Beside other work they wait long:
        # more than there are cores for then take many times what one alone does.
        with threadpool_limits(max(1, (os.cpu_count() or 1) // 2), user_api="blas"):
            statistics.sweep(
                inner,
                windows,
                cfg=inner_cfg,
                visitor=visitor,
                propagate=recipe.propagate,
                similarity=False,
                progress=lambda done, total: say("pruning", done, total),
                **options,
            )
    if plan is None:
        sizes = tuple(axes.sizes(layer) for layer in inner_cfg.layers)
        width = Plan(tuple(visitor.parts), hidden, cfg.width, sizes, norm=recipe.norm)
        if recipe.norm == "calibrated" and len(hidden) < cfg.width:
            factors = reinit.calibrated_factors(
                inner, windows, np.asarray(hidden), cfg=inner_cfg, batch=sweep_cfg.batch
            )
            width = dataclasses.replace(width, norm_factors=factors)
        plan = dataclasses.replace(
            compose(depth, width),
            method=recipe.method,
            target=str(target),
            **_multiples(inner_cfg, limits),
            text_hash=text_hash(windows),
            scores=_by_layer(visitor.scores, kept, len(cfg.layers)),
            similarity=plans.rounded(profile.similarity) if profile else (),
            hidden_scores=_hidden_scores(profile, hidden, cfg),
        )
    new, new_cfg = prune(inner, width, cfg=inner_cfg, donate=donate)
    new, new_cfg = insert_fitted(new, new_cfg, visitor.fitted, width)
    names = {str(i): str(part.layer) for i, part in enumerate(plan.layers)}
    sites = {f"{names[k.split('/')[0]]}/{k.split('/')[1]}": v for k, v in visitor.sites.items()}
    return Result(new, new_cfg, plan, sites)


def plan(
    stats: Stats,
    target: Target,
    *,
    recipe: Recipe = Recipe(),
    limits: Limits = Limits(),
) -> Plan:
    """The plan that these statistics lead to, without touching a weight.

    Args:
      stats: of the dense model (`stats.collect`), with `saliency` for the Taylor method.
      target: what is to be left.
      recipe: how units are chosen; its repair does not matter here.
      limits: what widths may be.

    Raises:
      InputError: the target cannot be met, or layers are to go: removing layers and choosing
        among what is left takes two passes, which `compress` does.
    """
    cfg = stats.cfg
    if target.layers is not None and target.layers != len(cfg.layers):
        raise InputError("a target of layers takes two passes over the text: use compress")
    kept = list(range(len(cfg.layers)))
    similarity = importance.similarities(stats.layers).tolist()
    ranked = []
    if recipe.allocation == "global":
        for i, layer in enumerate(stats.layers):
            seed = recipe.seed * 1000 + i
            channels = importance.channel_scores(recipe.method, layer, seed=seed)
            ranked.append((group_scores(recipe.method, layer, seed=seed), channels))
    profile = _Profile(similarity, list(stats.layers), [], ranked)
    hidden, small = _sizes(cfg, target, recipe, limits, profile, kept)
    ranks = _global(recipe, profile, kept, small)
    parts, scores = [], []
    for i, layer in enumerate(stats.layers):
        size = axes.sizes(small.layers[i])
        groups, channels = (None, None) if ranks is None else ranks[i]
        chosen = choose_heads(layer, size, recipe, i, groups)
        units, score = choose_channels(layer, size, recipe, i, channels)
        parts.append(LayerPlan(i, chosen.units, chosen.heads, units))
        scores.append(LayerScores(plans.rounded(chosen.scores), plans.rounded(score)))
    return dataclasses.replace(
        plans.identity(cfg),
        layers=tuple(parts),
        hidden=hidden,
        norm=recipe.norm,
        method=recipe.method,
        target=str(target),
        **_multiples(cfg, limits),
        scores=tuple(scores),
        similarity=plans.rounded(similarity),
    )


def text_hash(windows: np.ndarray) -> str:
    """A hash of calibration tokens: 16 hexadecimal digits."""
    flat = np.ascontiguousarray(windows, "<i4")
    return hashlib.sha256(str(flat.shape).encode() + flat.tobytes()).hexdigest()[:16]


def compose(first: Plan, second: Plan) -> Plan:
    """The plan equivalent to `first` followed by `second`; `second` may not remove layers."""
    parts = []
    for inner, outer in zip(first.layers, second.layers, strict=True):
        own, pool = len(inner.groups), [*inner.groups, *inner.moved]
        stays = [g for g in outer.groups if g < own]
        moves = [g for g in outer.groups if g >= own]
        scales = inner.moved_scale or (1.0,) * len(inner.moved)
        heads = [
            tuple(inner.heads[g][h] for h in outer.heads[n]) for n, g in enumerate(outer.groups)
        ]
        parts.append(
            LayerPlan(
                inner.layer,
                tuple(pool[g] for g in stays),
                tuple(heads),
                tuple(inner.channels[c] for c in outer.channels),
                tuple(pool[g] for g in moves),
                tuple(scales[g - own] for g in moves) if inner.moved_scale else (),
            )
        )
    names = {str(i): str(part.layer) for i, part in enumerate(first.layers)}
    factors = {
        "/".join([names.get(k.split("/")[0], k.split("/")[0]), *k.split("/")[1:]]): v
        for k, v in second.norm_factors.items()
    }
    return dataclasses.replace(
        first,
        layers=tuple(parts),
        hidden=second.hidden,
        norm=second.norm,
        norm_factors=factors,
    )


def split(plan: Plan) -> tuple[Plan, Plan]:
    """The inverse of `compose`: what removes and merges layers, and what cuts widths."""
    first, second, sizes = [], [], []
    for part in plan.layers:
        size = plan.sizes[part.layer]
        number = len(part.groups) + len(part.moved)
        every = (tuple(range(size.heads)),) * number
        first.append(
            dataclasses.replace(part, heads=every, channels=tuple(range(size.ffn)))
            if part.moved
            else LayerPlan(
                part.layer,
                tuple(range(size.groups)),
                (tuple(range(size.heads)),) * size.groups,
                tuple(range(size.ffn)),
            )
        )
        sizes.append(axes.Sizes(len(first[-1].heads), size.heads, size.ffn))
        groups = tuple(range(number)) if part.moved else part.groups
        second.append(LayerPlan(len(second), groups, part.heads, part.channels))
    names = {str(part.layer): str(i) for i, part in enumerate(plan.layers)}
    factors = {
        "/".join([names.get(k.split("/")[0], k.split("/")[0]), *k.split("/")[1:]]): v
        for k, v in plan.norm_factors.items()
    }
    whole = tuple(range(plan.width))
    depth = dataclasses.replace(plan, layers=tuple(first), hidden=whole, norm_factors={})
    width = Plan(
        tuple(second), plan.hidden, plan.width, tuple(sizes), plan.norm, norm_factors=factors
    )
    return depth, width


class _Visitor:
    """Chooses and repairs at each site of the sweep."""

    def __init__(self, recipe: Recipe, *, small=None, ranks=None, given: Plan | None = None):
        self.recipe, self.small, self.ranks, self.given = recipe, small, ranks, given
        self.saliency: list | None = None
        self.parts: list[LayerPlan] = []
        self.scores: list[LayerScores] = []
        self.fitted: dict[str, Fitted] = {}
        self.sites: dict[str, SiteReport] = {}

    def heads(self, layer: int, stats: LayerStats):
        if self.given is not None:
            self.part = self.given.layers[layer]
        else:
            stats = self._with_saliency(layer, stats)
            size = axes.sizes(self.small.layers[layer])
            mask = None if self.ranks is None else self.ranks[layer][0]
            chosen = choose_heads(stats, size, self.recipe, layer, mask)
            self.part = LayerPlan(layer, chosen.units, chosen.heads, ())
            self.group_scores = plans.rounded(chosen.scores)
        return self._fit(layer, "heads", stats)

    def channels(self, layer: int, stats: LayerStats):
        if self.given is None:
            stats = self._with_saliency(layer, stats)
            size = axes.sizes(self.small.layers[layer])
            mask = None if self.ranks is None else self.ranks[layer][1]
            units, scores = choose_channels(stats, size, self.recipe, layer, mask)
            self.part = dataclasses.replace(self.part, channels=units)
            self.parts.append(self.part)
            self.scores.append(LayerScores(self.group_scores, plans.rounded(scores)))
        return self._fit(layer, "channels", stats)

    def _fit(self, layer: int, site: str, stats: LayerStats):
        recipe = self.recipe
        fitted, masked, report = fit(
            stats, site, self.part, method=recipe.repair, ridge=recipe.ridge, donate=True
        )
        if fitted is not None:
            self.sites[f"{layer}/{site}"] = report
            if recipe.repair != "none":
                self.fitted[f"{layer}/{site}"] = fitted
        return masked

    def _with_saliency(self, layer: int, stats: LayerStats) -> LayerStats:
        return stats if self.saliency is None else stats.replace(saliency=self.saliency[layer])


def _profile(params, windows, cfg, target, recipe, say, options) -> _Profile | None:
    """A sweep over the dense model, as light as what needs it allows; None where nothing does."""
    hidden = target.hidden is not None or "hidden" in recipe.axes
    depth = target.layers is not None and target.layers < len(cfg.layers)
    ranked = recipe.allocation == "global"
    if not (hidden or depth or ranked or recipe.allocation == "cosine"):
        return None
    saliency = None
    if ranked and recipe.method == "taylor":
        batch = options["sweep_cfg"].batch
        saliency = taylor.saliency(params, windows, cfg=cfg, batch=batch, how=options["how"])
    found = _Profile([], [], [], [])

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


def _plan_depth(cfg, target, recipe, profile) -> Plan:
    """Which layers stay, and which groups of removed ones move."""
    plan = plans.identity(cfg)
    number = len(cfg.layers) if target.layers is None else target.layers
    if not 1 <= number <= len(cfg.layers):
        raise InputError(f"target layers must be 1 to {len(cfg.layers)}, got {number}")
    if number == len(cfg.layers):
        return plan
    # The most similar go: they change the residual least (block influence).
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


def _sizes(cfg, target, recipe, limits, profile, kept):
    """Kept hidden channels, and the configuration whose widths the layers are to have."""
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
        free=recipe.axes,
        limits=limits,
        shape=shape,
        kept=kept,
        biased=recipe.repair in repairs.BIASED,
    )
    hidden = tuple(range(cfg.width))
    if small.width < cfg.width:
        score = importance.hidden_scores(tuple(profile.layers))
        hidden = tuple(np.sort(np.argsort(-score, kind="stable")[: small.width]).tolist())
    return hidden, small


def _multiples(cfg, limits: Limits) -> dict[str, int]:
    ffn = limits.step(*(axes.sizes(layer).ffn for layer in cfg.layers))
    return {"ffn_multiple": ffn, "hidden_multiple": limits.step(cfg.width)}


def _hidden_scores(profile: _Profile | None, hidden, cfg) -> tuple[float, ...]:
    if profile is None or len(hidden) == cfg.width:
        return ()
    return plans.rounded(importance.hidden_scores(tuple(profile.layers)))


def _global(recipe: Recipe, profile, kept, small):
    """FLAP's allocation: units of all layers in one list of standardized scores.

    The number of groups and channels over all layers is that of `small`; returned are the scores
    with those below the threshold set to -inf, so that each layer keeps what is above.
    """
    if recipe.allocation != "global":
        return None
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


def _cut_depth(params, depth: Plan, cfg, donate):
    parts, whole = depth.layers, len(depth.layers) == len(cfg.layers)
    if whole and not any(part.moved for part in parts):
        return params, cfg
    return prune(params, depth, cfg=cfg, donate=donate)


def _by_layer(scores, kept, number) -> tuple[LayerScores, ...]:
    found = dict(zip(kept, scores, strict=True))
    return tuple(found.get(i, LayerScores()) for i in range(number))
