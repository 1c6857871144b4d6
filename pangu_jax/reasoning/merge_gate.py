"""Decides whether a merge may replace the checkpoints it was made from."""

import dataclasses
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from pangu_jax.core.errors import InputError
from pangu_jax.data.multiple_choice import Question, questions
from pangu_jax.data.packing import Tokens, tokenize
from pangu_jax.data.text import documents, records
from pangu_jax.data.tokenizer import Tokenizer, check_vocabulary
from pangu_jax.eval.multiple_choice import choice_accuracy
from pangu_jax.eval.perplexity import measure
from pangu_jax.models import registry
from pangu_jax.nn.how import HOW, How


@dataclasses.dataclass(frozen=True)
class Gate:
    """The data that checkpoints are measured on.

    Attributes:
      tokenizer: of all of them.
      asked: questions with choices; None to measure on text.
      tokens: the text; None to measure on questions.
      length: most tokens of context in a window of text.
      batch: windows, or choices, computed at once.
      how: layout, implementations, and the type of activations.
    """

    tokenizer: Tokenizer
    asked: tuple[Question, ...] | None
    tokens: Tokens | None
    length: int = 512
    batch: int = 8
    how: How = HOW

    @property
    def unit(self) -> str:
        """The unit of a score, in words."""
        return "bits per byte" if self.asked is None else "accuracy, by likelihood per byte"

    def score(
        self, params: Any, cfg: Any, progress: Callable[[int, int], None] | None = None
    ) -> float:
        """Bits per byte, or the share of right answers; NaN if likelihoods are.

        Args:
          params: tree of the model's spec.
          cfg: a decoder.
          progress: called with rows done and rows in all.

        Raises:
          InputError: the model is not a decoder, or lacks a token.
        """
        if registry.kind_of(cfg).name != "decoder":
            raise InputError("a gate measures decoders; these models are none")
        rest = {"cfg": cfg, "batch": self.batch, "how": self.how, "progress": progress}
        if self.asked is not None:
            found = choice_accuracy(params, self.asked, tokenizer=self.tokenizer, **rest)
            return found.normalized
        check_vocabulary(self.tokens.ids, self.tokenizer, cfg.vocab)
        return measure(params, self.tokens, length=self.length, **rest).bits_per_byte

    def better(self, one: float, other: float) -> bool:
        """Whether one score is better than another; NaN is worse than any number."""
        if math.isnan(one) or math.isnan(other):
            return math.isnan(other) and not math.isnan(one)
        return one < other if self.asked is None else one > other

    def best(self, scores: Mapping[str, float]) -> str:
        """The name of the best score, the first of equals."""
        name = next(iter(scores))
        for other in scores:
            if self.better(scores[other], scores[name]):
                name = other
        return name

    def passes(self, merged: float, best: float, tolerance: float = 0.0) -> bool:
        """Whether a merge is no more than `tolerance` worse than the best single checkpoint."""
        return not math.isnan(merged) and not self.better(
            best, merged - tolerance if self.asked is None else merged + tolerance
        )


def read_gate(path: str | Path, tokenizer: Tokenizer, **options: Any) -> Gate:
    """The gate of a file: questions if its first line is one, else text.

    Args:
      path: a file for `data.multiple_choice.questions` or `data.text.documents`.
      tokenizer: of the checkpoints.
      options: further fields of `Gate`.

    Raises:
      InputError: it is neither.
    """
    if _asks(path):
        return Gate(tokenizer, tuple(questions(path)), None, **options)
    return Gate(tokenizer, None, tokenize(documents(path), tokenizer, as_prompts=True), **options)


def _asks(path: str | Path) -> bool:
    if not str(path).lower().endswith((".jsonl", ".jsonl.gz")):
        return False
    _, _, first = next(records(path))
    return "instruction" in first and "label" in first
