"""Runs `pangu-jax rl simulate`; its options are in `cli/options/rl_simulate.py`."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from pangu_jax.cli.options.rl_simulate import Options
from pangu_jax.cli.progress import progress
from pangu_jax.core.config import to_json
from pangu_jax.core.errors import InputError
from pangu_jax.core.files import atomic_write
from pangu_jax.reasoning.schedule_simulate import (
    Costs,
    Simulated,
    lognormal,
    measured,
    read_lengths,
    simulate,
)
from pangu_jax.reasoning.schedule_state import ScheduleConfig
from pangu_jax.study import plot, report
from pangu_jax.study.table import table


def main(options: Options) -> None:
    """Simulates every setting, prints a table, draws a plot."""
    if not options.staleness or not options.policies:
        raise InputError("name at least one --staleness and one of --policies")
    rows = _rows(options)
    results = {"options": to_json(asdict(options)), "rows": rows}
    if options.out is not None:
        _write(Path(options.out), results)
    print(json.dumps(results) if options.json else _table(rows))
    if options.out is not None and not options.json:
        print(f"written to {options.out}")


def _rows(options: Options) -> list[dict[str, Any]]:
    costs = Costs(options.seconds_per_token, options.seconds_per_update, options.shared)
    lengths = (
        lognormal(options.mean, options.sigma, options.longest)
        if options.lengths is None
        else measured(read_lengths(options.lengths))
    )
    sizes = {"batch": options.batch, "group": options.group, "slots": options.slots}
    every = [ScheduleConfig(0, **sizes)]  # what the others are compared with
    for policy in dict.fromkeys(options.policies):
        partial = options.partial and policy == "barrier"
        more = {"policy": policy, "partial": partial, **sizes}
        every += [ScheduleConfig(s, **more) for s in dict.fromkeys(options.staleness)]
    rows = []
    with progress() as show:
        show("settings", 0, len(every))
        for number, cfg in enumerate(every, start=1):
            found = simulate(cfg, lengths, costs, updates=options.updates, seed=options.seed)
            rows.append(_row(found))
            show("settings", number, len(every))
    for row in rows:
        row["speed_up"] = rows[0]["seconds"] / row["seconds"]
    return rows[1:]


def _row(found: Simulated) -> dict[str, Any]:
    return {
        "policy": found.cfg.policy,
        "staleness": found.cfg.staleness,
        "seconds": float(found.seconds),
        "generator_idle": float(found.generator_idle),
        "trainer_idle": float(found.trainer_idle),
        "mean_age": found.mean_age,
        "largest_age": len(found.ages) - 1,
        "ages": list(found.ages),
        "discarded": found.discarded,
        "mean_used": float(found.tokens_used.mean()),
        "mean_made": float(found.tokens_made.mean()),
    }


HEAD = (
    *("policy", "staleness", "speed-up", "generator idle", "trainer idle", "mean age"),
    *("largest age", "discarded", "tokens used", "tokens made"),
)


def _table(rows: list[dict[str, Any]]) -> str:
    return table(
        HEAD,
        [
            (
                row["policy"],
                row["staleness"],
                f"{row['speed_up']:.2f}",
                f"{row['generator_idle']:.1%}",
                f"{row['trainer_idle']:.1%}",
                f"{row['mean_age']:.2f}",
                row["largest_age"],
                f"{row['discarded']:.1%}",
                f"{row['mean_used']:.0f}",
                f"{row['mean_made']:.0f}",
            )
            for row in rows
        ],
    )


def _write(folder: Path, results: dict[str, Any]) -> None:
    rows, options = results["rows"], results["options"]
    _plot(folder, rows)
    with atomic_write(folder / "results.json") as file:
        json.dump(results, file, indent=1)
        file.write("\n")
    source = options["lengths"] or (
        f"log-normal, mean {options['mean']:g}, sigma {options['sigma']:g}, "
        f"at most {options['longest']}"
    )
    devices = "share a device" if options["shared"] else "have devices of their own"
    report.write(
        folder,
        f"""# Simulated schedules

{_table(rows)}

Simulated, not measured: {options["updates"]} updates of {options["batch"]} groups of
{options["group"]} answers, {options["slots"]} slots, {options["seconds_per_token"]:g} s per token
of a slot, {options["seconds_per_update"]:g} s per update, seed {options["seed"]}. Lengths: {source}
tokens. Rollouts and the trainer {devices}. Speed-up is over staleness 0 with the
policy barrier; tokens are means per answer trained on, and per answer begun.

![speed-up, idle shares, ages](plots/staleness.png)
""",
    )


def _plot(folder: Path, rows: list[dict[str, Any]]) -> None:
    policies = list(dict.fromkeys(row["policy"] for row in rows))
    size = {"figsize": (11, 3.4)}
    with plot.figure(folder, "staleness", 1, 3, **size) as (speed, idle, ages):
        for policy in policies:
            mine = sorted((r for r in rows if r["policy"] == policy), key=lambda r: r["staleness"])
            bounds = [row["staleness"] for row in mine]
            speed.plot(bounds, [row["speed_up"] for row in mine], "o-", label=policy)
            line = idle.plot(
                bounds,
                [100 * row["generator_idle"] for row in mine],
                "o-",
                label=f"{policy}: slots",
            )[0]
            idle.plot(
                bounds,
                [100 * row["trainer_idle"] for row in mine],
                "s--",
                color=line.get_color(),
                label=f"{policy}: trainer",
            )
            last = mine[-1]  # those of all bounds would hide one another
            share = np.array(last["ages"]) / sum(last["ages"])
            label = f"{policy}, staleness {last['staleness']}"
            ages.plot(np.arange(len(share)), share, ".-", label=label)
        speed.set(xlabel="staleness", ylabel="speed-up over synchronous")
        idle.set(xlabel="staleness", ylabel="idle (%)", ylim=(0, 100))
        ages.set(xlabel="age (updates)", ylabel="share of groups trained on")
        for axes in (speed, idle, ages):
            plot.guide(axes)
