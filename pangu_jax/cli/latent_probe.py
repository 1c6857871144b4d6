"""Tells what can be read from the thoughts of a model that `latent train` made.

For each thought and each step, and for the answer, a linear probe is fitted to read the token in
which they differ most, and again with shuffled labels, as a baseline; the logit lens tells at which
place the model's own head ranks that token.
"""

import dataclasses
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
import tyro

from pangu_jax.cli.latent_eval import opened, reached, test_set
from pangu_jax.cli.progress import working
from pangu_jax.core.config import check_size
from pangu_jax.core.errors import InputError
from pangu_jax.reasoning.latent.answer import think
from pangu_jax.reasoning.latent.probe import lens_ranks, linear_probe, telling_place
from pangu_jax.reasoning.latent.registry import method
from pangu_jax.reasoning.latent.slots import Encoded, encode, markers_of

LEAST = 20  # problems that have a step, for it to be probed


@dataclass(frozen=True)
class Options:
    """Which run, on which problems."""

    run: Annotated[str, tyro.conf.Positional]
    """A folder that `pangu-jax latent train` wrote, by a method with thoughts."""
    task: str | None = None
    """mult4x4 (any mult<D>x<D>), prosqa, gsm8k, or a .jsonl file; None is the task of the run."""
    data: str | None = None
    """For gsm8k: the folder with its files."""
    test: str | None = None
    """A file of problems; None is the run's, or for another task as in training. Problems that the
    run was trained on are left out."""
    tests: int | None = None
    """Most problems; None is as many as the run measured on. A probe is fitted on half of them and
    measured on the other."""
    batch: int = 32
    """Problems thought about at once."""
    seed: int = 0
    """Of the halves, and of the shuffled labels."""
    json: bool = False
    """Print one JSON object a line instead of a table."""


def main(options: Options) -> None:
    """Prints a line for each thought and what is looked for in it."""
    if options.tests is not None:
        check_size("tests", options.tests)
    check_size("batch", options.batch)
    params, cfg, tokenizer, trained = opened(options.run)
    chosen = method(trained.method)
    if not chosen.thoughts(trained.phase):
        raise InputError(f"{options.run} was trained by {trained.method}, which has no thoughts")
    found = test_set(options.run, trained, options.task, options.test, options.tests, options.data)
    reached(options.run, trained)
    problems = [encode(problem, tokenizer) for problem in found]
    with working("thinking"):
        thoughts = think(
            params,
            problems,
            chosen,
            trained.phase,
            markers_of(tokenizer),
            cfg=cfg,
            batch=options.batch,
        )
    lines = list(_lines(options, params, cfg, problems, thoughts))
    if not lines:
        raise InputError(
            f"no step and no answer can be probed: {LEAST} problems with different ones are needed"
        )
    if not options.json:
        print("thought  reads    accuracy  shuffled  commonest  problems  median place by the head")
    for line in lines:
        print(json.dumps(line) if options.json else _row(line))


def _lines(options, params, cfg, problems, thoughts) -> Iterator[dict[str, Any]]:
    for what, kept, labels in _targets(problems):
        for number in range(thoughts.shape[1]):
            states = thoughts[kept, number]
            found = linear_probe(states, labels, seed=options.seed)
            ranks = lens_ranks(params, states[:, None], labels, cfg=cfg)
            yield {
                "thought": number + 1,
                "reads": what,
                **dataclasses.asdict(found),
                "lens": float(np.median(ranks)),
            }


def _targets(problems: Sequence[Encoded]) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    """What is looked for: its name, the problems that have it, and the id in each."""
    texts = {"answer": {i: x.answer for i, x in enumerate(problems)}}
    for step in range(max(len(x.steps) for x in problems)):
        texts[f"step {step + 1}"] = {
            i: x.steps[step] for i, x in enumerate(problems) if len(x.steps) > step
        }
    for what, found in texts.items():
        kept = {i: text for i, text in found.items() if text}
        if len(kept) < LEAST:
            continue
        place = telling_place(list(kept.values()))
        labels = np.array([text[place] for text in kept.values()])
        if len(np.unique(labels)) > 1:
            yield what, np.array(list(kept)), labels


def _row(line: dict[str, Any]) -> str:
    return (
        f"{line['thought']:7}  {line['reads']:7}  {line['accuracy']:8.1%}  "
        f"{line['shuffled']:8.1%}  {line['majority']:9.1%}  {line['examples']:8,}  "
        f"{line['lens']:.0f} of the vocabulary"
    )
