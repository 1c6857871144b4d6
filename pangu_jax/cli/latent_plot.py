"""The picture of `latent probe --plot`: lenses, probes, superposition, ablations on one page."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import matplotlib.ticker
import numpy as np

from pangu_jax.core.picture import picture
from pangu_jax.data.prosqa import by_distance
from pangu_jax.data.tokenizer import Tokenizer
from pangu_jax.models.decoder import DecoderConfig
from pangu_jax.reasoning.latent.lens import Spread, spread
from pangu_jax.reasoning.latent.probe import Target, lens_ranks
from pangu_jax.reasoning.latent.score import Score

MOST = 8  # lines of a panel


@dataclasses.dataclass(frozen=True)
class Shown:
    """What the picture shows beside the probes.

    Attributes:
      lens: by target (each step, and the answer), float [L, n]: the median rank, from 1, that each
        layer's state at each thought gives its id, over the half of the problems that the tuned
        lens was not fitted to.
      tuned: the same through the tuned lens.
      spreads: how the head's probability at each thought spreads over sets of ids.
      scores: scores of the answers, by ablation; "" without one.
    """

    lens: dict[str, np.ndarray]
    tuned: dict[str, np.ndarray]
    spreads: dict[str, Spread]
    scores: Mapping[str, Score]


def among(targets: Sequence[Target], problems: np.ndarray) -> list[Target]:
    """The targets within some of the problems, renumbered; leaves out a target that none has.

    Args:
      targets: numbered by all problems.
      problems: int [m], which are kept; their order numbers them anew.
    """
    place = {int(problem): number for number, problem in enumerate(problems)}
    found = []
    for target in targets:
        kept = [i for i, problem in enumerate(target.problems) if int(problem) in place]
        numbers = np.array([place[int(target.problems[i])] for i in kept], int)
        if kept:
            found.append(Target(target.name, numbers, target.ids[kept]))
    return found


def lens_by_layer(
    params: dict[str, Any], states: np.ndarray, targets: Sequence[Target], *, cfg: DecoderConfig
) -> dict[str, np.ndarray]:
    """The median rank of each target's id by layer and thought, float [L, n], from 1.

    Args:
      params: tree of `decoder.spec(cfg)`.
      states: float32 [N, L, n, D], after the final norm.
      targets: the ids that are looked for.
      cfg: the model.
    """
    return {
        target.name: np.array(
            [
                [
                    1 + np.median(lens_ranks(params, column[:, None], target.ids, cfg=cfg))
                    for column in np.swapaxes(states[target.problems, layer], 0, 1)
                ]
                for layer in range(states.shape[1])
            ]
        )
        for target in targets
    }


def spreads(
    params: dict[str, Any],
    states: np.ndarray,
    questions: Sequence[str],
    targets: Sequence[Target],
    tokenizer: Tokenizer,
    *,
    cfg: DecoderConfig,
) -> dict[str, Spread]:
    """How the head's probability at each thought spreads over what may come next.

    For ProsQA's questions, where a node is one token: over the nodes at each distance from the one
    asked about, and over those that are not reached. For others: over the id of each target.

    Args:
      params: tree of `decoder.spec(cfg)`.
      states: float [N, n, D], which thoughts are made of, after the final norm.
      questions: N texts.
      targets: ids of which each problem has at most one.
      tokenizer: the model's tokenizer.
      cfg: the model.
    """
    sets = _nodes(questions, tokenizer)
    if sets is None:
        sets = {target.name: [()] * len(questions) for target in targets}
        for target in targets:
            for problem, number in zip(target.problems, target.ids, strict=True):
                sets[target.name][problem] = (int(number),)
    return {
        name: spread(params, states, found, cfg=cfg) for name, found in sets.items() if any(found)
    }


def _nodes(
    questions: Sequence[str], tokenizer: Tokenizer
) -> dict[str, list[tuple[int, ...]]] | None:
    """Nodes' ids by distance; None if questions are not graphs, or nodes not single tokens."""
    graphs = [by_distance(question) for question in questions]
    known = [graph for graph in graphs if graph is not None]
    if len(known) < len(graphs):
        return None
    words = {word for near, never in known for word in set().union(*near, never)}
    ids = {word: tokenizer.encode(word) for word in words}
    if any(len(found) != 1 for found in ids.values()):
        return None

    def numbers(words: set[str]) -> tuple[int, ...]:
        return tuple(sorted(ids[word][0] for word in words))

    most = max(len(near) for near, _ in known)
    found = {
        f"{step + 1} step{'s' * (step > 0)} away": [
            numbers(near[step]) if len(near) > step else () for near, _ in known
        ]
        for step in range(most)
    }
    return {**found, "not reached": [numbers(never) for _, never in known]}


