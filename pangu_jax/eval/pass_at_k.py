"""avg@k and pass@k of several answers per question, with confidence intervals."""

import dataclasses
import math
from collections.abc import Hashable, Iterable

import numpy as np

from pangu_jax.core.errors import InputError

COVERAGE, DRAWS = 0.95, 2000
_Z = 1.959963984540054  # of the normal distribution, for COVERAGE


@dataclasses.dataclass(frozen=True)
class Estimate:
    """An estimate with its interval; NaN if there was nothing to measure.

    Attributes:
      value: the figure.
      low: lower end of the interval.
      high: upper end.
      questions: number of questions averaged.
    """

    value: float
    low: float
    high: float
    questions: int


def avg_at_k(right: np.ndarray, tried: np.ndarray) -> Estimate:
    """avg@k: the mean over questions of the share of their answers that are right.

    Args:
      right: int [questions], right answers of each question.
      tried: int [questions], answers that could be judged; a question without any is left out.

    Raises:
      InputError: counts out of range.
    """
    _check(right, tried)
    there = tried > 0
    return wilson(right[there] / tried[there])


def pass_at(k: int, right: np.ndarray, tried: np.ndarray) -> Estimate:
    """pass@k: the mean over questions of the chance that one of k answers is right.

    Of n judged answers of which c are right it is 1 - C(n - c, k) / C(n, k), which is unbiased,
    unlike 1 - (1 - c / n)^k.

    Args:
      k: number of answers drawn.
      right: int [questions], right answers of each question.
      tried: int [questions], answers that could be judged; a question with fewer than k is left
        out.

    Raises:
      InputError: k is below 1, or counts are out of range.

    Source: arXiv 2107.03374, equation 1.
    """
    if k < 1:
        raise InputError(f"k of pass@k must be at least 1, got {k}")
    _check(right, tried)
    chances = [
        1 - math.comb(n - c, k) / math.comb(n, k)
        for c, n in zip(right.tolist(), tried.tolist(), strict=True)
        if n >= k
    ]
    return wilson(np.array(chances))


def wilson(shares: np.ndarray) -> Estimate:
    """The mean of shares, float [questions] from 0 to 1, with Wilson's score interval.

    The interval is derived for shares of 0 or 1. Shares in between vary less at the same mean, so
    for them it errs on the wide side. Unlike a bootstrap's, it keeps a width if all shares are
    equal.
    """
    count = len(shares)
    if not count:
        return Estimate(math.nan, math.nan, math.nan, 0)
    mean = float(np.mean(shares))
    middle = (mean + _Z**2 / (2 * count)) / (1 + _Z**2 / count)
    spread = math.sqrt(max(mean * (1 - mean), 0) / count + (_Z / (2 * count)) ** 2)
    half = _Z * spread / (1 + _Z**2 / count)
    return Estimate(
        mean, min(mean, max(0.0, middle - half)), max(mean, min(1.0, middle + half)), count
    )


def mean(values: np.ndarray, *, seed: int = 0) -> Estimate:
    """The mean of a quantity, float [questions], with a bootstrap interval over the questions.

    Args:
      values: one per question, such as the mean length of its answers.
      seed: of the resampling.
    """
    count = len(values)
    if not count:
        return Estimate(math.nan, math.nan, math.nan, 0)
    rng = np.random.default_rng(seed)
    means = [values[rng.integers(count, size=count)].mean() for _ in range(DRAWS)]
    low, high = np.quantile(means, [(1 - COVERAGE) / 2, (1 + COVERAGE) / 2])
    return Estimate(float(np.mean(values)), float(low), float(high), count)


def repeated(questions: Iterable[Hashable]) -> int:
    """Number of questions that occur earlier among them.

    Intervals take all questions for independent ones, so with such they are too narrow.
    """
    asked = list(questions)
    return len(asked) - len(set(asked))


def _check(right: np.ndarray, tried: np.ndarray) -> None:
    if right.shape != tried.shape or right.ndim != 1:
        raise InputError(f"right and tried must be of one length, got {right.shape}, {tried.shape}")
    wrong = np.flatnonzero((right < 0) | (right > tried))
    if len(wrong):
        i = wrong[0]
        raise InputError(f"question {i} has {right[i]} right answers of {tried[i]}")
