"""The report of a run: one table, three plots, and what they say."""

import platform
from pathlib import Path

import jax
import matplotlib
import numpy as np
from config import Experiment

from pangu_jax.core.files import atomic_write
from pangu_jax.models.decoder import DecoderConfig
from pangu_jax.train.metrics import read_metrics

matplotlib.use("Agg")
import matplotlib.pyplot as plt

NAMES = {"moge": "MoGE (grouped)", "topk": "ordinary top-k"}
COLOURS = {"moge": "tab:blue", "topk": "tab:orange"}


def write_report(
    folder: Path, experiment: Experiment, models: dict[str, DecoderConfig], results: dict
) -> Path:
    """Draws the plots and writes report.md; returns its path."""
    plots = folder / "plots"
    plots.mkdir(parents=True, exist_ok=True)
    cells = {name: [results[f"{name}-seed{seed}"] for seed in experiment.seeds] for name in models}
    _plot_loss(plots / "loss.png", folder, experiment)
    _plot_load(plots / "load.png", cells)
    _plot_imbalance(plots / "imbalance.png", cells, results["uniform"], experiment)
    path = folder / "report.md"
    with atomic_write(path) as file:
        file.write(_text(experiment, models, cells, results))
    return path


def _text(experiment, models, cells, results) -> str:
    moe = experiment.model.layers[0].moe
    control, most = results["byte model"], max(experiment.devices)
    active = moe.groups * moe.top_k
    small = experiment.batch_sizes[min(1, len(experiment.batch_sizes) - 1)]
    rows = "\n".join(_row(name, cells[name], experiment, small) for name in models)
    device = jax.devices()[0]
    gap = _mean(cells["moge"], "bits_per_byte") - _mean(cells["topk"], "bits_per_byte")
    slow = _balance(cells["topk"], most, small, "straggler")
    big = experiment.batch_sizes[-1]
    less = _balance(cells["topk"], most, big, "straggler")
    return f"""# Grouped experts against ordinary top-k

Two language models of equal size were trained on the same text in the same order. Both have
{moe.experts} experts a layer and send every token to {active} of them. The ordinary router takes
the best {active} of all; the grouped router (MoGE, arXiv 2505.21411) takes the best {moe.top_k} of
each of {moe.groups} groups. Where each device holds whole groups, every device then computes the
same number of tokens, whatever the text.

| | parameters | active a token | held-out bits per byte | tokens/s | imbalance, {most} devices, \
batches of {small} | slowest / mean device |
|---|---|---|---|---|---|---|
{rows}
| order-{control["order"]} byte model (control) | | | {control["bits_per_byte"]:.3f} | | | |

Bits per byte: less is better; {control["testing_bytes"]:,} bytes of documents that neither model
nor control saw; {cells["moge"][0]["protocol"]}. {_spread(experiment)} The control predicts a byte
from the {control["order"]} before it (Witten-Bell smoothing; the order that predicts each tenth of
the training documents best from the others) and was fitted to the same
{control["training_bytes"]:,} training bytes{_beaten(cells, control)}.
Imbalance is (most - least loaded device) / tokens, the mean over layers and random batches of
held-out tokens. Devices are counted, not timed: everything ran on one {device.platform.upper()}
({device.device_kind}, {platform.machine()}, jax {jax.__version__}).

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
seeds {", ".join(map(str, experiment.seeds))}, text: {experiment.data}. All settings are in
config.json, all figures in results.json. The whole run took {results["seconds"]:.0f} s.
"""


def _row(name: str, cells: list[dict], experiment: Experiment, small: int) -> str:
    most = max(experiment.devices)
    speed = _mean(cells, "tokens_per_s")
    return (
        f"| {NAMES[name]} | {cells[0]['parameters']:,} | {cells[0]['active']:,} "
        f"| {_with_spread(cells, 'bits_per_byte')} | {speed:,.0f} "
        f"| {_balance(cells, most, small, 'score'):.3f} "
        f"| {_balance(cells, most, small, 'straggler'):.3f} |"
    )


def _with_spread(cells: list[dict], name: str) -> str:
    values = [c[name] for c in cells]
    text = f"{np.mean(values):.3f}"
    return text if len(values) == 1 else f"{text} ± {np.std(values, ddof=1):.3f}"


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
        spread = np.sqrt(np.sum([np.var(v, ddof=1) / len(v) for v in values]))
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


def _plot_loss(path: Path, folder: Path, experiment: Experiment) -> None:
    figure, axes = plt.subplots(figsize=(7, 4))
    for name, label in NAMES.items():
        for seed in experiment.seeds:
            lines = read_metrics(folder / f"{name}-seed{seed}" / "metrics.jsonl")
            lines = [x for x in lines if "nats" in x]
            window = max(1, len(lines) // 50)
            nats = np.convolve([x["nats"] for x in lines], np.ones(window) / window, "valid")
            tokens = np.cumsum([x["weight"] for x in lines])[window - 1 :]
            shown = label if seed == experiment.seeds[0] else None
            axes.plot(tokens / 1e6, nats / np.log(2), color=COLOURS[name], label=shown, lw=1)
    axes.set(xlabel="training tokens, millions", ylabel="bits per token (running mean)")
    axes.set_ylim(top=min(axes.get_ylim()[1], 5))
    _finish(figure, axes, path)


def _plot_load(path: Path, cells: dict) -> None:
    layers = len(cells["moge"][0]["layers"])
    figure, grid = plt.subplots(
        min(layers, 4), 1, figsize=(8, 1.9 * min(layers, 4) + 0.6), sharex=True, squeeze=False
    )
    shown = np.linspace(0, layers - 1, min(layers, 4)).astype(int)
    for axes, layer in zip(grid[:, 0], shown, strict=True):
        for offset, (name, label) in zip((-0.2, 0.2), NAMES.items(), strict=True):
            load = np.asarray(cells[name][0]["layers"][layer]["load"], float)
            place = np.arange(len(load)) + offset
            axes.bar(place, load / load.mean(), 0.4, color=COLOURS[name], label=label)
        axes.axhline(1, color="black", lw=0.6)
        axes.set_ylabel(f"layer {layer}")
    grid[0, 0].legend(ncols=2, fontsize=8, loc="upper right")
    grid[-1, 0].set_xlabel("expert (load relative to the mean)")
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    plt.close(figure)


def _plot_imbalance(path: Path, cells: dict, uniform: list[dict], experiment: Experiment) -> None:
    figure, axes = plt.subplots(figsize=(7, 4))
    sizes = sorted({b["tokens"] for b in cells["moge"][0]["layers"][0]["balance"]})
    styles = dict(zip(experiment.devices, ("o", "s", "^", "d"), strict=False))
    for devices, marker in styles.items():
        for name, label in NAMES.items():
            values = [_balance(cells[name], devices, size, "score") for size in sizes]
            text = f"{label}, {devices} devices"
            axes.plot(sizes, values, color=COLOURS[name], marker=marker, label=text, lw=1)
        ideal = {b["tokens"]: b["score"] for b in uniform if b["devices"] == devices}
        axes.plot(sizes, [ideal[s] for s in sizes], ":", color="grey", marker=marker, ms=3, lw=1)
    axes.set(xscale="log", xlabel="tokens in a batch", ylabel="imbalance score")
    _finish(figure, axes, path)


def _finish(figure, axes, path: Path) -> None:
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    plt.close(figure)
