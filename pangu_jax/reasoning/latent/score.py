"""Scores of answers: how many are right, and what they cost."""

import dataclasses
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from pangu_jax.core.errors import InputError
from pangu_jax.decode.engine import round_up
from pangu_jax.eval.pass_at_k import repeated, wilson
from pangu_jax.models import decoder
from pangu_jax.nn.depth import RUN
from pangu_jax.nn.how import HOW, How
from pangu_jax.reasoning.latent.ablation import ABLATIONS, ablation
from pangu_jax.reasoning.latent.answer import Written, given_part, solve
from pangu_jax.reasoning.latent.curriculum import Phase
from pangu_jax.reasoning.latent.method import Method
from pangu_jax.reasoning.latent.slots import Encoded, Markers, Slots, collate


@dataclasses.dataclass(frozen=True)
class Score:
    """Figures of the answers to some problems.

    Attributes:
      problems: number of problems.
      repeated: number of those whose question occurs earlier among them; the interval takes all
        for independent ones.
      accuracy: share whose final answer has exactly the ids of the right one.
      low: lower end of the accuracy's 95 % interval.
      high: its upper end.
      answered: share that gave a final answer and ended.
      tokens: mean number of tokens generated.
      thoughts: mean number of thoughts or pauses before them.
      layers: mean number of layers run per token of the questions and the output.
    """

    problems: int
    repeated: int
    accuracy: float
    low: float
    high: float
    answered: float
    tokens: float
    thoughts: float
    layers: float


def scores(
    params: Any,
    problems: Sequence[Encoded],
    method: Method,
    phase: Phase,
    markers: Markers,
    *,
    cfg: decoder.DecoderConfig,
    max_new_tokens: int,
    batch: int = 32,
    ablations: Sequence[str] = ABLATIONS,
    progress: Callable[[str, int, int], None] = lambda kind, done, total: None,
    how: How = HOW,
) -> dict[str, Score]:
    """The figures of a model's answers, and of those with its thoughts exchanged.

    Args:
      params: as all up to `batch` in `answer.solve`.
      problems: to be answered.
      method: the model's training method.
      phase: the one that it was trained in last.
      markers: of the tokenizer.
      cfg: the model.
      max_new_tokens: most tokens to generate.
      batch: problems answered at once.
      ablations: names of `ablation.ABLATIONS`, for a method with thoughts.
      progress: called with the ablation, problems done, and problems in all.
      how: implementations, and type of activations and cache.

    Returns:
      {"": without exchange; and one per ablation, if there are thoughts}.

    Raises:
      InputError: no problem, or just one if thoughts are to be exchanged with another's.
    """
    check_problems(problems, method, phase, ablations)
    kinds = ablations if method.thoughts(phase) else ()
    found = {}
    for kind in ("", *kinds):
        exchange = ablation(kind, params, markers, cfg=cfg, how=how) if kind else None
        written = solve(
            params,
            problems,
            method,
            phase,
            markers,
            cfg=cfg,
            max_new_tokens=max_new_tokens,
            batch=batch,
            exchange=exchange,
            progress=partial(progress, kind),
            how=how,
        )
        layers = _layers(params, written, problems, method, phase, markers, cfg, batch, how)
        found[kind] = score(written, problems, layers)
    return found


def check_problems(
    problems: Sequence[Encoded], method: Method, phase: Phase, ablations: Sequence[str] = ABLATIONS
) -> None:
    """Raises InputError if there are too few problems for one to get another's thoughts."""
    if len(problems) == 1 and method.thoughts(phase) and "other" in ablations:
        raise InputError(
            "thoughts are exchanged for those of another problem, which needs at least two, got 1"
        )


def score(written: Sequence[Written], problems: Sequence[Encoded], layers: float) -> Score:
    """The score of the answers to problems, each token computed by `layers` layers."""
    pairs = list(zip(written, problems, strict=True))
    share = wilson(np.array([found.answer == problem.answer for found, problem in pairs], float))
    return Score(
        len(pairs),
        repeated(problem.question for problem in problems),
        share.value,
        share.low,
        share.high,
        float(np.mean([found.answer is not None for found in written])),
        float(np.mean([len(found.ids) for found in written])),
        float(np.mean([found.thoughts for found in written])),
        layers,
    )


def _layers(params, written, problems, method, phase, markers, cfg, batch, how) -> float:
    skippable = sum(layer.skippable for layer in cfg.layers)
    if not skippable:
        return float(len(cfg.layers))
    rows = []
    for problem, found in zip(problems, written, strict=True):
        asked = Encoded(problem.question, (), ())
        row = given_part(method.slots(asked, phase, markers, 0))
        rows.append(Slots(row.prefix, (*row.tail, *found.ids), 0))
    width = {
        "start": round_up(max(len(row.prefix) for row in rows)),
        "tail": round_up(max(len(row.tail) for row in rows)),
    }
    parts = [rows[i : i + batch] for i in range(0, len(rows), batch)]
    counts = [_ran(params, collate(part, thoughts=0, **width), cfg, how) for part in parts]
    ran, tokens = np.sum([np.asarray(count) for count in counts], axis=0)
    return float(len(cfg.layers) - skippable + ran / tokens)


@partial(jax.jit, static_argnames=("cfg", "how"))
def _ran(params, batch, cfg, how):
    """Tokens that ran skippable layers, summed over these layers, and the number of tokens."""
    places = {name: batch[name] for name in ("positions", "segments")}
    out = decoder.apply(params, batch["tokens"], cfg=cfg, how=how, **places)
    stats = [x for x in out.router if x is not None]
    return jnp.stack([sum(x.load[..., 0, RUN].sum() for x in stats), stats[0].tokens[0]])
