"""The report of a run: the paper's table beside what was measured, two plots, and what they say."""

from pathlib import Path

import numpy as np

from experiments.timepro.config import HORIZONS, PUBLISHED_MEAN, Experiment
from pangu_jax.study import plot, report
from pangu_jax.study.table import mean_std, standard_error, table

VARIANTS = ("full", "stateless", "linear", "repeat", "tuned")
TITLES = {
    "full": "TimePro (ours)",
    "stateless": "without the state branch",
    "linear": "closed-form linear",
    "repeat": "repeat last value",
    "tuned": "tuned",
}
SHOWN = (0.6, 1.6)  # of the errors' plot; a bar that ends elsewhere has its number written


def write_report(folder: Path, experiment: Experiment, results: dict) -> Path:
    """Draws the plots and writes report.md; returns its path."""
    found = {}
    for cell in results.values():
        place = cell["data"], cell["horizon"]
        if cell["variant"] == "baselines":
            for name in ("linear", "repeat"):
                found[*place, name] = {k: [v] for k, v in cell[name].items()}
        else:
            found[*place, cell["variant"]] = cell
    _plot_errors(folder, found)
    _plot_curves(folder, results)
    return report.write(folder, _text(experiment, found, results))


def _text(experiment, found, results) -> str:
    names = list(dict.fromkeys(place[0] for place in found))
    horizons = [h for h in HORIZONS if any(place[1] == h for place in found)]
    shown = [v for v in VARIANTS if any(place[2] == v for place in found)]
    rows = []
    for name, horizon in ((n, h) for n in names for h in horizons):
        if any((name, horizon, v) in found for v in shown):
            counts = {
                c["windows"]
                for c in results.values()
                if (c["data"], c["horizon"]) == (name, horizon)
            }
            scores = [_score(found.get((name, horizon, v))) for v in shown]
            rows.append([name, horizon, f"{max(counts):,}", *scores])
    head = ("data", "H", "test windows", *(TITLES[v] for v in shown))
    seeds = len(experiment.seeds)
    seconds = sum(c["seconds"] for c in results.values())
    devices = sorted({c["device"] for c in results.values()})
    cut = [k for k, c in results.items() if c.get("cut")]
    return f"""# TimePro: long-term forecasting

Test error as MSE / MAE of z-scored values over every test window. Models: mean ± standard deviation
over {seeds} seed{"s" if seeds > 1 else ""}. "Without the state branch" is the same network with the
scan and the sampling left out: every series is then forecast from its own past alone. The linear
map is least squares on mean-removed windows of 96 steps, one map for all series.

{table(head, rows)}

{_cut_note(cut)}{_average_text(found, names)}
## What the state branch brings

{_branch_text(found, names, horizons)}
![errors](plots/errors.png)

![validation curves](plots/curves.png)

## Settings

Published settings of every cell (config.py), {_limits(experiment)}seeds \
{report.listed(experiment.seeds)}. {len(results)} cells, {seconds:,.0f} s in all (of one that was \
stopped, since it was last gone on with), on \
{report.listed(devices)}. Every figure is in results.json.
"""


def _limits(experiment) -> str:
    parts = []
    if experiment.epochs is not None:
        parts.append(f"at most {experiment.epochs} epoch(s)")
    if experiment.windows is not None:
        parts.append(f"only {experiment.windows} training windows")
    return f"but {' and '.join(parts)}: these figures mean nothing; " if parts else ""


def _score(cell: dict | None) -> str:
    if cell is None:
        return ""
    mark = "\\*" if cell.get("cut") else ""
    return f"{mean_std(cell['mse'])} / {mean_std(cell['mae'])}{mark}"


def _cut_note(cut: list[str]) -> str:
    if not cut:
        return ""
    return f"\\* training was cut short for want of time: {', '.join(cut)}.\n\n"


