"""The report of a run: tables by target, two plots, and what they say."""

from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.ticker import NullFormatter

from experiments.slimllm.config import Experiment
from pangu_jax.study import plot, report
from pangu_jax.study.table import extent, table


def name_of(target: str, method: str, repair: str, draw: int) -> str:
    """The name of a pruned model's cell."""
    return f"{target}-{method}-{repair}-draw{draw}"


def write_report(folder: Path, experiment: Experiment, results: dict[str, Any]) -> Path:
    """Draws the plot and writes report.md; returns its path."""
    _plot(folder, experiment, results)
    return report.write(folder, _text(experiment, results))


def _text(experiment: Experiment, results: dict[str, Any]) -> str:
    dense = results["dense"]
    tables = "\n".join(_table(t, experiment, results) for t in experiment.targets)
    return f"""# Structured pruning, method by method

One model of {dense["parameters"]:,} parameters, pruned without training to several sizes by several
methods; {experiment.draws} calibration draws of {experiment.windows} windows of
{experiment.window_length} tokens each, disjoint from one another and from the measured text.
Perplexity (less is better) on the same held-out tokens at context lengths
{report.listed(experiment.eval_lengths)}: mean over draws, and the range where there are
several. Dense: {_numbers(dense)}.

"method + repair": a method with the repair of its own paper, or with our ridge.
{_verdict(experiment, results)}
{tables}

![perplexity by method](plots/perplexity.png)

{_recovery(experiment, results)}
## Settings

Machine: {report.machine()}. Text: {experiment.data}.
{_missing(experiment, results)}Prefill, where it was timed: the least of ten, batch and length
{experiment.latency}. All settings are in config.json, all figures in results.json.
"""


def _missing(experiment: Experiment, results: dict[str, Any]) -> str:
    all_of_them = 1 + len(experiment.targets) * len(experiment.methods) * experiment.draws
    if len(results) >= all_of_them:
        return ""
    return f"Only {len(results)} of {all_of_them} cells are done. "


def _draws(target, method, repair, experiment, results) -> list[dict]:
    """The cells of the draws that are done."""
    names = [name_of(target, method, repair, draw) for draw in range(experiment.draws)]
    return [results[name] for name in names if name in results]


def _models(target, experiment, results) -> dict[str, list[dict]]:
    """The cells of every method and repair of a target that has some, by their name in words."""
    found = {
        f"{method} + {repair}": _draws(target, method, repair, experiment, results)
        for method, repair in experiment.methods
    }
    return {name: cells for name, cells in found.items() if cells}


def _table(target: str, experiment: Experiment, results: dict[str, Any]) -> str:
    dense = results["dense"]
    head = [*_quality_head(experiment, dense), "error cut", "error repaired", "parameters"]
    head += ["FLOP ratio", *(["prefill speed-up"] if "prefill_ms" in dense else [])]
    rows = []
    for name, cells in _models(target, experiment, results).items():
        one = cells[0]
        row = [
            *(name, *_quality(cells, dense)),
            f"{np.mean([c['error_cut'] for c in cells]):.4f}",
            f"{np.mean([c['error_repaired'] for c in cells]):.4f}",
            f"{one['parameters'] / dense['parameters']:.3f}",
            f"{dense['flops'] / one['flops']:.2f}",
        ]
        if "prefill_ms" in dense:
            row.append(f"{one['dense_prefill_ms'] / one['prefill_ms']:.2f}")
        rows.append(row)
    return f"\n## {target}\n\n{table(head, rows)}"


def _quality_head(experiment: Experiment, dense: dict[str, Any]) -> list[str]:
    names = [t for t in ("own", "other") if t in dense]
    asked = [name for name in dense if name.endswith("_accuracy")]
    return [
        "method + repair",
        *(f"{t}, {n}" for t in names for n in experiment.eval_lengths),
        *(_question_set(name, dense) for name in asked),
    ]