def draw(path: str, lines: Sequence[Mapping[str, Any]], shown: Shown, *, title: str) -> None:
    """Writes the picture.

    Args:
      path: a .png, .svg or .pdf file.
      lines: the probes, as `latent probe` prints them.
      shown: what else is drawn.
      title: heads the page.

    Raises:
      InputError: another ending, or it cannot be written.
    """
    with picture(path, figsize=(17, 7.5), layout="constrained") as figure:
        figure.suptitle(title, fontsize=10)
        grid = figure.subplots(2, 4)
        _lenses(figure, grid[:, :2], {"logit lens": shown.lens, "tuned lens": shown.tuned})
        _probes(figure, grid[:, 2], lines)
        _superposition(grid[0, 3], shown.spreads)
        _ablations(grid[1, 3], shown.scores)


def _lenses(figure: Any, grid: Any, lenses: Mapping[str, Mapping[str, np.ndarray]]) -> None:
    """Draws a column per lens, and a row each for the first and last target, on one color scale."""
    names = list(next(iter(lenses.values())))
    for row, name in zip(grid, [names[0], names[-1]], strict=True):
        places = [np.log10(lens[name]) for lens in lenses.values()]
        colors = {"vmin": np.min(places), "vmax": np.max(places), "cmap": "viridis_r"}
        for axes, title, shown in zip(row, lenses, places, strict=True):
            image = axes.imshow(shown, aspect="auto", origin="lower", **colors)
            figure.colorbar(image, ax=axes, label="log10 of the median place")
            _thoughts(axes, shown.shape[1])
            axes.yaxis.set_major_locator(matplotlib.ticker.MaxNLocator(8, integer=True))
            axes.yaxis.set_major_formatter(lambda layer, _: f"{layer + 1:.0f}")
            axes.set(ylabel="layer", title=f"{title}: {name}")


def _probes(figure: Any, grid: Any, lines: Sequence[Mapping[str, Any]]) -> None:
    names = list(dict.fromkeys(line["reads"] for line in lines))
    count = max(line["thought"] for line in lines)
    by = {(line["reads"], line["thought"]): line for line in lines}
    above = np.array(
        [[by[name, i + 1]["above_shuffled"] for i in range(count)] for name in names], float
    )
    image = grid[0].imshow(above, aspect="auto", cmap="RdBu", vmin=-1, vmax=1)
    figure.colorbar(image, ax=grid[0], label="accuracy above that of shuffled labels")
    _thoughts(grid[0], count)
    grid[0].set_yticks(range(len(names)), names)
    grid[0].set_title("linear probes, less those of shuffled labels")
    at = np.arange(1, count + 1)
    for number, name in enumerate(names[:MOST]):
        color = f"C{number}"
        grid[1].plot(at, [by[name, i]["accuracy"] for i in at], "o-", color=color, label=name)
        grid[1].plot(at, [by[name, i]["shuffled"] for i in at], "x:", color=color)
    grid[1].set(xlabel="thought", ylabel="accuracy", ylim=(-0.03, 1.03), xticks=at)
    grid[1].set_title("probes (o) and with shuffled labels (x)")
    grid[1].legend(fontsize=7)


def _superposition(axes: Any, found: Mapping[str, Spread]) -> None:
    for name, one in list(found.items())[:MOST]:
        at = np.arange(1, len(one.mass) + 1)
        line = axes.plot(at, one.mass, "o-", label=f"{name} ({one.size:.1f} ids)")[0]
        for x, y, ids in zip(at, one.mass, one.effective, strict=True):
            axes.annotate(f"{ids:.1f}", (x, y), fontsize=6, color=line.get_color())
    count = max((len(one.mass) for one in found.values()), default=1)
    axes.set(xlabel="thought", ylabel="probability by the head", xticks=range(1, count + 1))
    axes.set_title("mass on what may come next, over n ids", fontsize=10)
    if found:
        axes.legend(fontsize=7)


def _ablations(axes: Any, scores: Mapping[str, Score]) -> None:
    names = [kind or "as they are" for kind in scores]
    right = np.array([one.accuracy for one in scores.values()])
    ends = np.array([(one.low, one.high) for one in scores.values()])
    error = np.abs(ends.T - right)
    axes.bar(names, right, yerr=error, color=["C0", *["0.6"] * (len(names) - 1)], capsize=3)
    axes.set(ylabel="accuracy, 95 % interval", ylim=(0, 1), title="thoughts exchanged")
    axes.tick_params(axis="x", labelsize=8)


def _thoughts(axes: Any, count: int) -> None:
    axes.set_xticks(range(count), [str(i + 1) for i in range(count)])
    axes.set_xlabel("thought")
