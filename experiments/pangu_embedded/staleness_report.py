"""The report of `staleness`: speed measured beside simulated, and what older answers cost."""

import dataclasses
from collections.abc import Mapping, Sequence
from functools import partial
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
    if seeds := _fast_seeds(speed, results):
        _plot_speed(folder, speed, results, seeds)
        parts += [speeds(speed, results, seeds), "![speed-up by bound](plots/speed.png)"]
    if seeds := _whole_seeds(learning, results):
        _plot_learning(folder, learning, results, seeds)
        parts += [learned(results, seeds), "![right answers](plots/learning.png)"]
    return report.write(folder, "\n\n".join([*parts, report.machine()]) + "\n")


def text(experiment: Staleness, results: Mapping[str, Any]) -> str:
    """The tables of the parts that are whole, as Markdown."""
    parts = []
    if seeds := _fast_seeds(experiment.speed, results):
        parts.append(speeds(experiment.speed, results, seeds))
    if seeds := _whole_seeds(experiment.learning, results):
        parts.append(learned(results, seeds))
    return "\n\n".join(parts)


def _fast_seeds(cfg: Speed, results: Mapping[str, Any]) -> list[int]:
    return [s for s in cfg.seeds if all(f"speed/{bound}/{s}" in results for bound in cfg.bounds)]


def _whole_seeds(cfg: Learning, results: Mapping[str, Any]) -> list[int]:
    return [s for s in cfg.seeds if all(f"{arm}/{s}" in results for arm in ("base", *ARMS))]


@dataclasses.dataclass(frozen=True)
class _Run:
    """A measured run of a bound, and what the simulator makes of its costs."""

    measured: Mapping[str, Any]
    simulated: Simulated
    token: float  # seconds of a slot's token
    update: float

    @property
    def seconds(self) -> float:
        return self.measured["seconds_of_run"]

    @property
    def mean_age(self) -> float:
        ages = self.measured["ages"]
        return float(np.average(range(len(ages)), weights=ages))


def _runs(cfg: Speed, results: Mapping[str, Any], seed: int) -> dict[int, _Run]:
    """The runs of a seed by bound: a token's cost is the first bound's, an update's its own."""
    found = {bound: results[f"speed/{bound}/{seed}"] for bound in cfg.bounds}
    draw = lognormal(cfg.mean, cfg.sigma, LONGEST)
    more = {"batch": cfg.batch, "group": cfg.group, "slots": cfg.slots}
    plans = {bound: ScheduleConfig(bound, **more) for bound in cfg.bounds}
    run = partial(simulate, updates=cfg.updates, seed=seed)
    first = found[cfg.bounds[0]]
    steps = run(plans[cfg.bounds[0]], draw, Costs(1.0, 1e-9, True)).seconds
    token = (first["seconds_of_run"] - first["trained"]) / steps
    runs = {}
    for bound, one in found.items():
        update = one["trained"] / cfg.updates
        runs[bound] = _Run(one, run(plans[bound], draw, Costs(token, update, True)), token, update)
    return runs


def _gains(cfg: Speed, seeds: Sequence[Mapping[int, _Run]]) -> dict[str, dict[int, list[float]]]:
    """Speed-ups over the first bound by bound, measured and simulated, of each seed."""
    first = cfg.bounds[0]
    return {
        "measured": {b: [of[first].seconds / of[b].seconds for of in seeds] for b in cfg.bounds},
        "simulated": {
            b: [of[first].simulated.seconds / of[b].simulated.seconds for of in seeds]
            for b in cfg.bounds
        },
    }


def speeds(cfg: Speed, results: Mapping[str, Any], seeds: Sequence[int]) -> str:
    """Measured speed-ups beside those that the simulator gives for what was measured to cost."""
    found = [_runs(cfg, results, seed) for seed in seeds]
    gains, rows = _gains(cfg, found), []
    for bound in cfg.bounds:
        runs = [of[bound] for of in found]
        rows.append(
            (
                bound,
                mean_std([run.seconds for run in runs], 1),
                f"{np.mean([run.update for run in runs]):.3f}",
                mean_std(gains["measured"][bound], 2),
                mean_std(gains["simulated"][bound], 2),
                f"{np.mean([run.measured['generator_idle'] for run in runs]):.1%}",
                f"{np.mean([run.simulated.generator_idle for run in runs]):.1%}",
                max(len(run.measured["ages"]) - 1 for run in runs),
                f"{np.mean([run.mean_age for run in runs]):.2f}",
                f"{np.mean([run.simulated.mean_age for run in runs]):.2f}",
            )
        )
    head = ("bound", "seconds", "an update", "speed-up", "simulated", "slots idle", "simulated")
    tokens = mean_std([1e3 * of[cfg.bounds[0]].token for of in found], 2)
    said = (
        f"The simulation has each run's seconds of an update, and {tokens} ms for a token of a "
        "slot, which is the synchronous run's time apart from updates."
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


def _plot_speed(folder: Path, cfg: Speed, results: Mapping[str, Any], seeds: Sequence[int]) -> None:
    """Mean speed-up over the first bound, measured beside simulated, with the seeds' range."""
    gains = _gains(cfg, [_runs(cfg, results, seed) for seed in seeds])
    with plot.figure(folder, "speed", figsize=(6, 3.5)) as axes:
        for (name, of), style in zip(gains.items(), ("o-", "s--"), strict=True):
            means = np.array([np.mean(of[bound]) for bound in cfg.bounds])
            ends = np.array([(min(of[bound]), max(of[bound])) for bound in cfg.bounds])
            away = abs(ends.T - means)
            axes.errorbar(cfg.bounds, means, yerr=away, fmt=style, capsize=3, label=name)
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
