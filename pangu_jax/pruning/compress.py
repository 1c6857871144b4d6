"""The whole pruning method in one call: a checkpoint and calibration windows to a smaller model.

1. A profile of the dense model, if something needs it: similarity of each layer's input and
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
from typing import Any

import numpy as np

from pangu_jax.core.errors import InputError
from pangu_jax.models.decoder import DecoderConfig
from pangu_jax.nn.how import HOW, How
from pangu_jax.pruning import axes, importance, reinit, taylor
from pangu_jax.pruning import plan as plans
from pangu_jax.pruning import profile as profiles
from pangu_jax.pruning import stats as statistics
from pangu_jax.pruning.allocate import Limits, Target
from pangu_jax.pruning.choose import choose_channels, choose_heads, group_scores
from pangu_jax.pruning.fitted import Fitted, fit, insert_fitted
from pangu_jax.pruning.plan import LayerPlan, LayerScores, Plan
from pangu_jax.pruning.plan_steps import compose, split
from pangu_jax.pruning.profile import Progress
from pangu_jax.pruning.prune import prune
from pangu_jax.pruning.recipe import Recipe
from pangu_jax.pruning.repair import SiteReport
from pangu_jax.pruning.stats import LayerStats, Stats, SweepConfig


@dataclasses.dataclass(frozen=True)
class Result:
    """A pruned model.

    Attributes:
      params: its parameters.
      cfg: its configuration.
      plan: the kept units, replayable.
      sites: {"<original layer>/heads" or "<original layer>/channels": errors}.
    """

    params: dict[str, Any]
    cfg: DecoderConfig
    plan: Plan
    sites: dict[str, SiteReport]


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
      windows: int32 [windows, T], calibration tokens.
      cfg: the model.
      target: the target size; not used with a plan.
      recipe: choice and repair of units.
      limits: limits on widths.
      sweep_cfg: batches and types of the sweeps.
      plan: choose these units instead of scoring; the repair is still fitted to the windows.
      donate: donates `params`, which saves memory.
      progress: called with the activity, layers done, and layers in all.
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
        profile = profiles.measure(params, windows, cfg, target, recipe, say, options)
        depth = profiles.plan_depth(cfg, target, recipe, profile)
        kept = [part.layer for part in depth.layers]
        hidden, small = profiles.shrink(cfg, target, recipe, limits, profile, kept)
        inner, inner_cfg = _cut_depth(params, depth, cfg, donate)
        visitor = _Visitor(
            recipe, small=small, ranks=profiles.global_masks(recipe, profile, kept, small)
        )
    if recipe.method == "taylor" and plan is None:
        say("gradients", 0, 1)
        visitor.saliency = taylor.saliency(
            inner, windows, cfg=inner_cfg, batch=sweep_cfg.batch, how=how
        )
    if plan is None or recipe.repair != "none":
        from threadpoolctl import threadpool_limits  # here, as it sets an environment variable

        # LAPACK's threads spin while they wait for one another. With fewer free cores than threads
        # that takes many times as long as a single thread.
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
        width = _width_plan(visitor, hidden, inner, windows, inner_cfg, cfg, sweep_cfg)
        plan = dataclasses.replace(
            compose(depth, width),
            method=recipe.method,
            target=str(target),
            **_multiples(inner_cfg, limits),
            text_hash=text_hash(windows),
            scores=_by_layer(visitor.scores, kept, len(cfg.layers)),
            similarity=plans.rounded(profile.similarity) if profile else (),
            hidden_scores=profiles.hidden_scores(profile, hidden, cfg),
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
      target: the target size.
      recipe: choice of units; its repair does not matter here.
      limits: limits on widths.

    Raises:
      InputError: the target cannot be met, or removes layers: removing layers and choosing among
        the rest takes two passes, which `compress` does.
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
    profile = profiles.Profile(similarity, list(stats.layers), [], ranked)
    hidden, small = profiles.shrink(cfg, target, recipe, limits, profile, kept)
    ranks = profiles.global_masks(recipe, profile, kept, small)
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


def _width_plan(visitor: _Visitor, hidden, inner, windows, inner_cfg, cfg, sweep_cfg) -> Plan:
    """The sweep's choice, as a plan for the model whose depth is already cut."""
    recipe = visitor.recipe
    sizes = tuple(axes.sizes(layer) for layer in inner_cfg.layers)
    width = Plan(tuple(visitor.parts), hidden, cfg.width, sizes, norm=recipe.norm)
    if recipe.norm != "calibrated" or len(hidden) == cfg.width:
        return width
    factors = reinit.calibrated_factors(
        inner, windows, np.asarray(hidden), cfg=inner_cfg, batch=sweep_cfg.batch
    )
    return dataclasses.replace(width, norm_factors=factors)


def _multiples(cfg, limits: Limits) -> dict[str, int]:
    ffn = limits.step(*(axes.sizes(layer).ffn for layer in cfg.layers))
    return {"ffn_multiple": ffn, "hidden_multiple": limits.step(cfg.width)}


def _cut_depth(params, depth: Plan, cfg, donate):
    parts, whole = depth.layers, len(depth.layers) == len(cfg.layers)
    if whole and not any(part.moved for part in parts):
        return params, cfg
    return prune(params, depth, cfg=cfg, donate=donate)


def _by_layer(scores, kept, number) -> tuple[LayerScores, ...]:
    found = dict(zip(kept, scores, strict=True))
    return tuple(found.get(i, LayerScores()) for i in range(number))