def _quality(cells: list[dict], dense: dict[str, Any]) -> list[str]:
    """Perplexities and accuracies over the draws, in the order of `_quality_head`."""
    columns = [
        [cell[text][i] for cell in cells]
        for text in ("own", "other")
        if text in dense
        for i in range(len(dense[text]))
    ]
    asked = [name for name in dense if name.endswith("_accuracy")]
    return [*map(extent, [*columns, *([cell[name] for cell in cells] for name in asked)])]


def _verdict(experiment: Experiment, results: dict[str, Any]) -> str:
    before = {t: _models(t, experiment, results) for t in experiment.targets}
    after = {t: _recovered(t, experiment, results) for t in experiment.recover}
    parts = []
    for when, by_target in (("Before recovery", before), ("After it", after)):
        lines = [_best(target, models) for target, models in by_target.items() if models]
        if lines:
            parts.append(f"\n{when}, at the longest context:\n\n" + "\n".join(lines) + "\n")
    return "".join(parts)


def _best(target: str, models: dict[str, list[dict]]) -> str:
    means = {n: np.mean([cell["own"][-1] for cell in cells]) for n, cells in models.items()}
    best = min(means, key=means.__getitem__)
    text = f"- {target}: {best} is best ({means[best]:.3f})"
    if "slimllm + ridge" in means and best != "slimllm + ridge":
        text += f"; slimllm + ridge has {means['slimllm + ridge']:.3f}"
    return text


def _recovered(target, experiment, results) -> dict[str, list[dict]]:
    """What was measured after recovery, by method and repair in words."""
    found = {
        name: [cell["recovered"] for cell in cells if "recovered" in cell]
        for name, cells in _models(target, experiment, results).items()
    }
    return {name: cells for name, cells in found.items() if cells}


def _recovery(experiment: Experiment, results: dict[str, Any]) -> str:
    dense, text = results["dense"], ""
    for target in experiment.recover:
        models = _recovered(target, experiment, results)
        rows = [[name, *_quality(cells, dense)] for name, cells in models.items()]
        text += (
            f"\n## {target} after recovery\n\nDistilled from the dense model for "
            f"{experiment.recover_tokens:,} tokens each.\n\n"
            f"{table(_quality_head(experiment, dense), rows)}\n"
        )
    return text


def _question_set(name: str, dense: dict[str, Any]) -> str:
    """The head of a column of accuracies, with what guessing and the dense model give."""
    name = name.removesuffix("_accuracy")
    chance, score = dense[f"{name}_chance"], dense[f"{name}_accuracy"]
    return f"{name} accuracy (chance {chance:.3f}, dense {score:.3f})"


def _numbers(cell: dict[str, Any]) -> str:
    return ", ".join(f"{x:.3f}" for x in cell["own"])


def _plot(folder: Path, experiment: Experiment, results: dict[str, Any]) -> None:
    number = len(experiment.targets)
    labels = [f"{m} + {r}" for m, r in experiment.methods]
    size = (3.2 * number + 1.5, 4.2)
    with plot.figure(
        folder, "perplexity", 1, number, figsize=size, squeeze=False, sharey=True
    ) as panels:
        for panel, target in zip(panels[0], experiment.targets, strict=True):
            for i, (method, repair) in enumerate(experiment.methods):
                cells = _draws(target, method, repair, experiment, results)
                values = [c["own"][-1] for c in cells]
                color = "tab:blue" if repair == "ridge" else "tab:orange"
                panel.plot(values, [i] * len(values), "o", color=color, alpha=0.7)
            panel.axvline(results["dense"]["own"][-1], color="gray", lw=0.8, ls=":")
            panel.set(xscale="log", xlabel="perplexity", title=target)
            panel.xaxis.set_minor_formatter(NullFormatter())  # labels of minor ticks overlap
            panel.grid(alpha=0.3)
        panels[0, 0].set_yticks(range(len(labels)), labels)
        panels[0, 0].invert_yaxis()
