"""Runs `pangu-jax latent probe`; its options are in `cli/options/latent_probe.py`."""

import dataclasses
import json
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from pangu_jax.cli import latent_plot
from pangu_jax.cli.latent_eval import opened, repetitions, test_set
from pangu_jax.cli.options.latent_probe import Options
from pangu_jax.cli.progress import working
from pangu_jax.core.config import check_size
from pangu_jax.core.errors import InputError
from pangu_jax.core.picture import check_picture
from pangu_jax.eval.pass_at_k import repeated
from pangu_jax.models.decoder import DecoderConfig
from pangu_jax.reasoning.latent import tuned_lens
from pangu_jax.reasoning.latent.answer import think
from pangu_jax.reasoning.latent.lens import normed, states_by_layer
from pangu_jax.reasoning.latent.probe import Target, lens_ranks, linear_probe, targets
from pangu_jax.reasoning.latent.registry import method
from pangu_jax.reasoning.latent.score import scores
from pangu_jax.reasoning.latent.slots import encode, markers_of
from pangu_jax.reasoning.latent.train import Trained, reached

LEAST = 20  # problems that have a step, for it to be probed


def main(options: Options) -> None:
    """Prints a line for each thought and target (a step, or the answer)."""
    check_size("seed", options.seed, least=0)
    if options.plot is not None:
        check_picture(options.plot)
    params, cfg, tokenizer, trained = opened(options)
    chosen = method(trained.method)
    if not chosen.thoughts(trained.phase):
        raise InputError(f"{options.run} was trained by {trained.method}, which has no thoughts")
    found = test_set(options, trained)
    reached(options.run, trained)
    problems, markers = [encode(problem, tokenizer) for problem in found], markers_of(tokenizer)
    if told := repetitions(repeated(problem.question for problem in problems), len(problems)):
        print(f"note: {told}", file=sys.stderr)
    asked = (chosen, trained.phase, markers)
    with working("thinking"):
        thoughts = think(params, problems, *asked, cfg=cfg, batch=options.batch)
        # The head reads states; of CODI's thoughts a network lies between.
        raw = states_by_layer(params, problems, thoughts, *asked, cfg=cfg, batch=options.batch)
        states = normed(params, raw, cfg=cfg)
    looked_for = targets(problems, least=LEAST)
    lines = list(_lines(options, params, cfg, looked_for, thoughts, states[:, -1]))
    if not lines:
        raise InputError(
            f"no step and no answer can be probed: {LEAST} problems with different ones are needed"
        )
    if not options.json:
        print("thought  reads    accuracy  shuffled  commonest  problems  median place by the head")
    for line in lines:
        print(json.dumps(line) if options.json else _row(line))
    if options.plot is not None:
        with working("drawing"):
            questions = [problem.question for problem in found]
            held, tuned = _tuned(params, raw, cfg=cfg, seed=options.seed)
            halves = latent_plot.among(looked_for, held)
            shown = latent_plot.Shown(
                latent_plot.lens_by_layer(params, states[held], halves, cfg=cfg),
                latent_plot.lens_by_layer(params, tuned, halves, cfg=cfg),
                latent_plot.spreads(
                    params, states[:, -1], questions, looked_for, tokenizer, cfg=cfg
                ),
                scores(
                    params,
                    problems,
                    *asked,
                    cfg=cfg,
                    max_new_tokens=trained.max_new_tokens,
                    batch=options.batch,
                ),
            )
        _draw(options, trained, lines, shown)


def _tuned(
    params: Any, raw: np.ndarray, *, cfg: DecoderConfig, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """The places of half of the problems, and their states through a lens fitted to the others."""
    order = np.random.default_rng(seed).permutation(len(raw))
    fitted, held = order[: len(order) // 2], np.sort(order[len(order) // 2 :])
    flat = np.swapaxes(raw, 1, 2)  # [N, n, L, D]

    def rows(chosen: np.ndarray) -> np.ndarray:
        return flat[chosen].reshape(-1, *flat.shape[2:])

    lens = tuned_lens.fit(params, rows(fitted), cfg=cfg, seed=seed)
    moved = tuned_lens.translated(params, lens, rows(held), cfg=cfg)
    return held, np.swapaxes(moved.reshape(len(held), *flat.shape[1:]), 1, 2)


def _draw(
    options: Options,
    trained: Trained,
    lines: list[dict[str, Any]],
    shown: latent_plot.Shown,
) -> None:
    assert options.plot is not None
    count = next(iter(shown.scores.values())).problems
    title = f"{options.run}: {trained.method} on {options.task or trained.task}, {count:,} problems"
    latent_plot.draw(options.plot, lines, shown, title=title)
    if options.json:
        print(
            json.dumps(
                {
                    "lens": {name: places.tolist() for name, places in shown.lens.items()},
                    "tuned_lens": {name: x.tolist() for name, x in shown.tuned.items()},
                    "spreads": {n: dataclasses.asdict(x) for n, x in shown.spreads.items()},
                    "scores": {n: dataclasses.asdict(x) for n, x in shown.scores.items()},
                }
            )
        )
    else:
        print(f"{options.plot} shows it, layer by layer, and with thoughts exchanged")


def _lines(
    options: Options,
    params: Any,
    cfg: DecoderConfig,
    looked_for: Sequence[Target],
    thoughts: np.ndarray,
    made_of: np.ndarray,
) -> Iterator[dict[str, Any]]:
    for target in looked_for:
        for number in range(thoughts.shape[1]):
            found = linear_probe(thoughts[target.problems, number], target.ids, seed=options.seed)
            states = made_of[target.problems, number]
            ranks = lens_ranks(params, states[:, None], target.ids, cfg=cfg)
            yield {
                "thought": number + 1,
                "reads": target.name,
                **dataclasses.asdict(found),
                "above_shuffled": found.above_shuffled,
                "lens": 1 + float(np.median(ranks)),
            }


def _row(line: dict[str, Any]) -> str:
    return (
        f"{line['thought']:7}  {line['reads']:7}  {line['accuracy']:8.1%}  "
        f"{line['shuffled']:8.1%}  {line['majority']:9.1%}  {line['examples']:8,}  "
        f"{line['lens']:.0f} of the vocabulary"
    )
