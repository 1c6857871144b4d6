"""The report of a run: one table, the recovery curves, and what they say."""

from pathlib import Path
from typing import Any

import numpy as np

from experiments.pangu_light.config import Experiment
from pangu_jax.study import plot, report
from pangu_jax.study.table import extent, table
from pangu_jax.train.metrics import read_metrics


def write_report(folder: Path, experiment: Experiment, results: dict[str, Any]) -> Path:
    """Draws the plot and writes report.md; returns its path."""
    _plot(folder, experiment, results)
    return report.write(folder, _text(experiment, results))


def _text(experiment: Experiment, results: dict[str, Any]) -> str:
    dense = results["dense"]
    one = results[f"start/{experiment.starts[0]}"]
    head = ("start", "KV groups moved", "before recovery",
            f"after {experiment.recover_tokens:,} tokens", "norms folded", "then")  # fmt: skip
    rows = [_row(name, experiment, results) for name in experiment.starts]
    return f"""# Re-initializing a pruned model

A model of {dense["parameters"]:,} parameters with sandwich norms, cut to {experiment.target}:
layers {report.listed(one["layers"])} of it, width {one["width"]}, {one["sizes"]},
{one["parameters"]:,} parameters, {one["flops"]:.3f} of the FLOPs. Every start has these sizes; they
differ in how the weights are re-initialized. Perplexity on {experiment.eval_windows} held-out
windows of {experiment.length} tokens; dense: {dense["perplexity"]:.3f}.

{table(head, rows)}
{_verdict(experiment, results)}
![recovery](plots/recovery.png)

## Sandwich norms without pruning

{_dense_absorption(dense)}

## Settings

Machine: {report.machine()}. Text: {experiment.data}.
Distillation: KL to the dense model plus the language-modeling loss, seeds
{report.listed(experiment.seeds)}. All settings are in config.json, all figures in
results.json.
"""


def _recovered(name: str, experiment: Experiment, results: dict[str, Any]) -> list[dict]:
    return [results[f"recover/{name}/seed{seed}"] for seed in experiment.seeds]


def _row(name: str, experiment: Experiment, results: dict[str, Any]) -> list[object]:
    start, cells = results[f"start/{name}"], _recovered(name, experiment, results)
    after = extent([c["perplexity"] for c in cells])
    absorbed = cells[0].get("absorbed")
    folded = ["", ""]
    if absorbed:
        folded = [f"{absorbed['layers']} of {absorbed['of']}", f"{absorbed['perplexity']:.3f}"]
    return [name, start["moved"], f"{start['perplexity']:.3f}", after, *folded]


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


def _plot(folder: Path, experiment: Experiment, results: dict[str, Any]) -> None:
    each = experiment.batch * experiment.length
    with plot.figure(folder, "recovery") as panel:
        for i, name in enumerate(experiment.starts):
            for seed in experiment.seeds:
                lines = read_metrics(folder / "recover" / f"{name}-seed{seed}" / "metrics.jsonl")
                points = [
                    (x["step"], x["eval_perplexity"]) for x in lines if "eval_perplexity" in x
                ]
                points = [(0, results[f"start/{name}"]["perplexity"]), *points]
                steps, values = zip(*points, strict=True)
                label = name if seed == experiment.seeds[0] else None
                tokens = np.asarray(steps) * each / 1e6
                panel.plot(tokens, values, marker="o", ms=3, color=f"C{i}", label=label, lw=1)
        panel.axhline(results["dense"]["perplexity"], color="gray", ls=":", lw=0.8)
        panel.set(xlabel="tokens of recovery, millions", ylabel="held-out perplexity", yscale="log")
        plot.guide(panel)
