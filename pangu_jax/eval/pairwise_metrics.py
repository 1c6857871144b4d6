"""Pairwise retrieval metrics: win rates and flips of scores, with intervals and tests.

Scores are a table of columns, one number per row: "Query10_Positive" is the score of the positive
by the query of ten conditions. Outcomes are float64 [n, k], one column per comparison: 1 where it
holds, 0 where it does not, NaN where it is left out. A figure is a statistic of their sums and
counts by column, so that resampled rows need two products of matrices.

Source: arXiv 2503.08046 and its released code, whose comparison is strict: a tie is not a win.
"""

import dataclasses
import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Literal

import numpy as np

from pangu_jax.core.errors import InputError
from pangu_jax.data.multiconir import CONDITIONS

Protocol = Literal["official", "collection"]
Scores = Mapping[str, np.ndarray]
Pairs = Sequence[tuple[str, str]]
Statistic = Callable[[np.ndarray, np.ndarray], np.ndarray]

NEIGHBORS = 7  # rows whose positives are easy negatives, which dense models score too
DRAWS, COVERAGE = 2000, 0.95

# What is compared: the better document's column, and the worse one's.
GROWING = tuple((f"Query{i}_Positive", f"Query{i}_HN1") for i in range(1, CONDITIONS + 1))
SECOND = tuple((f"Query{i}_Positive", f"Query{i}_HN2") for i in range(1, CONDITIONS + 1))
EASY = tuple(
    (f"Query{i}_Positive", f"Query{i}_EN{j}")
    for i in range(1, CONDITIONS + 1)
    for j in range(1, NEIGHBORS + 1)
)
RANKED = ("Query10_Positive", *(f"Query10_HN{i}" for i in range(1, CONDITIONS + 1)))
STEPS = tuple(itertools.pairwise(RANKED))


@dataclasses.dataclass(frozen=True)
class Estimate:
    """An estimate with its interval.

    Attributes:
      value: of all rows; NaN where nothing was compared.
      low: lower end of the interval.
      high: upper end of the interval.
    """

    value: float
    low: float
    high: float


@dataclasses.dataclass(frozen=True)
class Difference(Estimate):
    """A figure of one model less that of another, on the same rows.

    Attributes:
      p: share of random exchanges of the two within rows whose difference is at least as large.
    """

    p: float


def won(better: np.ndarray, worse: np.ndarray, protocol: Protocol) -> np.ndarray:
    """Whether the better document scores higher: float64 of the arrays' shape.

    A tie is 0. If a score is missing (NaN), "official" yields 0, as a comparison with NaN is false,
    and "collection" yields NaN.
    """
    found = (better > worse).astype(np.float64)
    if protocol == "official":
        return found
    return np.where(np.isnan(better) | np.isnan(worse), np.nan, found)


def wins(scores: Scores, pairs: Pairs, protocol: Protocol) -> np.ndarray:
    """The outcomes of each row and pair, float64 [n, k]; NaN for a pair that lacks a column.

    Args:
      scores: float [n] by column.
      pairs: `GROWING` (task 1), `STEPS` (tasks 2 and 4) or others.
      protocol: how a missing score counts; see `won`.

    Raises:
      InputError: there is no column, or they differ in length.
    """
    found = np.full((_rows(scores), len(pairs)), np.nan)
    for place, (better, worse) in enumerate(pairs):
        if better in scores and worse in scores:
            found[:, place] = won(scores[better], scores[worse], protocol)
    return found


def ties(scores: Scores, pairs: Pairs) -> np.ndarray:
    """Number of rows in which the scores of a pair are equal: int [k]."""
    return _each(scores, pairs, lambda a, b: np.sum(a == b), 0).astype(int)


def gaps(scores: Scores, pairs: Pairs) -> np.ndarray:
    """The mean margin of the better document, over rows that have both: float64 [k]."""

    def mean(a: np.ndarray, b: np.ndarray) -> float:
        there = ~np.isnan(a - b)
        return float((a - b)[there].mean()) if there.any() else np.nan

    return _each(scores, pairs, mean, np.nan)


