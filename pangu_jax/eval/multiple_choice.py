"""Multiple-choice accuracy by the likelihood of each choice; nothing is generated."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from pangu_jax.core.errors import InputError
from pangu_jax.data.multiple_choice import Question
from pangu_jax.data.tokenizer import Tokenizer
from pangu_jax.eval.perplexity import token_nats
from pangu_jax.models.decoder import DecoderConfig
from pangu_jax.nn.how import HOW, How

PROMPT = "Question: {}\nAnswer:"


@dataclasses.dataclass(frozen=True)
class ChoiceScore:
    """The result of `choice_accuracy`.

    Attributes:
      accuracy: share of the questions whose right choice is the likeliest.
      normalized: the same by likelihood per byte of the choice, so that length does not count.
      chance: mean of 1 / (number of choices).
      right: bool [questions], whether the length-normalized answer is right.
    """

    accuracy: float
    normalized: float
    chance: float
    right: np.ndarray


def choice_accuracy(
    params: Any,
    questions: Sequence[Question],
    *,
    cfg: DecoderConfig,
    tokenizer: Tokenizer,
    batch: int = 32,
    how: How = HOW,
    progress: Callable[[int, int], None] | None = None,
) -> ChoiceScore:
    """Zero-shot accuracy: each choice by itself after "Question: ..." and a line "Answer:".

    Args:
      params: tree of `decoder.spec(cfg)`.
      questions: at least one.
      cfg: the model.
      tokenizer: its tokenizer; prompts begin as it begins texts.
      batch: rows computed at once.
      how: layout, implementations, and the type of activations.
      progress: called with rows done and rows in all.

    Raises:
      InputError: no question, or a choice without tokens.

    Source: the protocol is that of EleutherAI's evaluation harness, whose acc_norm divides by
    bytes, too.
    """
    if not questions:
        raise InputError("there is no question")
    if batch < 1:
        raise InputError(f"batch must be at least 1, got {batch}")
    rows = [_row(q, choice, tokenizer) for q in questions for choice in q.choices]
    order = np.argsort([len(ids) for ids, _ in rows], kind="stable")
    nats = np.zeros(len(rows))
    for first in range(0, len(rows), batch):
        part = order[first : first + batch]
        found = token_nats(params, *_arrays([rows[i] for i in part], batch), cfg=cfg, how=how)
        nats[part] = np.asarray(found, np.float64).sum(1)[: len(part)]
        if progress is not None:
            progress(min(first + batch, len(rows)), len(rows))
    plain, normalized, start = [], [], 0
    for q in questions:
        own = nats[start : start + len(q.choices)]
        sizes = np.array([len(choice.encode("utf-8")) for choice in q.choices])
        plain.append(int(own.argmin()) == q.answer)
        normalized.append(int((own / sizes).argmin()) == q.answer)
        start += len(q.choices)
    chance = float(np.mean([1 / len(q.choices) for q in questions]))
    return ChoiceScore(
        float(np.mean(plain)), float(np.mean(normalized)), chance, np.array(normalized)
    )


def _row(question: Question, choice: str, tokenizer: Tokenizer) -> tuple[list[int], int]:
    """The ids of prompt and choice, and how many of them are the choice's."""
    prompt = PROMPT.format(question.text)
    begin, whole = list(tokenizer.begin), tokenizer.encode(f"{prompt} {choice}")
    asked = len(tokenizer.encode(prompt))
    if not len(whole) > asked:
        raise InputError(f"the choice {choice!r:.60} is no token of its own")
    return [*begin, *whole], len(whole) - asked


def _arrays(rows: list[tuple[list[int], int]], size: int) -> tuple[np.ndarray, ...]:
    """Inputs, labels, segments and weights [size, T], T rounded up to 16, 32, 64 ..."""
    longest = max(len(ids) for ids, _ in rows) - 1
    length = max(16, 1 << (longest - 1).bit_length())
    inputs, labels, segments = (np.zeros((size, length), np.int32) for _ in range(3))
    weights = np.zeros((size, length), np.float32)
    for row, (ids, new) in enumerate(rows):
        known = len(ids) - 1
        inputs[row, :known], labels[row, :known] = ids[:-1], ids[1:]
        segments[row, :known] = 1
        weights[row, known - new : known] = 1
    return tuple(map(jnp.asarray, (inputs, labels, segments, weights)))
