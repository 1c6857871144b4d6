"""Repaired projections: fitted to statistics, kept apart, then inserted into a pruned model."""

import dataclasses
from typing import Any

import numpy as np
from einops import repeat

from pangu_jax.core.errors import InputError
from pangu_jax.core.spec import check
from pangu_jax.models import decoder, transformer
from pangu_jax.models.decoder import DecoderConfig
from pangu_jax.pruning import axes
from pangu_jax.pruning import repair as repairs
from pangu_jax.pruning.plan import LayerPlan, Plan
from pangu_jax.pruning.stats import LayerStats, Stats

# Where the statistics have it, the branch, and the branch's last projection.
SITES = (("heads", "attention", "out"), ("channels", "mlp", "down"))


@dataclasses.dataclass(frozen=True)
class Fitted:
    """A repaired projection of one layer, in host memory: kept rows [U', D] only, and bias [D]."""

    kernel: np.ndarray
    bias: np.ndarray | None


def fit(
    stats: LayerStats,
    site: str,
    part: LayerPlan,
    *,
    method: str,
    ridge: float | None,
    donate: bool = False,
) -> tuple[Fitted | None, dict[str, Any] | None, repairs.SiteReport | None]:
    """Fits one projection of one layer to its kept inputs.

    Args:
      stats: the layer's.
      site: "heads" or "channels".
      part: the layer's plan, without moved groups.
      method: of the repair.
      ridge: see `repair.fit`.
      donate: donates the statistics of the site, which saves memory.

    Returns:
      The projection for the pruned model, the projection at the dense shape with zero rows, and
      the errors; all None if everything is kept.
    """
    _, branch, name = next(s for s in SITES if s[0] == site)
    projection = stats.weights[branch][name]
    kernel = projection["kernel"]
    keep = kept_rows(part, site, kernel.shape)
    if keep.all():
        return None, None, None
    sums, held = getattr(stats, site), getattr(stats, f"held_{site}")
    flat = kernel.reshape(-1, kernel.shape[-1])
    new, bias, report = repairs.fit(
        sums,
        held,
        flat,
        projection.get("bias"),
        keep,
        method=method,
        ridge=ridge,
        donate=donate,
    )
    masked = {"kernel": new.reshape(kernel.shape)}
    masked = masked if bias is None else {**masked, "bias": bias}
    fitted = Fitted(np.asarray(new)[keep], None if bias is None else np.asarray(bias))
    return fitted, masked, report


def kept_rows(part: LayerPlan, site: str, shape: tuple[int, ...]) -> np.ndarray:
    """Marks the inputs of a projection that are kept: bool [U].

    Args:
      part: the layer's plan.
      site: "heads" or "channels".
      shape: of the projection's kernel: [K, Q, C, D] (Q query heads per KV head) or [F, D]; its
        inputs, U in all, are those of all axes but D.
    """
    if site == "channels":
        keep = np.zeros(shape[0], bool)
        keep[list(part.channels)] = True
        return keep
    heads = np.zeros(shape[:2], bool)
    for group, kept in zip(part.groups, part.heads, strict=True):
        heads[group, list(kept)] = True
    return repeat(heads, "k q -> (k q c)", c=shape[2])


def insert_fitted(
    params: dict[str, Any], cfg: DecoderConfig, fitted: dict[str, Fitted], plan: Plan
) -> tuple[dict[str, Any], DecoderConfig]:
    """Inserts repaired projections into a pruned model.

    A bias in one layer gives every layer a bias, so that equal layers stay equal.

    Args:
      params: the pruned model, tree of `decoder.spec(cfg)`.
      cfg: its configuration.
      fitted: by "<layer>/heads" and "<layer>/channels", layers counted in the pruned model.
      plan: its kept hidden channels select the columns.
    """
    if not fitted:
        return params, cfg
    hidden = np.asarray(plan.hidden)
    biased = {
        site: any(f.bias is not None for k, f in fitted.items() if site in k) for site, *_ in SITES
    }
    layers = []
    for layer in cfg.layers:
        attention = dataclasses.replace(
            layer.attention, out_bias=layer.attention.out_bias or biased["heads"]
        )
        mlp = dataclasses.replace(layer.mlp, out_bias=layer.mlp.out_bias or biased["channels"])
        layers.append(dataclasses.replace(layer, attention=attention, mlp=mlp))
    new_cfg = dataclasses.replace(cfg, layers=tuple(layers))
    runs, start = [], 0
    for run, (_, number) in zip(params["runs"], transformer.run_lengths(cfg), strict=True):
        run = dict(run)
        for site, branch, name in SITES:
            old = run[branch][name]
            found = [fitted.get(f"{start + i}/{site}") for i in range(number)]
            run[branch] = {**run[branch], name: _stacked(old, found, hidden, biased[site])}
        runs.append(run)
        start += number
    tree = {**params, "runs": runs}
    return check(decoder.spec(new_cfg), tree), new_cfg


def repair(
    params: dict[str, Any],
    stats: Stats,
    plan: Plan,
    *,
    cfg: DecoderConfig,
    method: str = "ridge",
    ridge: float | None = None,
) -> tuple[dict[str, Any], DecoderConfig]:
    """Fits the projections of a pruned model to the statistics of the original one.

    Args:
      params: the result of `prune`.
      stats: of the original model (`stats.collect`), or along the pruned path.
      plan: the plan that was applied, without removed or merged layers.
      cfg: of the pruned model.
      method: of `repair.METHODS`.
      ridge: see `repair.fit`.

    Returns:
      The repaired model and its configuration, which has biases if the method adds some.

    Raises:
      InputError: the plan moves groups between layers: collect statistics of the merged model
        instead, which `compress` does.
    """
    if any(part.moved for part in plan.layers):
        raise InputError(
            "the plan moves groups between layers; repair needs statistics of the merged model"
        )
    found = {}
    for i, part in enumerate(plan.layers):
        for site, *_ in SITES:
            one, _, _ = fit(stats.layers[part.layer], site, part, method=method, ridge=ridge)
            if one is not None:
                found[f"{i}/{site}"] = one
    return insert_fitted(params, cfg, found, plan)


def _stacked(old, found, hidden, biased) -> dict[str, Any]:
    """The run's projection with the fitted layers replaced."""
    kernel = axes.host_view(old["kernel"])
    kernels = [
        kernel[i] if f is None else f.kernel[:, hidden].reshape(kernel.shape[1:])
        for i, f in enumerate(found)
    ]
    new = {"kernel": axes.stack(kernels)}
    if biased or "bias" in old:
        empty = np.zeros((len(found), kernel.shape[-1]), kernel.dtype)
        before = axes.host_view(old["bias"]) if "bias" in old else empty
        biases = [
            before[i] if f is None or f.bias is None else f.bias[hidden]
            for i, f in enumerate(found)
        ]
        new["bias"] = axes.stack(biases)
    return new
