"""The report of a run: one table, three plots, and what they say."""

from pathlib import Path

import jax
import numpy as np

from experiments.pangu_pro_moe.config import Experiment
from pangu_jax.models.decoder import DecoderConfig
from pangu_jax.study import plot, report
from pangu_jax.study.table import mean_std, standard_error, table
from pangu_jax.train.metrics import read_metrics

NAMES = {"moge": "MoGE (grouped)", "topk": "ordinary top-k"}
COLORS = {"moge": "tab:blue", "topk": "tab:orange"}


def write_report(
    folder: Path, experiment: Experiment, models: dict[str, DecoderConfig], results: dict
) -> Path:
    """Draws the plots and writes report.md; returns its path."""
    cells = {name: [results[f"{name}-seed{seed}"] for seed in experiment.seeds] for name in models}
    _plot_loss(folder, experiment)
    _plot_load(folder, cells)
    _plot_imbalance(folder, cells, results["uniform"], experiment)
    return report.write(folder, _text(experiment, models, cells, results))


def _text(experiment, models, cells, results) -> str:
    moe = experiment.model.layers[0].moe
    control, most = results["byte model"], max(experiment.devices)
    active = moe.groups * moe.top_k
    small = experiment.batch_sizes[min(1, len(experiment.batch_sizes) - 1)]
    head = ("", "parameters", "active per token", "held-out bits per byte", "tokens/s",
            f"imbalance, {most} devices, batches of {small}", "slowest / mean device")  # fmt: skip
    rows = [_row(name, cells[name], experiment, small) for name in models]
    name = f"order-{control['order']} byte model (control)"
    rows.append([name, "", "", f"{control['bits_per_byte']:.3f}", "", "", ""])
    platform = jax.devices()[0].platform.upper()
    gap = _mean(cells["moge"], "bits_per_byte") - _mean(cells["topk"], "bits_per_byte")
    slow = _balance(cells["topk"], most, small, "straggler")
    big = experiment.batch_sizes[-1]
    less = _balance(cells["topk"], most, big, "straggler")
    return f"""# Grouped experts against ordinary top-k

Two language models of equal size were trained on the same text in the same order. Both have
{moe.experts} experts per layer and send every token to {active} of them. The ordinary router takes
the best {active} of all; the grouped router (MoGE, arXiv 2505.21411) takes the best {moe.top_k} of
each of {moe.groups} groups. Where each device holds whole groups, every device then computes the
same number of tokens, whatever the text.

{table(head, rows)}

Bits per byte: less is better; {control["testing_bytes"]:,} bytes of documents that neither model
nor control saw; {cells["moge"][0]["protocol"]}. {_spread(experiment)} The control predicts a byte
from the {control["order"]} before it (Witten-Bell smoothing; the order that predicts each tenth of
the training documents best from the others) and was fitted to the same
{control["training_bytes"]:,} training bytes{_beaten(cells, control)}.
Imbalance is (most - least loaded device) / tokens, the mean over layers and random batches of
held-out tokens. Devices are counted, not timed: everything ran on one {platform}
({report.machine()}).

## What it buys

Balance that does not depend on the text. With {most} devices and batches of {small} tokens the
fullest device of the ordinary router has {slow:.2f} times the mean load, and all others wait for
it; with groups the factor is exactly 1. At {big} tokens the ordinary router's factor is {less:.2f}.

![imbalance against batch size](plots/imbalance.png)

Solid: measured on the trained models. Dotted: an ordinary router that uses all experts equally
often. The dotted part is chance and fades as batches grow; what lies above it is the trained
router's own preference for some experts and does not fade.

## What it costs

{_cost(gap, cells, experiment)} A token may no longer take two experts of one group, however well
both would suit it. And every token visits every device, so with devices apart the grouped model
sends each token to all of them, where an ordinary one may skip some.

![loss curves](plots/loss.png)

## Inside the groups

Groups are balanced by construction, experts inside a group are not: the auxiliary loss sees to
that. Mean coefficient of variation of the experts' loads inside groups:
{_variation(cells["moge"]):.2f} (grouped), {_variation(cells["topk"]):.2f} (ordinary, same experts).

![load of each expert](plots/load.png)

## Samples

{_samples(cells)}
## Settings

{experiment.steps} steps of {experiment.batch} windows of {experiment.length} tokens, auxiliary loss
weight {experiment.aux_weight}, learning rate {experiment.optimizer.learning_rate},
seeds {report.listed(experiment.seeds)}, text: {experiment.data}. All settings are in
config.json, all figures in results.json. The whole run took {results["seconds"]:.0f} s.
"""


def _row(name: str, cells: list[dict], experiment: Experiment, small: int) -> list[str]:
    most = max(experiment.devices)
    return [
        NAMES[name],
        f"{cells[0]['parameters']:,}",
        f"{cells[0]['active']:,}",
        mean_std([c["bits_per_byte"] for c in cells]),
        f"{_mean(cells, 'tokens_per_s'):,.0f}",
        f"{_balance(cells, most, small, 'score'):.3f}",
        f"{_balance(cells, most, small, 'straggler'):.3f}",
    ]


