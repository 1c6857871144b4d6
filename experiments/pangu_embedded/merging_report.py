"""The report of `merging`: held-out text of the base, of both halves and of every merge."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from experiments.pangu_embedded.config import RULES, Merging
from pangu_jax.study import plot, report
from pangu_jax.study.table import mean_std, table

SAID = (
    "Bits per byte of held-out questions with their solutions; in how many seeds a merge is at "
    "least as good as both that it was made of; the greatest difference of its logits in stock "
    "transformers, as a share of the greatest logit."
)


def write_report(folder: Path, experiment: Merging, results: Mapping[str, Any]) -> Path:
    """Draws the plot and writes report.md, from all cells; returns its path."""
    _plot(folder, experiment, results)
    parts = [
        "# Merges of two halves",
        f"{report.machine()}; {experiment.dtype} in training, {experiment.steps:,} steps of "
        f"{experiment.batch} windows of {experiment.length} tokens; {experiment.held_out:,} "
        "solutions held out.",
        SAID,
        merges(experiment, results),
        "![bits per byte](plots/bits.png)",
    ]
    return report.write(folder, "\n\n".join(parts) + "\n")


def merges(experiment: Merging, results: Mapping[str, Any]) -> str:
    """A line for each model, means over the seeds, as Markdown."""
    halves = [results[f"halves/{seed}"]["scores"] for seed in experiment.seeds]
    rows = [["the base", f"{results['base']['merged']:.3f}", "", ""]]
    for place, name in enumerate(("one half", "the other half")):
        rows.append([f"trained on {name}", mean_std([pair[place] for pair in halves]), "", ""])
    for rule in RULES:
        found = [results[f"{rule}/{seed}"] for seed in experiment.seeds]
        taken = sum(one["merged"] <= min(pair) for one, pair in zip(found, halves, strict=True))
        opened = [one["difference"] for one in found if one["difference"] is not None]
        rows.append(
            [
                _named(rule),
                mean_std([one["merged"] for one in found]),
                f"{taken} of {len(found)}",
                f"{max(opened):.1e}" if opened else "not tried",
            ]
        )
    return table(["model", "bits per byte", "better than both", "logits of transformers"], rows)


def _named(rule: str) -> str:
    return ", ".join([rule, *(f"{key} {value}" for key, value in RULES[rule].items())])


def _plot(folder: Path, experiment: Merging, results: Mapping[str, Any]) -> None:
    """Bits per byte, a point for each seed, beside those of the base."""
    halves = [results[f"halves/{seed}"]["scores"] for seed in experiment.seeds]
    found = {
        "trained on one half": [pair[0] for pair in halves],
        "trained on the other half": [pair[1] for pair in halves],
        **{
            _named(rule): [results[f"{rule}/{seed}"]["merged"] for seed in experiment.seeds]
            for rule in RULES
        },
    }
    rows = {name: [(value, value, value) for value in x] for name, x in found.items()}
    with plot.figure(folder, "bits", figsize=(7, 3.5)) as axes:
        plot.estimates(axes, rows, {"the base": results["base"]["merged"]})
        axes.set(xlabel="bits per byte of held-out solutions, a point for each seed")
