"""The report of a run: one table, the recovery curves, and what they say."""

from pathlib import Path
from typing import Any

import numpy as np

from experiments.pangu_light.config import Experiment
from pangu_jax.study import plot, report
from pangu_jax.study.table import extent, table


def name_of(target: str, start: str, seed: int) -> str:
    """The name of a pruned model's cell."""
    return f"{target}-{start}-seed{seed}"


def write_report(folder: Path, experiment: Experiment, results: dict[str, Any]) -> Path:
    """Draws the plot and writes report.md; returns its path."""
    _plot(folder, experiment, results)
    return report.write(folder, _text(experiment, results))


def _text(experiment: Experiment, results: dict[str, Any]) -> str:
    dense = results["dense"]
    tables = "\n".join(_table(t, experiment, results) for t in experiment.targets)
    asked = "".join(f" {name.removesuffix('_accuracy')} {dense[name]:.3f}" for name in _sets(dense))
    return f"""# Re-initializing a pruned model

A model of {dense["parameters"]:,} parameters, cut to every target. Every start of a target has the
same sizes; they differ in how the weights are re-initialized. Perplexity on
{experiment.eval_windows} held-out windows of {experiment.length} tokens; dense:
{dense["perplexity"]:.3f}.{" Accuracies of the dense model:" + asked + "." if asked else ""}
Figures are means over the seeds that are done, with their range.
{tables}
![recovery](plots/recovery.png)

## Sandwich norms without pruning

{_dense_absorption(dense)}

## Settings

Machine: {report.machine()}. Text: {experiment.data}.
Distillation: KL to the dense model plus the language-modeling loss, seeds
{report.listed(experiment.seeds)}; {len(results)} of
{1 + len(experiment.targets) * len(experiment.starts) * len(experiment.seeds)} cells. All settings
are in config.json, all figures in results.json.
"""


def _sets(cell: dict[str, Any]) -> list[str]:
    return [name for name in cell if name.endswith("_accuracy")]


def _seeds(target: str, start: str, experiment: Experiment, results) -> list[dict]:
    """The cells of the seeds that are done."""
    names = [name_of(target, start, seed) for seed in experiment.seeds]
    return [results[name] for name in names if name in results]


def _table(target: str, experiment: Experiment, results: dict[str, Any]) -> str:
    found = {s: _seeds(target, s, experiment, results) for s in experiment.starts}
    found = {start: cells for start, cells in found.items() if cells}
    if not found:
        return f"\n## {target}\n\nNo cell is done.\n"
    one, dense = next(iter(found.values()))[0], results["dense"]
    asked = _sets(dense)
    head = ["start", "KV groups moved", "before recovery",
            f"after {experiment.recover_tokens:,} tokens"]  # fmt: skip
    for name in asked:
        chance = dense[name.replace("_accuracy", "_chance")]
        title = f"{name.removesuffix('_accuracy')} (chance {chance:.3f})"
        head += [f"{title} before", "after"]
    folded = "absorbed" in one["recovered"]
    rows = [_row(start, cells, asked) for start, cells in found.items()]
    return f"""
## {target}

Layers {report.listed(one["layers"])} of it, width {one["width"]}, {one["sizes"]},
{one["parameters"]:,} parameters, {one["flops"]:.3f} of the FLOPs.

{table([*head, *(["norms folded", "then"] if folded else [])], rows)}
{_verdict(found)}"""


def _row(start: str, cells: list[dict], asked: list[str]) -> list[object]:
    after = [cell["recovered"] for cell in cells]
    row = [
        start,
        cells[0]["moved"],
        extent([cell["perplexity"] for cell in cells]),
        extent([cell["perplexity"] for cell in after]),
    ]
    for name in asked:
        row += [extent([cell[name] for cell in part]) for part in (cells, after)]
    absorbed = after[0].get("absorbed")
    if absorbed:
        row += [f"{absorbed['layers']} of {absorbed['of']}", f"{absorbed['perplexity']:.3f}"]
    return row


def _verdict(found: dict[str, list[dict]]) -> str:
    if not {"plain", "clap+slnp"} <= found.keys():
        return ""
    lines = []
    for when, value in (
        ("before recovery", lambda cell: cell["perplexity"]),
        ("after it", lambda cell: cell["recovered"]["perplexity"]),
    ):
        means = {start: np.mean([value(c) for c in cells]) for start, cells in found.items()}
        plain, paper = means["plain"], means["clap+slnp"]
        best = min(means, key=means.__getitem__)
        verb = "is below" if paper < plain else "is NOT below"
        lines.append(
            f"- {when}: clap+slnp ({paper:.3f}) {verb} plain cutting ({plain:.3f}); best is {best} "
            f"({means[best]:.3f})"
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
    number = len(experiment.targets)
    size = (4.5 * number + 1.5, 4.2)
    with plot.figure(folder, "recovery", 1, number, figsize=size, squeeze=False) as panels:
        for panel, target in zip(panels[0], experiment.targets, strict=True):
            for i, start in enumerate(experiment.starts):
                for seed in experiment.seeds:
                    name = name_of(target, start, seed)
                    if name in results:
                        tokens, values = _curve(name, experiment, results)
                        label = start if seed == experiment.seeds[0] else None
                        panel.plot(
                            tokens, values, marker="o", ms=3, color=f"C{i}", label=label, lw=1
                        )
            panel.axhline(results["dense"]["perplexity"], color="gray", ls=":", lw=0.8)
            panel.set(
                xlabel="tokens of recovery, millions",
                ylabel="held-out perplexity",
                yscale="log",
                title=target,
            )
            plot.guide(panel)


def _curve(name: str, experiment: Experiment, results) -> tuple[Any, list[float]]:
    """Millions of tokens, and the perplexity after them."""
    points = [(0, results[name]["perplexity"]), *results[name].get("curve", ())]
    if points[-1][0] != experiment.recover_steps:
        points.append((experiment.recover_steps, results[name]["recovered"]["perplexity"]))
    steps, values = zip(*points, strict=True)
    return np.asarray(steps) * experiment.batch * experiment.length / 1e6, list(values)