def _spread(experiment: Experiment) -> str:
    number = len(experiment.seeds)
    if number == 1:
        return "One seed: the sign of a small difference means little."
    return f"Mean and standard deviation over {number} seeds."


def _beaten(cells: dict, control: dict) -> str:
    worst = max(c["bits_per_byte"] for part in cells.values() for c in part)
    return "; both beat it" if worst < control["bits_per_byte"] else "; NOT every model beats it"


def _cost(gap: float, cells: dict, experiment: Experiment) -> str:
    better = "fewer" if gap < 0 else "more"
    text = f"The grouped model needs {abs(gap):.3f} bits per byte {better} than the ordinary one"
    if len(experiment.seeds) > 1:
        values = [[c["bits_per_byte"] for c in cells[n]] for n in ("moge", "topk")]
        spread = standard_error(*values)
        return f"{text} (standard error {spread:.3f} over {len(experiment.seeds)} seeds)."
    return f"{text} (one seed, so its sign means little)."


def _samples(cells: dict) -> str:
    parts = []
    for name, (first, *_) in cells.items():
        # Cells of before there were three hold one.
        samples = first.get("samples") or [first["sample"]]
        parts += [f"{NAMES[name]}:\n", *(f"```\n{sample}\n```\n" for sample in samples)]
    return "\n".join(parts)


def _mean(cells: list[dict], name: str) -> float:
    return float(np.mean([c[name] for c in cells]))


def _variation(cells: list[dict]) -> float:
    return float(np.mean([layer["variation"] for c in cells for layer in c["layers"]]))


def _balance(cells: list[dict], devices: int, tokens: int, what: str) -> float:
    values = [
        b[what]
        for c in cells
        for layer in c["layers"]
        for b in layer["balance"]
        if b["devices"] == devices and b["tokens"] == tokens
    ]
    return float(np.mean(values)) if values else float("nan")


def _plot_loss(folder: Path, experiment: Experiment) -> None:
    with plot.figure(folder, "loss") as axes:
        for name, label in NAMES.items():
            for seed in experiment.seeds:
                lines = read_metrics(folder / f"{name}-seed{seed}" / "metrics.jsonl")
                lines = [x for x in lines if "nats" in x]
                window = max(1, len(lines) // 50)
                nats = np.convolve([x["nats"] for x in lines], np.ones(window) / window, "valid")
                tokens = np.cumsum([x["weight"] for x in lines])[window - 1 :]
                shown = label if seed == experiment.seeds[0] else None
                axes.plot(tokens / 1e6, nats / np.log(2), color=COLORS[name], label=shown, lw=1)
        axes.set(xlabel="training tokens, millions", ylabel="bits per token (running mean)")
        axes.set_ylim(top=min(axes.get_ylim()[1], 5))
        plot.guide(axes)


def _plot_load(folder: Path, cells: dict) -> None:
    layers = len(cells["moge"][0]["layers"])
    rows = min(layers, 4)
    with plot.figure(
        folder, "load", rows, 1, figsize=(8, 1.9 * rows + 0.6), sharex=True, squeeze=False
    ) as grid:
        for axes, layer in zip(
            grid[:, 0], np.linspace(0, layers - 1, rows).astype(int), strict=True
        ):
            for offset, (name, label) in zip((-0.2, 0.2), NAMES.items(), strict=True):
                load = np.asarray(cells[name][0]["layers"][layer]["load"], float)
                place = np.arange(len(load)) + offset
                axes.bar(place, load / load.mean(), 0.4, color=COLORS[name], label=label)
            axes.axhline(1, color="black", lw=0.6)
            axes.set_ylabel(f"layer {layer}")
        grid[0, 0].legend(ncols=2, fontsize=8, loc="upper right")
        grid[-1, 0].set_xlabel("expert (load relative to the mean)")


def _plot_imbalance(folder: Path, cells: dict, uniform: list[dict], experiment: Experiment) -> None:
    sizes = sorted({b["tokens"] for b in cells["moge"][0]["layers"][0]["balance"]})
    styles = dict(zip(experiment.devices, ("o", "s", "^", "d"), strict=False))
    with plot.figure(folder, "imbalance") as axes:
        for devices, marker in styles.items():
            for name, label in NAMES.items():
                values = [_balance(cells[name], devices, size, "score") for size in sizes]
                text = f"{label}, {devices} devices"
                axes.plot(sizes, values, color=COLORS[name], marker=marker, label=text, lw=1)
            ideal = {b["tokens"]: b["score"] for b in uniform if b["devices"] == devices}
            scores = [ideal[size] for size in sizes]
            axes.plot(sizes, scores, ":", color="gray", marker=marker, ms=3, lw=1)
        axes.set(xscale="log", xlabel="tokens in a batch", ylabel="imbalance score")
        plot.guide(axes)
