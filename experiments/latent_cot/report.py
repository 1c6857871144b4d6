"""The report: one table for each task, with the controls beside every latent method."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from experiments.latent_cot.budget import SAMPLED
from experiments.latent_cot.config import Experiment, Plan
from pangu_jax.reasoning.latent.ablation import ABLATIONS
from pangu_jax.reasoning.latent.task import chance
from pangu_jax.study import plot, report
from pangu_jax.study.table import mean_std, table

HEAD = (
    *("method", "seeds", "accuracy", *(f"{kind} for thoughts" for kind in ABLATIONS)),
    *("thoughts or pauses", "layers per token", "tokens written"),
    *("GFLOP per answer", "ms per answer", "training s"),
)
BUDGET_HEAD = (
    *("method", "seed", "accuracy", "95 %", "of", *(f"{kind} for thoughts" for kind in ABLATIONS)),
    *("thoughts or pauses", "tokens written", "GFLOP per answer"),
    *("read in training", "steps", "training s"),
)


def name_of(plan: Plan, method: str, seed: int) -> str:
    """The name of a cell."""
    return f"{plan.task}-{method}-seed{seed}"


def write_report(folder: Path, experiment: Experiment, results: Mapping[str, Any]) -> Path:
    """Draws the plots and writes report.md, from the cells that there are; returns its path."""
    parts = ["# Latent chain of thought", "", f"{report.machine()}; {experiment.dtype}.", ""]
    for plan in experiment.plans:
        if text := _task(plan, experiment, results):
            _plot(folder, plan, experiment, results)
            parts += [*text, f"![accuracy of {plan.task}](plots/accuracy-{plan.task}.png)", ""]
    return report.write(folder, "\n".join(parts))


def _found(
    plan: Plan, experiment: Experiment, results: Mapping[str, Any]
) -> dict[str, list[tuple[int, Mapping[str, Any]]]]:
    """The seeds and cells that there are, by method."""
    found = {
        method: [
            (seed, results[name])
            for seed in experiment.seeds
            if (name := name_of(plan, method, seed)) in results
        ]
        for method in plan.methods
    }
    return {method: cells for method, cells in found.items() if cells}


def _larger(found: Mapping[str, list[tuple[int, Mapping[str, Any]]]]) -> float | None:
    """What the larger of the two numbers is right in; None where questions offer no numbers."""
    (_, cell), *_ = next(iter(found.values()))
    return cell.get("larger")


def _plot(folder: Path, plan: Plan, experiment: Experiment, results: Mapping[str, Any]) -> None:
    """Accuracy by method, a point for each seed, beside what needs no model."""
    found = _found(plan, experiment, results)
    rows = {
        method: [(cell["accuracy"], cell["low"], cell["high"]) for _, cell in row]
        for method, row in found.items()
    }
    beside = {"chance": chance(plan.task), "the larger of the two numbers": _larger(found)}
    size = (7, 1.5 + 0.35 * len(rows))
    with plot.figure(folder, f"accuracy-{plan.task}", figsize=size) as axes:
        plot.estimates(axes, rows, beside)
        axes.set(xlabel="accuracy, Wilson's 95 % interval of the questions", title=plan.task)


def _task(plan: Plan, experiment: Experiment, results: Mapping[str, Any]) -> list[str]:
    if experiment.tokens:
        return _by_budget(plan, experiment, results)
    found = _found(plan, experiment, results)
    if not found:
        return []
    rows = [_row(method, [cell for _, cell in row]) for method, row in found.items()]
    guess, cheap = chance(plan.task), _larger(found)
    return [
        f"## {plan.task}",
        "",
        f"{plan.tests:,} questions, {plan.test_file or 'drawn'} (a run without --data draws them); "
        f"{plan.model}, {plan.steps:,} steps of {plan.batch} problems, from scratch. By chance "
        f"{'nearly 0' if guess is None else f'{guess:.1%}'}"
        f"{'' if cheap is None else f', the larger of the two numbers {cheap:.1%}'}. "
        "Pauses are as many empty slots in the same curriculum. A pause in the place of thoughts "
        "is a row that Coconut's own training never reads. FLOP: two for each weight and slot or "
        "token, attention left out. "
        "Training is timed with compiling; a run that was killed has no time.",
        "",
        table(HEAD, rows),
        "",
    ]


def _by_budget(plan: Plan, experiment: Experiment, results: Mapping[str, Any]) -> list[str]:
    """The table of methods that read as many tokens, a line each for every method and seed."""
    found = [
        (method, seed, cell)
        for method, row in _found(plan, experiment, results).items()
        for seed, cell in row
    ]
    if not found:
        return []
    short = f" of at most {plan.longest[0]} and {plan.longest[1]} tokens" if plan.longest else ""
    return [
        f"## {plan.task}",
        "",
        f"{found[0][2]['parameters'] / 1e6:,.0f} M parameters, a checkpoint that training goes on "
        f"from, with batches of {plan.batch} questions and chains{short}, a rate of "
        f"{plan.learning_rate:g}, until about {experiment.tokens:,} tokens and thoughts or pauses "
        f"were read, padding left out; of longer phases {SAMPLED} steps are counted for all. "
        "By chance nearly 0. Wilson's interval is that of the "
        "questions, for one run of training. Pauses are as many empty slots in the same "
        "curriculum as Coconut's. FLOP: two for each weight and slot or token, attention left "
        "out. Training is timed with compiling; a run that was killed has no time.",
        "",
        table(BUDGET_HEAD, [_budget_row(*one) for one in found]),
        "",
    ]


def _budget_row(method: str, seed: int, one: Mapping[str, Any]) -> list[str]:
    ablated = [f"{one['ablations'][kind]:.1%}" if one["ablations"] else "" for kind in ABLATIONS]
    seconds = one["train_seconds"]
    return [
        method,
        str(seed),
        f"{one['accuracy']:.1%}",
        f"{one['low']:.1%} to {one['high']:.1%}",
        f"{one['problems']:,}",
        *ablated,
        f"{one['thoughts']:.0f}",
        f"{one['tokens']:.1f}",
        f"{one['flops'] / 1e9:.2f}",
        f"{one['read_in_training']:,}",
        f"{one['steps']:,}",
        "" if seconds is None else f"{seconds:.0f}",
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
        f"{mean('layers'):.1f}",
        f"{mean('tokens'):.1f}",
        f"{mean('flops', 1e-9):.2f}",
        f"{mean('seconds_per_answer', 1e3):.1f}",
        ""
        if any(one["train_seconds"] is None for one in found)
        else f"{mean('train_seconds'):.0f}",
    ]
