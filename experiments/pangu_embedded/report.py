"""The report of `run`: how often each judge agrees with the rules, with intervals."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from experiments.pangu_embedded.config import ASKED, Experiment
from pangu_jax.study import plot, report
from pangu_jax.study.table import table

SAID = (
    "How often a judge prefers the right one of two answers, or says of one answer what the rules "
    "say, on questions that the head was not trained on, with Wilson's 95 % interval. The shorter "
    "answer and the better teacher's take no look at the answer. The held-out questions of several "
    "seeds overlap."
)


def write_report(folder: Path, experiment: Experiment, results: Mapping[str, Any]) -> Path:
    """Draws the plot and writes report.md, from all cells; returns its path."""
    _plot(folder, experiment, results)
    parts = [
        "# Two sources of rewards",
        f"{report.machine()}; {experiment.dtype}.",
        SAID,
        judges(experiment, results),
        "![agreement with the rules](plots/agreement.png)",
    ]
    return report.write(folder, "\n\n".join(parts) + "\n")


def judges(experiment: Experiment, results: Mapping[str, Any]) -> str:
    """A line for each judge, as Markdown."""
    rows = []
    for seed in experiment.seeds:
        cell = results[f"preference/{seed}"]
        teacher = results[f"teacher/{seed}"]
        rows += [
            [f"head, seed {seed}", *_words(cell["held out"])],
            [f"the shorter answer, seed {seed}", *_words(cell["the shorter"])],
            [f"the better teacher, seed {seed}", *_words(teacher["held out"])],
        ]
    for name in ASKED:
        cell = results["evaluator"][name]
        more = f", says yes to {cell['says yes']:.0%}, failed {cell['failed']} times"
        rows.append([f"evaluator, {name}{more}", *_words(cell["agrees"])])
    return table(["judge", "agrees", "interval", "of"], rows)


def _words(found: list) -> list[str]:
    return [f"{found[0]:.3f}", f"{found[1]:.3f}-{found[2]:.3f}", str(found[3])]


def _plot(folder: Path, experiment: Experiment, results: Mapping[str, Any]) -> None:
    """What the table compares, a point for each seed, beside chance."""
    heads = [results[f"preference/{seed}"] for seed in experiment.seeds]
    found = {
        "head": [cell["held out"] for cell in heads],
        "the shorter answer": [cell["the shorter"] for cell in heads],
        "the better teacher": [results[f"teacher/{s}"]["held out"] for s in experiment.seeds],
        **{f"evaluator, {name}": [results["evaluator"][name]["agrees"]] for name in ASKED},
    }
    rows = {name: [(value, low, high) for value, low, high, _ in x] for name, x in found.items()}
    with plot.figure(folder, "agreement", figsize=(7, 3.5)) as axes:
        plot.estimates(axes, rows, {"chance": 0.5})
        axes.set(xlabel="agrees with the rules, Wilson's 95 % interval")