def _average_text(cells, names) -> str:
    """Averages over the four horizons beside the published ones, where all four are there."""
    rows = []
    for name in names:
        means = {}
        for variant in VARIANTS:
            all_four = [cells.get((name, h, variant)) for h in HORIZONS]
            if all(all_four):
                means[variant] = [
                    np.mean([np.mean(c[k]) for c in all_four]) for k in ("mse", "mae")
                ]
        if means:
            both = [PUBLISHED_MEAN[name], *(means.get(v) for v in VARIANTS)]
            rows.append([name, *("{:.3f} / {:.3f}".format(*m) if m else "" for m in both)])
    if not rows:
        return ""
    head = ("data", "published TimePro", *(TITLES[v] for v in VARIANTS))
    return (
        "## Mean over the four horizons\n\nThe published column is read off the table image in the "
        f"paper's repository; the others were measured.\n\n{table(head, rows)}\n\n"
    )


def _branch_text(cells, names, horizons) -> str:
    lines = []
    for name in names:
        for horizon in horizons:
            both = [cells.get((name, horizon, v)) for v in ("full", "stateless")]
            if not all(both):
                continue
            full, bare = (np.array(c["mse"]) for c in both)
            gap = full.mean() - bare.mean()
            text = f"* {name}-{horizon}: MSE {gap:+.4f} with the branch"
            if len(full) > 1 and len(bare) > 1:
                text += f" (standard error {standard_error(full, bare):.4f})"
            lines.append(text + (", one of them cut short" if _any_cut(both) else "") + ".")
    if not lines:
        return "No cell of this run has both variants.\n"
    return "\n".join([*lines, ""]) + "\n"


def _any_cut(cells) -> bool:
    return any(c.get("cut") for c in cells)


def _plot_errors(folder: Path, cells) -> None:
    names = list(dict.fromkeys(place[0] for place in cells))
    places = sorted({place[:2] for place in cells}, key=lambda p: (names.index(p[0]), p[1]))
    width = 0.8 / len(VARIANTS)
    with plot.figure(folder, "errors", figsize=(max(7, 0.5 * len(places)), 4)) as axes:
        for i, variant in enumerate(VARIANTS):
            at, heights, spread = [], [], []
            for x, place in enumerate(places):
                cell, base = cells.get((*place, variant)), cells.get((*place, "linear"))
                if cell is not None and base is not None:
                    at.append(x + (i - 2) * width)
                    heights.append(np.mean(cell["mse"]) / base["mse"][0])
                    spread.append(np.std(cell["mse"]) / base["mse"][0])
            if at:
                axes.bar(at, heights, width, yerr=spread, label=TITLES[variant])
            for x, height in zip(at, heights, strict=True):
                if not SHOWN[0] < height <= SHOWN[1]:  # the bar is cut: say where it ends
                    place = x, np.clip(height, *SHOWN)
                    axes.annotate(f"{height:.1f}", place, (0, 2), textcoords="offset points",
                                  ha="center", fontsize=7, annotation_clip=False)  # fmt: skip
        axes.axhline(1, color="black", lw=0.6)
        labels = [f"{n} {h}" for n, h in places]
        axes.set_xticks(range(len(places)), labels, rotation=60, fontsize=7)
        axes.set(ylabel="MSE relative to the linear map", ylim=SHOWN)
        if axes.get_legend_handles_labels()[0]:
            axes.legend(fontsize=8, ncols=3, loc="lower center", bbox_to_anchor=(0.5, 1.05))
        axes.grid(alpha=0.3, axis="y")


def _plot_curves(folder: Path, results) -> None:
    with plot.figure(folder, "curves") as axes:
        for name, cell in results.items():
            if "curves" in cell:
                errors = np.array([e["validation"] for e in cell["curves"][0]])
                style = "-" if cell["variant"] == "full" else "--"
                epochs = range(1, len(errors) + 1)
                axes.plot(epochs, errors / errors[0], style, label=name, lw=1)
        axes.set(xlabel="epoch", ylabel="validation MSE relative to the first epoch (first seed)")
        if axes.get_legend_handles_labels()[0]:
            axes.legend(fontsize=6, ncols=2)
        axes.grid(alpha=0.3)
