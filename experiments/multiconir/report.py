"""The report of a run: what training and test share, the table, and where poolings look."""

from pathlib import Path
from typing import Any

import numpy as np

from experiments.multiconir.config import Experiment
from pangu_jax.data.multiconir import CONDITIONS
from pangu_jax.eval import pairwise_metrics
from pangu_jax.study import plot, report
from pangu_jax.study.table import mean_std, table

NEEDED = 0.05  # what tuning has to win at ten conditions on the films
TRAINED_ON = "Movies"
Results = dict[str, Any]


def write_report(folder: Path, experiment: Experiment, results: Results) -> Path:
    """Draws the plots and writes report.md; returns its path."""
    for domain in _domains(results):
        _plot(folder, domain, results)
    return report.write(folder, _text(experiment, results))


def gains(experiment: Experiment, results: Results, name: str, domain: str) -> list[Any]:
    """By how much WR_10 of the trainings of that name is above the base's, seed by seed."""
    base = np.array(results["base"][domain]["wins"], np.float64)
    return [
        pairwise_metrics.compare(
            [np.array(results[f"{name}-{seed}"][domain]["wins"], np.float64)],
            [base],
            pairwise_metrics.rate(CONDITIONS - 1),
        )
        for seed in experiment.seeds
    ]


def _domains(results: Results) -> list[str]:
    return [name for name, value in results["base"].items() if isinstance(value, dict)]


def _text(experiment: Experiment, results: Results) -> str:
    shared = results["overlap"]
    plots = "\n".join(f"![shares by place, {d}](plots/places-{d}.png)" for d in _domains(results))
    return f"""# Retrieval by many conditions: tuning, and where poolings look

## What training and test share

{_overlap(shared)}

## Tuning

{experiment.steps} steps of {experiment.batch} pairs, {experiment.negatives} hard negatives each;
seeds {report.listed(experiment.seeds)}, mean and deviation over them. WR_i is the share of rows
whose positive scores strictly above the hard negative, by the query of i conditions.

{_table(experiment, results)}

{_verdict(experiment, results)}

{_cut(experiment, results)}

## Where in the query poolings look

The lean is the share of what the first five of ten conditions are worth to the score, less that of
the last five: above 0 is early, below 0 late. In the query as it is, and in random orders, in which
places have no content of their own; 95 % intervals over rows.

{_leans(results)}

{plots}

## Settings

Machine: {report.machine()}. All settings are in config.json, all figures in results.json.
"""


def _overlap(shared: Results) -> str:
    lines = [
        f"- {shared['records']} records; {shared['records'] - shared['trained']} of them are left "
        "out, as all of their names stand in one positive of the test",
        f"- {shared['shared_names']} of their {shared['names']} names occur in the test "
        f"({shared['records_with_shared_name']} records have one); all are mapped to others",
    ]
    for kind in ("year", "genre", "title_len"):
        found = shared[kind]
        lines.append(
            f"- {kind}: {found['values_shared']} of the test's {found['values']} values are in "
            f"training, too ({found['rows_shared']} of {found['rows']} rows); these are not mapped"
        )
    return "\n".join(lines)


def _cut(experiment: Experiment, results: Results) -> str:
    """How many of the texts that were trained on were longer than they may be."""
    found = {
        name: cell["training_texts"] for name, cell in results.items() if "training_texts" in cell
    }
    cut, texts = (sum(seen[key] for seen in found.values()) for key in ("cut", "texts"))
    lines = [
        f"Of the {texts:,} texts that all trainings read, {cut:,} ({cut / texts:.2%}) were cut to "
        f"{experiment.length} tokens."
    ]
    lines += [
        f"- {name}: {seen['cut']:,} of {seen['texts']:,}"
        for name, seen in found.items()
        if seen["cut"]
    ]
    return "\n".join(lines)


