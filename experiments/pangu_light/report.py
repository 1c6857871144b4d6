"""The report of a run: one table, the recovery curves, and what they say."""

import platform
from pathlib import Path
from typing import Any

import jax
import matplotlib
import numpy as np
from config import Experiment

from pangu_jax.core.files import atomic_write
from pangu_jax.train.metrics import read_metrics

matplotlib.use("Agg")
import matplotlib.pyplot as plt


def write_report(folder: Path, experiment: Experiment, results: dict[str, Any]) -> Path:
    """Draws the plot and writes report.md; returns its path."""
    (folder / "plots").mkdir(parents=True, exist_ok=True)
    _plot(folder / "plots" / "recovery.png", folder, experiment, results)
    path = folder / "report.md"
    with atomic_write(path) as file:
        file.write(_text(experiment, results))
    return path


def _text(experiment: Experiment, results: dict[str, Any]) -> str:
    dense, device = results["dense"], jax.devices()[0]
    one = results[f"start/{experiment.starts[0]}"]
    tokens = experiment.recover_steps * experiment.batch * experiment.length
    rows = "\n".join(_row(name, experiment, results) for name in experiment.starts)
    return f"""# Re-initialising a pruned model

A model of {dense["parameters"]:,} parameters with sandwich norms, cut to {experiment.target}:
layers {", ".join(map(str, one["layers"]))} of it, width {one["width"]}, {one["sizes"]},
{one["parameters"]:,} parameters, {one["flops"]:.3f} of the FLOPs. Every start has these sizes; they
differ in how the weights are re-initialised. Perplexity on {experiment.eval_windows} held-out
windows of {experiment.length} tokens; dense: {dense["perplexity"]:.3f}.

| start | KV groups moved | before recovery | after {tokens:,} tokens | norms folded | then |
|---|---|---|---|---|---|
{rows}
{_verdict(experiment, results)}
![recovery](plots/recovery.png)

## Sandwich norms without pruning

{_dense_absorption(dense)}

## Settings

Machine: {device.device_kind}, {platform.machine()}, jax {jax.__version__}. Text: {experiment.data}.
Distillation: KL to the dense model plus the language-modelling loss, seeds
{", ".join(map(str, experiment.seeds))}. All settings are in config.json, all figures in
results.json.
"""


def _recovered(name: str, experiment: Experiment, results: dict[str, Any]) -> list[dict]:
    return [results[f"recover/{name}/seed{seed}"] for seed in experiment.seeds]


def _row(name: str, experiment: Experiment, results: dict[str, Any]) -> str:
    start, cells = results[f"start/{name}"], _recovered(name, experiment, results)
    after = [c["perplexity"] for c in cells]
    spread = f" ({min(after):.3f}-{max(after):.3f})" if len(after) > 1 else ""
    absorbed = cells[0].get("absorbed")
    folded = ["", ""]
    if absorbed:
        folded = [f"{absorbed['layers']} of {absorbed['of']}", f"{absorbed['perplexity']:.3f}"]
    return (
        f"| {name} | {start['moved']} | {start['perplexity']:.3f} | {np.mean(after):.3f}{spread} "
        f"| {folded[0]} | {folded[1]} |"
    )


def _verdict(experiment: Experiment, results: dict[str, Any]) -> str:
    if not {"plain", "clap+slnp"} <= set(experiment.starts):
        return ""
    lines = []
    for when, value in (
        ("before recovery", lambda n: results[f"start/{n}"]["perplexity"]),
        (
            "after it",
            lambda n: np.mean([c["perplexity"] for c in _recovered(n, experiment, results)]),
        ),
    ):
        plain, paper = value("plain"), value("clap+slnp")
        best = min(experiment.starts, key=value)
        verb = "is below" if paper < plain else "is NOT below"
        lines.append(
            f"- {when}: clap+slnp ({paper:.3f}) {verb} plain cutting ({plain:.3f}); best is {best} "
            f"({value(best):.3f})"
        )
    return "\n" + "\n".join(lines) + "\n"


def _dense_absorption(dense: dict[str, Any]) -> str:
    absorbed = dense.get("absorbed")
    if not absorbed:
        return "The model has none."
    errors = list(absorbed["errors"].values())
    return (
        f"Folding the norms of {absorbed['layers']} of {absorbed['of']} layers of the dense model "
        f"takes its perplexity from {dense['perplexity']:.3f} to {absorbed['perplexity']:.3f}; the "
        f"relative squared error of a norm is {min(errors):.3g} to {max(errors):.3g}."
    )


def _plot(path: Path, folder: Path, experiment: Experiment, results: dict[str, Any]) -> None:
    figure, panel = plt.subplots(figsize=(7, 4))
    each = experiment.batch * experiment.length
    for i, name in enumerate(experiment.starts):
        for seed in experiment.seeds:
            lines = read_metrics(folder / "recover" / f"{name}-seed{seed}" / "metrics.jsonl")
            points = [(x["step"], x["eval_perplexity"]) for x in lines if "eval_perplexity" in x]
            points = [(0, results[f"start/{name}"]["perplexity"]), *points]
            steps, values = zip(*points, strict=True)
            label = name if seed == experiment.seeds[0] else None
            tokens = np.asarray(steps) * each / 1e6
            panel.plot(tokens, values, marker="o", ms=3, color=f"C{i}", label=label, lw=1)
    panel.axhline(results["dense"]["perplexity"], color="grey", ls=":", lw=0.8)
    panel.set(xlabel="tokens of recovery, millions", ylabel="held-out perplexity", yscale="log")
    panel.grid(alpha=0.3)
    panel.legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    plt.close(figure)
