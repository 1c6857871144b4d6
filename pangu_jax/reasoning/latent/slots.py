"""Sequences as slots: tokens that are read, thoughts that are computed, tokens that are answered.

A row is laid out in three blocks of columns,

    [ padding, prefix | thoughts | tail, padding ]

so that the first thought is in the same column of every row, and a batch of them is one loop of
static shape. Prefix and tail are ids; the input of a thought's slot is computed (`feedback`) from
the state of the slot before.
"""

import dataclasses
import itertools
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from pangu_jax.core.errors import InputError
from pangu_jax.data.chain_of_thought import Problem
from pangu_jax.data.tokenizer import ByteTokenizer, Tokenizer
from pangu_jax.data.word_tokenizer import unknown_id

# Special tokens that a tokenizer gets; bytes have reserved ids for them.
BEGIN, END, PAUSE, ANSWER = "<|begin-thought|>", "<|end-thought|>", "<|pause|>", "<|answer|>"
NAMES = (BEGIN, END, PAUSE, ANSWER)
FIELDS = dict(zip(NAMES, ("begin", "end", "pause", "answer"), strict=True))  # of `Markers`


@dataclasses.dataclass(frozen=True)
class Markers:
    """Ids that mark the parts of a text.

    Attributes:
      begin: before the first thought.
      end: after the last thought.
      pause: a slot that computes, but is given no state.
      answer: before the final answer.
      stop: after the final answer.
      boundary: before a question.
    """

    begin: int
    end: int
    pause: int
    answer: int
    stop: int
    boundary: int


@dataclasses.dataclass(frozen=True)
class Encoded:
    """A problem as ids; see `Problem`."""

    question: tuple[int, ...]
    steps: tuple[tuple[int, ...], ...]
    answer: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Slots:
    """One row.

    Attributes:
      prefix: ids before the thoughts, at least one.
      tail: ids after them.
      given: number of tail ids that are given; the others are to be predicted.
      thoughts: number of thoughts; None is as many as its batch has columns for.
    """

    prefix: tuple[int, ...]
    tail: tuple[int, ...]
    given: int
    thoughts: int | None = None


def markers_of(tokenizer: Tokenizer) -> Markers:
    """The tokenizer's markers.

    Raises:
      InputError: it lacks one, or names no end of text.
    """
    if isinstance(tokenizer, ByteTokenizer):
        found: list[int | None] = [257, 258, 259, 260]
    else:
        found = [tokenizer.token_to_id(name) for name in NAMES]
    for name, number in zip(NAMES, found, strict=True):
        if number is None:
            raise InputError(
                f"the tokenizer {tokenizer.name} has no token {name}: a model has them once "
                "`pangu-jax latent train` has trained it"
            )
    if not tokenizer.eos_ids:
        raise InputError(f"the tokenizer {tokenizer.name} names no token that ends a text")
    return Markers(*found, stop=tokenizer.eos_ids[0], boundary=tokenizer.boundary)


def plan_name(number: int) -> str:
    """A tokenizer's name for planning token `number`."""
    return f"<|plan-{number}|>"


def plan_ids(tokenizer: Tokenizer, count: int) -> tuple[int, ...]:
    """The ids of the tokenizer's first `count` planning tokens.

    Raises:
      InputError: it has fewer.
    """
    if isinstance(tokenizer, ByteTokenizer):
        found = [261 + number for number in range(count) if 261 + number < tokenizer.vocab_size]
    else:
        found = [tokenizer.token_to_id(plan_name(number)) for number in range(count)]
    known = tuple(number for number in found if number is not None)
    if len(known) < count:
        raise InputError(
            f"the tokenizer {tokenizer.name} has {len(known)} planning tokens, not {count}"
        )
    return known


