"""The report of a run: tables by target, two plots, and what they say."""

from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.ticker import NullFormatter

from experiments.slimllm.config import Experiment
from pangu_jax.study import plot, report
from pangu_jax.study.table import extent, table


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

## Recovery at {experiment.targets[-1]}

Distilled from the dense model for equal tokens.

{_recovery(experiment, results)}

## Settings

Machine: {report.machine()}. Text: {experiment.data}.
Prefill: the least of ten, batch and length {experiment.latency}. All settings are in config.json,
all figures in results.json.
"""


def _cells(target, method, repair, experiment, results) -> list[dict]:
    return [results[f"{target}/{method}/{repair}/draw{d}"] for d in range(experiment.draws)]


def _table(target: str, experiment: Experiment, results: dict[str, Any]) -> str:
    dense = results["dense"]
    names = [t for t in ("own", "other") if t in dense]
    asked = [name for name in dense if name.endswith("_accuracy")]
    head = ["method + repair", *(f"{t}, {n}" for t in names for n in experiment.eval_lengths)]
    head += [_question_set(name, dense) for name in asked]
    head += ["error cut", "error repaired", "parameters", "FLOP ratio", "prefill speed-up"]
    rows = []
    for method, repair in experiment.methods:
        cells = _cells(target, method, repair, experiment, results)
        columns = [
            [c[t][i] for c in cells] for t in names for i in range(len(experiment.eval_lengths))
        ]
        columns += [[c[name] for c in cells] for name in asked]
        one = cells[0]
        rows.append(
            [
                f"{method} + {repair}",
                *map(extent, columns),
                f"{np.mean([c['cut'] for c in cells]):.4f}",
                f"{np.mean([c['repaired'] for c in cells]):.4f}",
                f"{one['parameters'] / dense['parameters']:.3f}",
                f"{dense['flops'] / one['flops']:.2f}",
                f"{one['dense_prefill_ms'] / one['prefill_ms']:.2f}",
            ]
        )
    return f"\n## {target}\n\n{table(head, rows)}"


def _verdict(experiment: Experiment, results: dict[str, Any]) -> str:
    lines = []
    for target in experiment.targets:
        scores = {
            f"{m} + {r}": [c["own"][-1] for c in _cells(target, m, r, experiment, results)]
            for m, r in experiment.methods
        }
        best = min(scores, key=lambda name: np.mean(scores[name]))
        ours = scores.get("slimllm + ridge")
        text = f"- {target}: {best} is best ({np.mean(scores[best]):.3f})"
        if ours is not None and best != "slimllm + ridge":
            text += f"; slimllm + ridge has {np.mean(ours):.3f}"
        lines.append(text)
    return "\nBefore recovery, at the longest context:\n\n" + "\n".join(lines) + "\n"


def _recovery(experiment: Experiment, results: dict[str, Any]) -> str:
    rows = []
    for name, cell in results.items():
        if name.startswith("recover/"):
            method = name.removeprefix("recover/")
            before = results[f"{experiment.targets[-1]}/{method}/draw0"]
            values = _numbers(before), _numbers(cell), f"{cell['tokens']:,}"
            rows.append([method.replace("/", " + "), *values])
    return table(("method", "before", "after", "tokens"), rows)


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
                values = [c["own"][-1] for c in _cells(target, method, repair, experiment, results)]
                color = "tab:blue" if repair == "ridge" else "tab:orange"
                panel.plot(values, [i] * len(values), "o", color=color, alpha=0.7)
            panel.axvline(results["dense"]["own"][-1], color="gray", lw=0.8, ls=":")
            panel.set(xscale="log", xlabel="perplexity", title=target)
            panel.xaxis.set_minor_formatter(NullFormatter())  # labels of minor ticks overlap
            panel.grid(alpha=0.3)
        panels[0, 0].set_yticks(range(len(labels)), labels)
        panels[0, 0].invert_yaxis()
