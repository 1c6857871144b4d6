"""The report of a run: the paper's table beside what was measured, two plots, and what they say."""

from pathlib import Path

import matplotlib
import numpy as np
from config import HORIZONS, PUBLISHED_MEAN, Experiment

from pangu_jax.core.files import atomic_write

matplotlib.use("Agg")
import matplotlib.pyplot as plt

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
    plots = folder / "plots"
    plots.mkdir(parents=True, exist_ok=True)
    table = {}
    for cell in results.values():
        place = cell["data"], cell["horizon"]
        if cell["variant"] == "baselines":
            for name in ("linear", "repeat"):
                table[*place, name] = {k: [v] for k, v in cell[name].items()}
        else:
            table[*place, cell["variant"]] = cell
    _plot_errors(plots / "errors.png", table)
    _plot_curves(plots / "curves.png", results)
    path = folder / "report.md"
    with atomic_write(path) as file:
        file.write(_text(experiment, table, results))
    return path


def _text(experiment, table, results) -> str:
    names = list(dict.fromkeys(place[0] for place in table))
    horizons = [h for h in HORIZONS if any(place[1] == h for place in table)]
    shown = [v for v in VARIANTS if any(place[2] == v for place in table)]
    head = "| data | H | test windows | " + " | ".join(TITLES[v] for v in shown) + " |"
    rows = [head, "|---|---|---|" + "---|" * len(shown)]
    for name in names:
        for horizon in horizons:
            if not any((name, horizon, v) in table for v in shown):
                continue
            counts = {
                c["windows"]
                for c in results.values()
                if (c["data"], c["horizon"]) == (name, horizon)
            }
            cells = [_score(table.get((name, horizon, v))) for v in shown]
            rows.append(f"| {name} | {horizon} | {max(counts):,} | " + " | ".join(cells) + " |")
    seeds = len(experiment.seeds)
    seconds = sum(c["seconds"] for c in results.values())
    devices = sorted({c["device"] for c in results.values()})
    cut = [k for k, c in results.items() if c.get("cut")]
    return f"""# TimePro: long-term forecasting

Test error as MSE / MAE of z-scored values over every test window. Models: mean ± standard deviation
over {seeds} seed{"s" if seeds > 1 else ""}. "Without the state branch" is the same network with the
scan and the sampling left out: every series is then forecast from its own past alone. The linear
map is least squares on mean-removed windows of 96 steps, one map for all series.

{chr(10).join(rows)}

{_cut_note(cut)}{_average_text(table, names)}
## What the state branch brings

{_branch_text(table, names, horizons)}
![errors](plots/errors.png)

![validation curves](plots/curves.png)

## Settings

Published settings of every cell (config.py), {_limits(experiment)}seeds \
{", ".join(map(str, experiment.seeds))}. {len(results)} cells, {seconds:,.0f} s in all, on \
{", ".join(devices)}. Every figure is in results.json.
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
    mse, mae = np.array(cell["mse"]), np.array(cell["mae"])
    mark = "\\*" if cell.get("cut") else ""
    if len(mse) == 1:
        return f"{mse[0]:.3f} / {mae[0]:.3f}{mark}"
    return (
        f"{mse.mean():.3f} ± {mse.std(ddof=1):.3f} / {mae.mean():.3f} ± {mae.std(ddof=1):.3f}{mark}"
    )


def _cut_note(cut: list[str]) -> str:
    if not cut:
        return ""
    return f"\\* training was cut short for want of time: {', '.join(cut)}.\n\n"


def _average_text(table, names) -> str:
    """Averages over the four horizons beside the published ones, where all four are there."""
    rows = []
    for name in names:
        found = {}
        for variant in VARIANTS:
            cells = [table.get((name, h, variant)) for h in HORIZONS]
            if all(cells):
                found[variant] = [np.mean([np.mean(c[k]) for c in cells]) for k in ("mse", "mae")]
        if found:
            published = "{:.3f} / {:.3f}".format(*PUBLISHED_MEAN[name])
            cells = ["{:.3f} / {:.3f}".format(*found[v]) if v in found else "" for v in VARIANTS]
            rows.append(f"| {name} | {published} | " + " | ".join(cells) + " |")
    if not rows:
        return ""
    head = "| data | published TimePro | " + " | ".join(TITLES[v] for v in VARIANTS) + " |"
    line = "|---|---|" + "---|" * len(VARIANTS)
    return (
        "## Mean over the four horizons\n\nThe published column is read off the table image in the "
        "paper's repository; the others were measured.\n\n"
        + "\n".join([head, line, *rows])
        + "\n\n"
    )


def _branch_text(table, names, horizons) -> str:
    lines = []
    for name in names:
        for horizon in horizons:
            both = [table.get((name, horizon, v)) for v in ("full", "stateless")]
            if not all(both):
                continue
            full, bare = (np.array(c["mse"]) for c in both)
            gap = full.mean() - bare.mean()
            text = f"* {name}-{horizon}: MSE {gap:+.4f} with the branch"
            if len(full) > 1 and len(bare) > 1:
                error = np.sqrt(full.var(ddof=1) / len(full) + bare.var(ddof=1) / len(bare))
                text += f" (standard error {error:.4f})"
            lines.append(text + (", one of them cut short" if _any_cut(both) else "") + ".")
    if not lines:
        return "No cell of this run has both variants.\n"
    return "\n".join([*lines, ""]) + "\n"


def _any_cut(cells) -> bool:
    return any(c.get("cut") for c in cells)


def _plot_errors(path: Path, table) -> None:
    names = list(dict.fromkeys(place[0] for place in table))
    places = sorted({place[:2] for place in table}, key=lambda p: (names.index(p[0]), p[1]))
    figure, axes = plt.subplots(figsize=(max(7, 0.5 * len(places)), 4))
    width = 0.8 / len(VARIANTS)
    for i, variant in enumerate(VARIANTS):
        at, heights, spread = [], [], []
        for x, place in enumerate(places):
            cell = table.get((*place, variant))
            base = table.get((*place, "linear"))
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
    axes.set_xticks(range(len(places)), [f"{n} {h}" for n, h in places], rotation=60, fontsize=7)
    axes.set(ylabel="MSE relative to the linear map", ylim=SHOWN)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(fontsize=8, ncols=3, loc="lower center", bbox_to_anchor=(0.5, 1.05))
    axes.grid(alpha=0.3, axis="y")
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    plt.close(figure)


def _plot_curves(path: Path, results) -> None:
    figure, axes = plt.subplots(figsize=(7, 4))
    for name, cell in results.items():
        if "curves" in cell:
            first = cell["curves"][0]
            errors = np.array([e["validation"] for e in first])
            style = "-" if cell["variant"] == "full" else "--"
            axes.plot(range(1, len(errors) + 1), errors / errors[0], style, label=name, lw=1)
    axes.set(xlabel="epoch", ylabel="validation MSE relative to the first epoch (first seed)")
    if axes.get_legend_handles_labels()[0]:
        axes.legend(fontsize=6, ncols=2)
    axes.grid(alpha=0.3)
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    plt.close(figure)