def encode(problem: Problem, tokenizer: Tokenizer) -> Encoded:
    """A problem as ids, a line each for the question and every step.

    Raises:
      InputError: the tokenizer has no token for a word: all such words would share one, and
        different answers would be equal. Or a text has a marker, or the token that ends a text, in
        it: what it stands in could not be told from its end.
    """
    found = Encoded(
        tuple(tokenizer.encode(problem.question + "\n")),
        tuple(tuple(tokenizer.encode(step + "\n")) for step in problem.steps),
        tuple(tokenizer.encode(problem.answer)),
    )
    if not isinstance(tokenizer, ByteTokenizer):
        marks = {*map(tokenizer.token_to_id, NAMES), *tokenizer.eos_ids}
        for part in (found.question, *found.steps, found.answer):
            if not marks.isdisjoint(part):
                mark = tokenizer.id_to_token(min(marks.intersection(part)))
                raise InputError(f"the text of {problem.question!r:.60} has the token {mark} in it")
    unknown = unknown_id(tokenizer)
    if unknown is not None and any(
        unknown in x for x in (found.question, *found.steps, found.answer)
    ):
        _refuse_unknown(problem, tokenizer, unknown)
    return found


def _refuse_unknown(problem: Problem, tokenizer: Tokenizer, unknown: int) -> None:
    for text in (problem.question, *problem.steps, problem.answer):
        words = (word for word in text.split() if unknown in tokenizer.encode(word))
        if unknown in tokenizer.encode(text):
            raise InputError(
                f"the model's tokenizer has no token for {next(words, text)!r} in {text!r:.60}; a "
                "tokenizer with a token for each word knows those of the task it was made for alone"
            )


def collate(
    rows: Sequence[Slots], *, start: int, thoughts: int, tail: int, gaps: Sequence[int] | int = 0
) -> dict[str, Any]:
    """Rows as one batch.

    Args:
      rows: B rows.
      start: columns of the prefix.
      thoughts: columns of the thoughts; those after a row's own are padding.
      tail: columns of the tail.
      gaps: positions that stay free before each row's tail, B, or of all rows.

    Returns:
      With T = start + thoughts + tail: tokens, int32 [B, T], of which those at thoughts are not
      read; labels, int32 [B, T], each the row's next token; weights, float32 [B, T], 1 where that
      is to be predicted; positions, int32 [B, T], which count from a row's
      first token and leave its gap free, and segments, int32 [B, T], 1 at tokens and thoughts, 0
      at padding.

    Raises:
      InputError: a row that does not fit.
    """
    for row in rows:
        _check_fit(row, start, thoughts, tail)
    shape, after = (len(rows), start + thoughts + tail), start + thoughts
    columns = np.arange(shape[1])
    begin = start - _numbers(len(row.prefix) for row in rows)
    end = after + _numbers(len(row.tail) for row in rows)
    own = _numbers(thoughts if row.thoughts is None else row.thoughts for row in rows)
    given = _numbers(row.given for row in rows)

    written = (columns >= begin) & (columns < end) & ((columns < start) | (columns >= after))
    tokens = np.zeros(shape, np.int32)
    parts = (part for row in rows for part in (row.prefix, row.tail))
    tokens[written] = np.fromiter(itertools.chain.from_iterable(parts), np.int32)
    segments = written | (columns >= start) & (columns < start + own)
    shift = (columns >= after) * (np.reshape(gaps, (-1, 1)) + own - thoughts)
    positions = np.maximum(columns - begin + shift, 0)
    weights = (columns >= after + given - 1) & (columns < end - 1)
    labels = np.roll(tokens, -1, axis=1)
    for i, row in enumerate(rows):
        if row.thoughts is not None and not row.given and row.tail:
            # The last of its own columns before the tail predicts that, not the padding between.
            weights[i, after - 1] = 0
            labels[i, start + row.thoughts - 1] = row.tail[0]
            weights[i, start + row.thoughts - 1] = 1
    return {
        "tokens": tokens,
        "labels": labels,
        "weights": weights.astype(np.float32),
        "positions": positions.astype(np.int32),
        "segments": segments.astype(np.int32),
    }


def _check_fit(row: Slots, start: int, thoughts: int, tail: int) -> None:
    if not 0 < len(row.prefix) <= start or len(row.tail) > tail:
        raise InputError(
            f"a row of {len(row.prefix)} tokens before and {len(row.tail)} after the thoughts does "
            f"not fit into {start} and {tail} columns"
        )
    if row.thoughts is not None and not 0 <= row.thoughts <= thoughts:
        raise InputError(f"a row of {row.thoughts} thoughts does not fit into {thoughts} columns")


def _numbers(values: Iterable[int]) -> np.ndarray:
    """int64 [B, 1]."""
    return np.fromiter(values, np.int64)[:, None]