def _table(experiment: Experiment, results: Results) -> str:
    head = ["scorer", "domain", "WR_1", "WR_5", "WR_10", "task 1", "task 2", "task 3, flips"]
    names = [
        *(("as it was", ["base"]), ("tuned", [f"tuned-{s}" for s in experiment.seeds])),
        ("tuned on shuffled pairs", [f"shuffled-{s}" for s in experiment.seeds]),
        *(("BM25", ["bm25"]), ("BM25, official", ["bm25 official"])),
        ("length of the document", ["length"]),
    ]
    rows = []
    for domain in _domains(results):
        for name, cells in names:
            found = [_figures(results[cell][domain]) for cell in cells]
            rows.append([name, domain, *map(mean_std, zip(*found, strict=True))])
    return table(head, rows)


def _figures(found: Results) -> list[float]:
    rates = found["task1"]["win_rate"]
    means = [found[f"task{task}"]["mean"]["value"] for task in (1, 2, 3)]
    return [rates[0], rates[4], rates[9], *means]


def _verdict(experiment: Experiment, results: Results) -> str:
    lines = []
    for domain in _domains(results):
        for name in ("tuned", "shuffled"):
            found = gains(experiment, results, name, domain)
            each = "; ".join(
                f"{100 * x.value:+.1f} ({100 * x.low:+.1f} to {100 * x.high:+.1f})" for x in found
            )
            mean = float(np.mean([x.value for x in found]))
            lines.append(f"- {domain}, {name}: WR_10 {100 * mean:+.1f} points on average: {each}")
            if domain == TRAINED_ON and name == "tuned":
                met = "met" if mean >= NEEDED else "not met"
                lines[-1] += f". The target of {100 * NEEDED:+.0f} points is {met}"
    return "\n".join(lines)


def _studies(results: Results, domain: str) -> dict[str, Results]:
    return {
        cell.removeprefix("pooling-"): found[domain]
        for cell, found in results.items()
        if cell.startswith("pooling-")
    }


def _leans(results: Results) -> str:
    head = ["model and pooling", "domain", "lean as it is", "lean in random orders", "so it is"]
    rows = []
    for domain in _domains(results):
        for name, found in _studies(results, domain).items():
            leans = [found[order]["lean"] for order in ("given", "shuffled")]
            rows.append([name, domain, *map(_interval, leans), _leaning(leans[1])])
    return table(head, rows)


def _interval(found: Results) -> str:
    if found["value"] is None:
        return "not told"
    return f"{found['value']:+.3f} ({found['low']:+.3f} to {found['high']:+.3f})"


def _leaning(found: Results) -> str:
    if found["value"] is None:
        return "not told"
    if found["low"] > 0:
        return "early"
    return "late" if found["high"] < 0 else "neither"


def _plot(folder: Path, domain: str, results: Results) -> None:
    """Shares by place in random orders, one line per pooling, one panel per model."""
    studies = _studies(results, domain)
    models = list(dict.fromkeys(name.split("-")[0] for name in studies))
    size = (3.2 * max(len(models), 1) + 1, 3.4)
    with plot.figure(
        folder, f"places-{domain}", 1, max(len(models), 1), figsize=size, squeeze=False, sharey=True
    ) as panels:
        for panel, model in zip(panels[0], models, strict=False):
            for name, found in studies.items():
                if name.split("-")[0] == model:
                    _line(panel, name, found["shuffled"]["share"])
            panel.axhline(1 / CONDITIONS, color="gray", lw=0.8, ls=":")
            panel.set(xlabel="place in the query", title=model)
            plot.guide(panel)
        panels[0, 0].set_ylabel("share of what ten are worth")


def _line(panel: Any, name: str, shares: list[Results]) -> None:
    value, low, high = (
        np.array([np.nan if x[key] is None else x[key] for x in shares])
        for key in ("value", "low", "high")
    )
    places = np.arange(1, CONDITIONS + 1)
    (line,) = panel.plot(places, value, "o-", ms=3, label=name.split("-", 1)[1])
    panel.fill_between(places, low, high, color=line.get_color(), alpha=0.15)
