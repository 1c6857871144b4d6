"""Answers of a trained model: it reads, thinks, and the engine writes the rest.

The thoughts are computed first; prefix, thoughts and the given part of the tail are then a prompt
of embeddings for `decode.engine`. So thoughts can be replaced
(`ablation`).
"""

import dataclasses
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from pangu_jax.core.errors import InputError
from pangu_jax.decode.engine import Engine, Request, answers, round_up
from pangu_jax.models import decoder
from pangu_jax.models.transformer import by_layer
from pangu_jax.nn.how import HOW, How
from pangu_jax.reasoning.latent.curriculum import ALL, Phase
from pangu_jax.reasoning.latent.feedback import feedback as find_feedback
from pangu_jax.reasoning.latent.method import Method
from pangu_jax.reasoning.latent.reading import read
from pangu_jax.reasoning.latent.slots import Encoded, Markers, Slots, collate

# thoughts about all problems [problems, n, D] and a key to what stands in their place
Exchange = Callable[[jax.Array, jax.Array], jax.Array]


@dataclasses.dataclass(frozen=True)
class Written:
    """A model's output for one problem.

    Attributes:
      ids: all ids that it generated.
      answer: the ids of its final answer; None if it gave none.
      thoughts: number of thought or pause slots before them.
    """

    ids: tuple[int, ...]
    answer: tuple[int, ...] | None
    thoughts: int


def solve(
    params: Any,
    problems: Sequence[Encoded],
    method: Method,
    phase: Phase,
    markers: Markers,
    *,
    cfg: decoder.DecoderConfig,
    max_new_tokens: int,
    batch: int = 32,
    exchange: Exchange | None = None,
    seed: int = 0,
    progress: Callable[[int, int], None] = lambda done, total: None,
    how: How = HOW,
) -> list[Written]:
    """Answers to problems, greedily.

    Args:
      params: tree of `decoder.spec(cfg)`.
      problems: only their questions are read.
      method: turns a question into a row.
      phase: the phase that the model was trained in last.
      markers: of the tokenizer.
      cfg: the model.
      max_new_tokens: most tokens to generate.
      batch: problems computed at once.
      exchange: replaces the thoughts before the model goes on; None leaves them. It gets those
        about all problems, which are computed first.
      seed: of the draws of `exchange`.
      progress: called with problems done and problems in all.
      how: implementations, and type of activations and cache.

    Raises:
      InputError: there are no problems, no thoughts to exchange, or the phase leaves a chain that
        keeps its position.
    """
    if not problems:
        raise InputError("there are no problems to solve")
    if phase.chain_room and phase.removed_steps < ALL:
        raise InputError("where a chain begins that keeps its position hangs on its length")
    thoughts = method.thoughts(phase)
    if exchange is not None and not thoughts:
        raise InputError("there are no thoughts to exchange: the method has none in this phase")
    rows = [given_part(method.slots(_asked(x), phase, markers, 0)) for x in problems]
    start = round_up(max(len(row.prefix) for row in rows))
    length = max(len(row.prefix) + thoughts + len(row.tail) for row in rows) + max_new_tokens
    params = by_layer(params)
    engine = Engine(
        params,
        cfg=cfg,
        slots=min(batch, len(rows)),
        length=round_up(length),
        gap=phase.chain_room,
        how=how,
    )

    thinking = _in_batches(params, rows, batch, method.feedback, start, thoughts, cfg, how)
    if exchange is not None:
        every = jnp.concatenate(list(thinking))
        thinking = [exchange(every, jax.random.key(seed))]

    def prompts():
        given = (thought for part in thinking for thought in part)
        for row, thought in zip(rows, given, strict=True):
            yield _prompt(params, row, thought, cfg, how)

    requests = (Request(inputs, max_new_tokens, stop_ids=(markers.stop,)) for inputs in prompts())
    found: list[Written | None] = [None] * len(rows)
    slots = thoughts or phase.slots
    for done, (place, answer) in enumerate(answers(engine, requests), 1):
        ids = tuple(int(i) for i in answer.ids)
        found[place] = Written(ids, final_answer(ids, markers), slots)
        progress(done, len(rows))
    return [written for written in found if written is not None]


def think(
    params: Any,
    problems: Sequence[Encoded],
    method: Method,
    phase: Phase,
    markers: Markers,
    *,
    cfg: decoder.DecoderConfig,
    batch: int = 32,
    how: How = HOW,
) -> np.ndarray:
    """The thoughts about problems, float32 [problems, n, D]; the arguments are those of `solve`.

    Raises:
      InputError: no problem, or a method without thoughts in this phase.
    """
    thoughts = method.thoughts(phase)
    if not problems or not thoughts:
        raise InputError("there are no problems, or the method has no thoughts in this phase")
    rows = [method.slots(_asked(x), phase, markers, 0) for x in problems]
    start, params = round_up(max(len(row.prefix) for row in rows)), by_layer(params)
    found = _in_batches(params, rows, batch, method.feedback, start, thoughts, cfg, how)
    return np.concatenate([np.asarray(part, np.float32) for part in found])


def final_answer(ids: Sequence[int], markers: Markers) -> tuple[int, ...] | None:
    """The ids after the last mark of an answer, up to the end of text; None without both."""
    if not ids or ids[-1] != markers.stop or markers.answer not in ids:
        return None
    begin = len(ids) - list(ids)[::-1].index(markers.answer)
    return tuple(ids[begin:-1])


def given_part(row: Slots) -> Slots:
    """A row without its tokens to predict."""
    return Slots(row.prefix, row.tail[: row.given], row.given)


def _asked(problem: Encoded) -> Encoded:
    """A problem without its steps and answer."""
    return Encoded(problem.question, (), ())


def _in_batches(params, rows, batch, feedback, start, thoughts, cfg, how):
    """Yields the thoughts about `batch` rows at a time."""
    for first in range(0, len(rows), batch):
        part = rows[first : first + batch]
        yield _thoughts(params, part, batch, feedback, start, thoughts, cfg, how)


def _thoughts(params, rows, batch, feedback, start, thoughts, cfg, how):
    """[batch, n, D]; missing rows repeat the last, so that one program serves all."""
    if not thoughts:
        return [None] * len(rows)
    filled = [*rows, *[rows[-1]] * (batch - len(rows))]
    bare = [Slots(row.prefix, (), 0) for row in filled]
    inputs = collate(bare, start=start, thoughts=thoughts, tail=0)
    return _think(params, inputs, feedback, start, thoughts, cfg, how)[: len(rows)]


@partial(jax.jit, static_argnames=("feedback", "start", "thoughts", "cfg", "how"))
def _think(params, batch, feedback, start, thoughts, cfg, how):
    step = find_feedback(feedback)
    return read(
        params, batch, cfg=cfg, start=start, thoughts=thoughts, feedback=step, how=how
    ).thoughts


def _prompt(params, row, thought, cfg, how):
    """Ids, or with thoughts embeddings, float [T, D]."""
    if thought is None:
        return [*row.prefix, *row.tail]
    ids = [*row.prefix, *row.tail]
    padded = np.zeros((1, round_up(len(ids))), np.int32)  # few lengths, few programs
    padded[0, : len(ids)] = ids
    rows = np.asarray(_embed(params, padded, cfg, how))[0, : len(ids)]
    parts = rows[: len(row.prefix)], np.asarray(thought), rows[len(row.prefix) :]
    return np.concatenate(parts)


@partial(jax.jit, static_argnames=("cfg", "how"))
def _embed(params, ids, cfg, how):
    return decoder.embed(params, ids, cfg=cfg, how=how)
