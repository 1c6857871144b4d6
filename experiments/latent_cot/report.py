"""The report: one table for each task, with the controls beside every latent method."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from experiments.latent_cot.config import Experiment, Plan
from pangu_jax.reasoning.latent.ablation import ABLATIONS
from pangu_jax.reasoning.latent.task import chance
from pangu_jax.study import report
from pangu_jax.study.table import mean_std, table

HEAD = (
    *("method", "seeds", "accuracy", *(f"{kind} for thoughts" for kind in ABLATIONS)),
    *("thoughts or pauses", "tokens written", "GFLOP an answer", "ms an answer", "training s"),
)


def write_report(folder: Path, experiment: Experiment, results: Mapping[str, Any]) -> Path:
    """Writes report.md from the cells that there are."""
    parts = ["# Latent chain of thought", "", f"{report.machine()}; {experiment.dtype}.", ""]
    for plan in experiment.plans:
        parts += _task(plan, experiment, results)
    return report.write(folder, "\n".join(parts))


def _task(plan: Plan, experiment: Experiment, results: Mapping[str, Any]) -> list[str]:
    rows = []
    for method in plan.methods:
        names = [f"{plan.task}/{method}/seed{seed}" for seed in experiment.seeds]
        if found := [results[name] for name in names if name in results]:
            rows.append(_row(method, found))
    if not rows:
        return []
    guess = chance(plan.task)
    return [
        f"## {plan.task}",
        "",
        f"{plan.tests:,} questions, {plan.test_file or 'drawn'} (a run without --data draws them); "
        f"{plan.model}, {plan.steps:,} steps of {plan.batch} problems, from scratch. By chance "
        f"{'nearly 0' if guess is None else f'{guess:.1%}'}. Pauses are as many empty slots in the "
        "same curriculum. A pause in the place of thoughts is a row that Coconut's own training "
        "never reads. FLOP: two for each weight and slot or token, attention left out. "
        "Training is timed with compiling; a run that was killed has no time.",
        "",
        table(HEAD, rows),
        "",
    ]


def _row(method: str, found: list[dict[str, Any]]) -> list[str]:
    def mean(name: str, scale: float = 1.0) -> float:
        return scale * float(np.mean([one[name] for one in found]))

    ablated = [
        mean_std([100 * one["ablations"][kind] for one in found], 1) + " %"
        if found[0]["ablations"]
        else ""
        for kind in ABLATIONS
    ]
    return [
        method,
        str(len(found)),
        mean_std([100 * one["accuracy"] for one in found], 1) + " %",
        *ablated,
        f"{mean('thoughts'):.0f}",
        f"{mean('tokens'):.1f}",
        f"{mean('flops', 1e-9):.2f}",
        f"{mean('seconds_per_answer', 1e3):.1f}",
        ""
        if any(one["train_seconds"] is None for one in found)
        else f"{mean('train_seconds'):.0f}",
    ]
