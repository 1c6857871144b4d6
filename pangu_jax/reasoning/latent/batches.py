"""Batches of a phase: their problems, the rest of the chains, and their widths."""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from pangu_jax.reasoning.latent.curriculum import Phase
from pangu_jax.reasoning.latent.method import Method, rest_of_chain
from pangu_jax.reasoning.latent.slots import Encoded, Markers, Slots, collate

WIDTH = 16  # tails are as wide as the next multiple, so that phases share compiled programs


@dataclasses.dataclass(frozen=True)
class Widths:
    """Columns of a phase's batches.

    Attributes:
      start: of the prefix.
      thoughts: of the thoughts.
      tail: of the tail.
      teacher: of the tail of a teacher's rows; 0 without a teacher.
    """

    start: int
    thoughts: int
    tail: int
    teacher: int = 0


def widths(
    problems: Sequence[Encoded], method: Method, phases: Sequence[Phase], markers: Markers
) -> list[Widths]:
    """Columns of each phase's batches; the prefix is equally wide in all."""
    kinds = _different(problems)
    rows = [
        [
            method.slots(x, form, markers, form.removed_tokens)
            for form in _forms(phase)
            for x in kinds
        ]
        for phase in phases
    ]
    start = max(len(row.prefix) for found in rows for row in found)
    tails = [max(len(row.tail) for row in found) for found in rows]
    taught = 0
    if method.teacher is not None:
        taught = _rounded(max(len(method.teacher(x, markers).tail) for x in kinds))
    return [
        Widths(start, max(map(method.thoughts, _forms(phase))), _rounded(tail), taught)
        for phase, tail in zip(phases, tails, strict=True)
    ]


def longest_chain(problems: Sequence[Encoded]) -> int:
    """Tokens of the longest chain."""
    return max(sum(map(len, problem.steps)) for problem in problems)


def phase_batches(
    problems: Sequence[Encoded],
    method: Method,
    phase: Phase,
    markers: Markers,
    width: Widths,
    *,
    batch: int,
    seed: tuple[int, ...],
    step: int = 0,
) -> Iterator[dict[str, Any]]:
    """Endless batches of problems drawn with replacement, from `step` on.

    Batch number i is a function of the seed and i alone, so a resumed run is bit-identical. If the
    method has a teacher, a batch has "answer", int32 [B], the column of each row's mark before
    the answer, and under "teacher" a batch of the teacher's rows about the same problems.

    Args:
      problems: problems to draw from.
      method: turns a problem into a row.
      phase: the part of its chain to remove.
      markers: of the tokenizer.
      width: of the columns.
      batch: rows.
      seed: of the draws.
      step: the first batch to give.
    """
    while True:
        rng = np.random.default_rng((*seed, step))
        chosen = rng.integers(0, len(problems), batch)
        more = removed_beyond(phase, batch, rng)
        forms = [_drawn(phase, problems[i], rng) for i in chosen]
        rows = [
            _row(method, problems[i], form, markers, int(extra), width)
            for i, form, extra in zip(chosen, forms, more, strict=True)
        ]
        gaps = [
            _gap(problems[i], form, int(extra))
            for i, form, extra in zip(chosen, forms, more, strict=True)
        ]
        found = collate(
            rows, start=width.start, thoughts=width.thoughts, tail=width.tail, gaps=gaps
        )
        if method.teacher is not None:
            wise = [method.teacher(problems[i], markers) for i in chosen]
            taught = collate(wise, start=width.start, thoughts=0, tail=width.teacher)
            found["answer"] = _answers(rows, width.start + width.thoughts, markers)
            found["teacher"] = {**taught, "answer": _answers(wise, width.start, markers)}
        yield found
        step += 1


def removed_beyond(phase: Phase, count: int, rng: np.random.Generator) -> np.ndarray:
    """Draws the number of tokens removed beyond those due, for each example: int64 [count].

    It is j with probability (1 - e^-rate) e^(-rate j).

    Source: arXiv 2405.14838, section 3 ("removal smoothing").
    """
    if not phase.smoothing:
        return np.zeros(count, np.int64)
    return rng.geometric(-np.expm1(-phase.smoothing), count) - 1


def _forms(phase: Phase) -> list[Phase]:
    """The forms that a phase's examples may have."""
    mix = phase.mix
    return [phase] if mix is None else [phase, *map(mix.form, range(mix.drawn(mix.stages + 1)))]


def _drawn(phase: Phase, problem: Encoded, rng: np.random.Generator) -> Phase:
    """The form of one example."""
    if phase.mix is None or rng.random() >= phase.mix.share:
        return phase
    return phase.mix.form(int(rng.integers(phase.mix.drawn(len(problem.steps)))))


def _row(
    method: Method, problem: Encoded, form: Phase, markers: Markers, extra: int, width: Widths
) -> Slots:
    row = method.slots(problem, form, markers, form.removed_tokens + extra)
    own = method.thoughts(form)
    return row if own == width.thoughts else dataclasses.replace(row, thoughts=own)


def _gap(problem: Encoded, form: Phase, extra: int) -> int:
    """Positions that what is left of the chain leaves free before it."""
    if not form.chain_room:
        return 0
    left = len(rest_of_chain(problem, form, form.removed_tokens + extra))
    return max(form.chain_room - left, 0)


def _answers(rows: Sequence[Slots], first: int, markers: Markers) -> np.ndarray:
    """The column of each row's mark before the answer, where tails begin at `first`."""
    return np.array([first + row.tail.index(markers.answer) for row in rows], np.int32)


def _rounded(width: int) -> int:
    return -(-width // WIDTH) * WIDTH


def _different(problems: Sequence[Encoded]) -> list[Encoded]:
    """One problem per shape."""
    shapes = {(len(x.question), tuple(map(len, x.steps)), len(x.answer)): x for x in problems}
    return list(shapes.values())
