"""report.md of a pruned checkpoint, with its plot."""

from pathlib import Path
from typing import Any

import jax
import numpy as np

from pangu_jax.models.decoder import DecoderConfig, cache_bytes
from pangu_jax.pruning import axes
from pangu_jax.pruning.compress import Result
from pangu_jax.study import plot, report
from pangu_jax.study.table import table


def write(folder: Path, result: Result, cfg: DecoderConfig, facts: dict[str, Any]) -> None:
    """Draws plots/ratios.png and writes report.md into the folder."""
    _plot(folder, result, cfg)
    report.write(folder, _text(result, cfg, facts))


def _text(result: Result, cfg: DecoderConfig, facts: dict[str, Any]) -> str:
    recipe, plan, length = facts["recipe"], result.plan, facts["length"]
    sizes = {
        "parameters": axes.parameters,
        f"FLOPs per token (context {length})": lambda cfg: axes.flops(cfg, length),
        "KV cache bytes per token (16 bit)": cache_bytes,
    }
    rows = [_row(name, size(cfg), size(result.cfg)) for name, size in sizes.items()]
    if facts["before"] is not None:
        before, after = facts["before"], facts["after"]
        rows.append(("perplexity", f"{before:.4f}", f"{after:.4f}", f"{after / before:.3f}"))
    padded = ""
    if axes.parameters(facts["written_cfg"]) != axes.parameters(result.cfg):
        padded = (
            f"\nThe files hold {axes.parameters(facts['written_cfg']):,} parameters, zero biases "
            "or padding that the layout asks for among them.\n"
        )
    return f"""# {plan.method or "replayed"}: {plan.target or "plan"}

{table(("", "before", "after", "ratio"), rows)}
{padded}
FFN widths are multiples of {plan.ffn_multiple}, the hidden width is one of {plan.hidden_multiple}.
Repair: {recipe.repair}. Allocation: {recipe.allocation}. Propagation: {recipe.propagate}.
Written as {facts["written_family"]}; loaded back, its logits differ by {facts["difference"]:.1g}
relative. {facts["seconds"]:.0f} s on {jax.devices()[0].device_kind}.

## Protocol

{_protocol(facts)}
Model hash {plan.model_hash}, calibration hash {plan.text_hash}.

## Layers

![what stays of each layer](plots/ratios.png)

{_layers(result)}

## Error of each cut projection on the calibration tokens

Mean squared error relative to the variance of the projection's output; the ridge was chosen on
held-out windows, whose error is in the last column.

{_sites(result)}
{_absorbed(facts["absorbed"])}"""


def _row(name: str, before: float, after: float) -> tuple[str, ...]:
    return name, f"{before:,.0f}", f"{after:,.0f}", f"{after / before:.4f}"


def _protocol(facts: dict[str, Any]) -> str:
    text, length = facts["text"], facts["length"]
    if text is None:
        return "No text: units were taken from the plan, nothing was repaired or measured."
    order = "first" if facts["options"].seed is None else f"random (seed {facts['options'].seed})"
    return (
        f"Calibration: the {order} {len(text.calibration)} windows of {length} tokens of "
        f"{text.name}, each headed by {text.head or 'no begin token'}. Perplexity: the "
        f"{len(text.evaluation)} windows after them, every token but the first of each window "
        "predicted once."
    )


def _layers(result: Result) -> str:
    rows, plan = [], result.plan
    for part in plan.layers:
        size = plan.sizes[part.layer]
        moved = f" ({len(part.moved)} moved in)" if part.moved else ""
        similar = f"{plan.similarity[part.layer]:.3f}" if plan.similarity else ""
        groups = f"{len(part.heads)} of {size.groups}{moved}"
        heads = f"{len(part.heads[0])} of {size.heads}"
        channels = f"{len(part.channels)} of {size.ffn}"
        rows.append((part.layer, groups, heads, channels, similar))
    gone = sorted(set(range(len(plan.sizes))) - {part.layer for part in plan.layers})
    rows += [(layer, "removed", "", "", "") for layer in gone]
    units = ("KV groups", "query heads per group", "FFN channels")
    return table(("layer", *units, "similarity of input and output"), rows)


def _sites(result: Result) -> str:
    rows = []
    for name, site in result.sites.items():
        scale = max(site.output, 1e-30)
        held = "" if site.held_out is None else f"{site.held_out / scale:.4f}"
        ridge = "" if site.ridge is None else f"{site.ridge:g}"
        errors = (f"{site.cut / scale:.4f}", f"{site.repaired / scale:.4f}")
        rows.append((name, *errors, ridge, held))
    return table(("site", "cut", "repaired", "ridge", "held out"), rows)


def _absorbed(found: dict[str, float]) -> str:
    if not found:
        return ""
    rows = [(name, f"{error:.2e}") for name, error in found.items()]
    return f"\n## Sandwich norms folded\n\n{table(('norm', 'relative squared error'), rows)}\n"


def _plot(folder: Path, result: Result, cfg: DecoderConfig) -> None:
    plan, number = result.plan, len(cfg.layers)
    kept = {part.layer: part for part in plan.layers}
    place = np.arange(number)
    shares = {
        "KV groups": lambda p, s: len(p.heads) / s.groups,
        "FFN channels": lambda p, s: len(p.channels) / s.ffn,
    }
    with plot.figure(folder, "ratios", figsize=(7, 3.2)) as panel:
        for offset, (label, share) in zip((-0.2, 0.2), shares.items(), strict=True):
            values = [share(kept[i], plan.sizes[i]) if i in kept else 0.0 for i in range(number)]
            panel.bar(place + offset, values, 0.4, label=label)
        panel.axhline(1, color="black", lw=0.6)
        panel.set(xlabel="layer", ylabel="share that stays", ylim=(0, 1.15))
        panel.legend(fontsize=8, ncols=2, loc="upper right")
