"""The report of `staleness`: speed measured beside simulated, and what older answers cost."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from experiments.pangu_embedded.config import ARMS, LONGEST, Learning, Speed, Staleness
from pangu_jax.eval.pass_at_k import wilson
from pangu_jax.reasoning.schedule_simulate import Costs, Simulated, lognormal, simulate
from pangu_jax.reasoning.schedule_state import ScheduleConfig
from pangu_jax.study import plot, report
from pangu_jax.study.table import mean_std, table


def write_report(folder: Path, experiment: Staleness, results: Mapping[str, Any]) -> Path:
    """Draws the plots and writes report.md, from the parts that are whole; returns its path."""
    speed, learning = experiment.speed, experiment.learning
    parts = ["# Staleness"]
    if _has_speed(speed, results):
        _plot_speed(folder, speed, results)
        parts += [speeds(speed, results), "![speed-up by bound](plots/speed.png)"]
    if seeds := _whole_seeds(learning, results):
        _plot_learning(folder, learning, results, seeds)
        parts += [learned(results, seeds), "![right answers](plots/learning.png)"]
    return report.write(folder, "\n\n".join([*parts, report.machine()]) + "\n")


def text(experiment: Staleness, results: Mapping[str, Any]) -> str:
    """The tables of the parts that are whole, as Markdown."""
    parts = []
    if _has_speed(experiment.speed, results):
        parts.append(speeds(experiment.speed, results))
    if seeds := _whole_seeds(experiment.learning, results):
        parts.append(learned(results, seeds))
    return "\n\n".join(parts)


def _has_speed(cfg: Speed, results: Mapping[str, Any]) -> bool:
    return all(f"speed/{bound}" in results for bound in cfg.bounds)


def _whole_seeds(cfg: Learning, results: Mapping[str, Any]) -> list[int]:
    return [s for s in cfg.seeds if all(f"{arm}/{s}" in results for arm in ("base", *ARMS))]


def _simulated(
    cfg: Speed, results: Mapping[str, Any]
) -> tuple[float, dict[int, float], dict[int, Simulated]]:
    """Seconds of a slot's token, those of an update, and what the simulator makes of them.

    A token's are those of the first bound's run; an update's, and the schedule, are by bound.
    """
    found = {bound: results[f"speed/{bound}"] for bound in cfg.bounds}
    first = found[cfg.bounds[0]]
    draw = lognormal(cfg.mean, cfg.sigma, LONGEST)
    more = {"batch": cfg.batch, "group": cfg.group, "slots": cfg.slots}
    plans = {bound: ScheduleConfig(bound, **more) for bound in cfg.bounds}
    start = plans[cfg.bounds[0]]
    steps = simulate(start, draw, Costs(1.0, 1e-9, True), updates=cfg.updates).seconds
    token = (first["seconds_of_run"] - first["trained"]) / steps
    update = {bound: one["trained"] / cfg.updates for bound, one in found.items()}
    simulated = {
        bound: simulate(plan, draw, Costs(token, update[bound], True), updates=cfg.updates)
        for bound, plan in plans.items()
    }
    return token, update, simulated


def speeds(cfg: Speed, results: Mapping[str, Any]) -> str:
    """Measured speed-ups beside those that the simulator gives for what was measured to cost."""
    token, update, simulated = _simulated(cfg, results)
    first = cfg.bounds[0]
    rows = []
    for bound in cfg.bounds:
        one, other = results[f"speed/{bound}"], simulated[bound]
        rows.append(
            (
                bound,
                f"{one['seconds_of_run']:.1f}",
                f"{update[bound]:.3f}",
                f"{results[f'speed/{first}']['seconds_of_run'] / one['seconds_of_run']:.2f}",
                f"{simulated[first].seconds / other.seconds:.2f}",
                f"{one['generator_idle']:.1%}",
                f"{other.generator_idle:.1%}",
                len(one["ages"]) - 1,
                f"{np.average(range(len(one['ages'])), weights=one['ages']):.2f}",
                f"{other.mean_age:.2f}",
            )
        )
    head = ("bound", "seconds", "an update", "speed-up", "simulated", "slots idle", "simulated")
    said = (
        f"The simulation has each run's seconds of an update, and {1e3 * token:.2f} ms for a token "
        "of a slot, which is the synchronous run's time apart from updates."
    )
    return f"{table((*head, 'largest age', 'mean age', 'simulated'), rows)}\n\n{said}"


def learned(results: Mapping[str, Any], seeds: Sequence[int]) -> str:
    """Right answers after learning from solutions, and after each way of going on by rewards."""
    bases = [results[f"base/{seed}"]["right"] for seed in seeds]
    rows = [("from solutions", mean_std(bases), "", "", "", "")]
    for arm in ARMS:
        found = [results[f"{arm}/{seed}"] for seed in seeds]
        each = ", ".join(f"{one['right']:.3f}" for one in found)
        gains = mean_std([one["gain"] for one in found])
        ages = f"{np.mean([one['mean_age'] for one in found]):.2f}"
        most = max(one["largest_age"] for one in found)
        rows.append((arm, mean_std([one["right"] for one in found]), each, gains, ages, most))
    return table(("", "right", "each seed", "gain", "mean age", "largest age"), rows)


def _plot_speed(folder: Path, cfg: Speed, results: Mapping[str, Any]) -> None:
    """Speed-up over the first bound, measured beside simulated."""
    _, _, simulated = _simulated(cfg, results)
    seconds = {
        "measured": [results[f"speed/{bound}"]["seconds_of_run"] for bound in cfg.bounds],
        "simulated": [simulated[bound].seconds for bound in cfg.bounds],
    }
    with plot.figure(folder, "speed", figsize=(6, 3.5)) as axes:
        for (name, values), style in zip(seconds.items(), ("o-", "s--"), strict=True):
            axes.plot(cfg.bounds, values[0] / np.array(values), style, label=name)
        axes.set(xlabel="bound on staleness", ylabel=f"speed-up over a bound of {cfg.bounds[0]}")
        axes.set_xticks(cfg.bounds)
        plot.guide(axes)


def _plot_learning(
    folder: Path, cfg: Learning, results: Mapping[str, Any], seeds: Sequence[int]
) -> None:
    """Right answers with intervals of the questions, a point for each seed."""
    rows = {}
    for name, arm in {"from solutions": "base", **{arm: arm for arm in ARMS}}.items():
        rows[name] = [_interval(results[f"{arm}/{seed}"]["right"], cfg.questions) for seed in seeds]
    with plot.figure(folder, "learning", figsize=(7, 3)) as axes:
        plot.estimates(axes, rows)
        axes.set(xlabel="right answers, Wilson's 95 % interval of the questions")


def _interval(share: float, questions: int) -> tuple[float, float, float]:
    right = round(share * questions)
    found = wilson(np.repeat([1.0, 0.0], [right, questions - right]))
    return found.value, found.low, found.high