def flips(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """1 where two outcomes differ, else 0: float64 [rows, k]; NaN where either is missing."""
    left_out = np.isnan(first) | np.isnan(second)
    return np.where(left_out, np.nan, (first != second).astype(np.float64))


def rates(sums: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """The share of each column: [..., k]; NaN where nothing counts."""
    return np.divide(sums, counts, out=np.full(np.shape(sums), np.nan), where=counts > 0)


def mean_rate(sums: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """The mean of the columns' shares, [...]: the single figure of tasks 1, 2 and 4."""
    found = rates(sums, counts)
    there = ~np.isnan(found)
    return rates(np.where(there, found, 0).sum(-1), there.sum(-1))


def pooled_rate(sums: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """The share of all comparisons together, [...]: the flip rate of task 3."""
    return rates(sums.sum(-1), counts.sum(-1))


def decline(sums: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """The drop in win rate from one condition to ten, [...]: first column less last."""
    found = rates(sums, counts)
    return found[..., 0] - found[..., -1]


def rate(place: int) -> Statistic:
    """The share of one column, [...]."""
    return lambda sums, counts: rates(sums, counts)[..., place]


def resample(rows: int, *, seed: int, draws: int = DRAWS) -> np.ndarray:
    """Draws bootstrap samples, as counts of each row in each sample: float64 [draws, rows].

    Rows are the unit: the comparisons of one row share its documents, so they stay together.
    """
    draw = np.random.default_rng([seed, rows])
    return draw.multinomial(rows, np.full(rows, 1 / rows), size=draws).astype(np.float64)


def estimate(
    sets: Sequence[np.ndarray], statistic: Statistic, *, seed: int = 0, draws: int = DRAWS
) -> Estimate:
    """A figure, averaged over sets of rows, with its percentile bootstrap interval.

    Args:
      sets: outcomes [n, k] of each domain; rows are resampled within it.
      statistic: of sums and counts [..., k].
      seed: of the resampling; the same rows are drawn for the same seed and number of rows.
      draws: number of resamples.

    Raises:
      InputError: there are no sets, or no rows in one.
    """
    _check_sets(sets)
    weights = [resample(len(x), seed=seed + i, draws=draws) for i, x in enumerate(sets)]
    drawn = _average([_figure(x, statistic, w) for x, w in zip(sets, weights, strict=True)])
    return Estimate(float(_average([_figure(x, statistic) for x in sets])), *_middle(drawn))


def compare(
    first: Sequence[np.ndarray],
    second: Sequence[np.ndarray],
    statistic: Statistic,
    *,
    seed: int = 0,
    draws: int = DRAWS,
) -> Difference:
    """The first model's figure less the second's, with a paired interval and a paired test.

    A comparison counts if both models have it. The interval resamples rows for both at once; the
    test exchanges the models in random rows, which changes nothing if they are equal (two-sided;
    its least value is 1 / (draws + 1)).

    Args:
      first: outcomes [n, k] of each domain.
      second: the same of the other model, for the same rows.
      statistic: see `estimate`.
      seed: of the drawing.
      draws: number of resamples, each.

    Raises:
      InputError: the models have different rows.
    """
    if [x.shape for x in first] != [x.shape for x in second]:
        raise InputError("the two models have scores of other rows, so they cannot be paired")
    _check_sets(first)
    pairs = [_both(a, b) for a, b in zip(first, second, strict=True)]
    value = _average([_figure(a, statistic) - _figure(b, statistic) for a, b in pairs])
    drawn, exchanged = [], []
    for place, (a, b) in enumerate(pairs):
        w = resample(len(a), seed=seed + place, draws=draws)
        drawn.append(_figure(a, statistic, w) - _figure(b, statistic, w))
        draw = np.random.default_rng([seed + place, len(a), 1])
        swap = draw.integers(0, 2, (draws, len(a))).astype(np.float64)
        exchanged.append(_exchanged(a, b, swap, statistic))
    extreme = np.abs(_average(exchanged)) >= abs(value) - 1e-12
    p = (1 + extreme.sum()) / (1 + draws) if np.isfinite(value) else np.nan
    return Difference(float(value), *_middle(_average(drawn)), float(p))


def holm(p: Sequence[float]) -> np.ndarray:
    """Holm-adjusted p-values: float64 [n].

    Source: Holm 1979; NaN does not count as a test.
    """
    values = np.asarray(p, np.float64)
    order = np.argsort(values)[: int(np.sum(~np.isnan(values)))]
    found = np.full(len(values), np.nan)
    steps = values[order] * (len(order) - np.arange(len(order)))
    found[order] = np.minimum(np.maximum.accumulate(steps), 1)
    return found


def _figure(outcomes: np.ndarray, statistic: Statistic, weights: np.ndarray | None = None):
    sums, counts = _totals(outcomes, np.ones((1, len(outcomes))) if weights is None else weights)
    found = statistic(sums, counts)
    return found[0] if weights is None else found


def _totals(outcomes: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Sums and counts by column, [draws, k], of rows weighted by how often they are drawn."""
    there = ~np.isnan(outcomes)
    return weights @ np.where(there, outcomes, 0), weights @ there.astype(np.float64)


def _exchanged(a: np.ndarray, b: np.ndarray, swap: np.ndarray, statistic: Statistic) -> np.ndarray:
    kept, taken = _totals(a, 1 - swap), _totals(b, swap)
    other_kept, other_taken = _totals(b, 1 - swap), _totals(a, swap)
    first = statistic(kept[0] + taken[0], kept[1] + taken[1])
    second = statistic(other_kept[0] + other_taken[0], other_kept[1] + other_taken[1])
    return first - second


def _both(a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    left_out = np.isnan(a) | np.isnan(b)
    return np.where(left_out, np.nan, a), np.where(left_out, np.nan, b)


def _average(figures: list) -> np.ndarray:
    return np.mean(np.stack([np.asarray(figure) for figure in figures]), axis=0)


def _middle(drawn: np.ndarray) -> tuple[float, float]:
    there = drawn[np.isfinite(drawn)]
    if not len(there):
        return np.nan, np.nan
    low, high = np.quantile(there, [(1 - COVERAGE) / 2, (1 + COVERAGE) / 2])
    return float(low), float(high)


def _each(scores: Scores, pairs: Pairs, function: Callable, missing: float) -> np.ndarray:
    _rows(scores)
    found = [
        function(scores[a], scores[b]) if a in scores and b in scores else missing for a, b in pairs
    ]
    return np.array(found)


def _rows(scores: Scores) -> int:
    lengths = {len(column) for column in scores.values()}
    if len(lengths) != 1:
        raise InputError(f"columns of scores must be of one length, got {sorted(lengths)}")
    return lengths.pop()


def _check_sets(sets: Sequence[np.ndarray]) -> None:
    if not sets or any(not len(outcomes) for outcomes in sets):
        raise InputError("there are no rows to compare")
