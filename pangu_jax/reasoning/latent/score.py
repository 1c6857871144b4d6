"""What answers come to: how many are right, and what they cost."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from pangu_jax.eval.pass_at_k import wilson
from pangu_jax.reasoning.latent.answer import Written
from pangu_jax.reasoning.latent.slots import Encoded


@dataclasses.dataclass(frozen=True)
class Score:
    """Figures of the answers to some problems.

    Attributes:
      problems: how many.
      accuracy: share whose final answer has exactly the ids of the right one.
      low: lower end of the accuracy's 95 % interval.
      high: its upper end.
      answered: share that gave a final answer and ended.
      tokens: mean of the tokens that were written.
      thoughts: mean of the thoughts or pauses before.
    """

    problems: int
    accuracy: float
    low: float
    high: float
    answered: float
    tokens: float
    thoughts: float


def score(written: Sequence[Written], problems: Sequence[Encoded]) -> Score:
    """The figures of what was written for each problem."""
    pairs = list(zip(written, problems, strict=True))
    share = wilson(np.array([found.answer == problem.answer for found, problem in pairs], float))
    return Score(
        len(pairs),
        share.value,
        share.low,
        share.high,
        float(np.mean([found.answer is not None for found in written])),
        float(np.mean([len(found.ids) for found in written])),
        float(np.mean([found.thoughts for found in written])),
    )
