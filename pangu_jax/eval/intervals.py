"""Forecast intervals: half widths from held-out residuals, adapted as new observations arrive.

Split-conformal widths have their nominal coverage while errors are distributed as on the held-out
windows. Errors of series drift, so the widths are tracked: each observed truth widens the intervals
of its step a lot if it was outside, and narrows them a little if it was inside, in such proportion
that they stay put at the nominal coverage.
"""

import dataclasses

import numpy as np

from pangu_jax.core.errors import InputError

RATES = (0.0025, 0.005, 0.01, 0.02, 0.04)  # slowest first
RATE = 0.01  # where the held-out windows are too few to choose
WORSE = 1.05  # how much of the interval score a faster rate may cost


def conformal(
    residuals: np.ndarray, coverage: float, measured: np.ndarray | None = None
) -> np.ndarray:
    """Half widths of intervals that cover new residuals with the given probability.

    The split-conformal rule for each step and variate: the ceil((n + 1) coverage)-th smallest of n
    absolute residuals. It is exact when residuals of past and future are exchangeable, which those
    of a series are only roughly: measure the coverage on data not used here.

    Args:
      residuals: [n, H, V], of windows that the model was not fitted to.
      coverage: between 0 and 1.
      measured: bool [n, H, V], which of them count; None is all.

    Returns:
      [H, V].

    Raises:
      InputError: too few residuals for the coverage.

    Source: arXiv 1604.04173, algorithm 2, each step and variate alone.
    """
    if not 0 < coverage < 1:
        raise InputError(f"coverage must be between 0 and 1, got {coverage}")
    size = np.abs(residuals)
    size = size if measured is None else np.where(measured, size, np.inf)
    count = np.array(len(size)) if measured is None else measured.sum(0)
    rank = _up((count + 1) * coverage)
    if (rank > count).any():
        raise InputError(
            f"a coverage of {coverage} needs at least {_up(coverage / (1 - coverage))} "
            f"held-out windows, there are {count.min()}"
        )
    ordered = np.partition(size, np.unique(rank - 1), axis=0)
    return np.take_along_axis(ordered, np.broadcast_to(rank - 1, (1, *size.shape[1:])), 0)[0]


def _up(number):
    """Rounded up, but 9.000000000000002 is 9."""
    return np.ceil(np.asarray(number) - 1e-9).astype(int)


def track(
    start: np.ndarray,
    residuals: np.ndarray,
    *,
    rate: float,
    coverage: float,
    measured: np.ndarray | None = None,
) -> np.ndarray:
    """Half widths for consecutive windows, each from the data known when its forecast was made.

    Windows move by one row, so the last row seen when window i is forecast is the truth of step h
    (from 1) of window i - h. Whether it was inside the interval of window i - h moves the width of
    step h: by rate * max(start, width / 2) * (missed - (1 - coverage)). As those movements cancel
    out only if the share of misses is 1 - coverage, intervals have their nominal coverage in the
    long run, however the errors drift.

    Args:
      start: [H, V], for the first window; it should reflect earlier ones.
      residuals: [n, H, V], truth less forecast. Those of step h of the last h - 1 windows affect no
        result, so they may be any finite values.
      rate: change of a width by one observation, as a share of it; 0 keeps `start`.
      coverage: between 0 and 1.
      measured: bool [n, H, V], which residuals are of observed values; others move nothing.

    Returns:
      [n + 1, H, V] of the residuals' dtype, at least 0; the last is for the window that follows.

    Source: arXiv 2307.16895, the quantile tracker (P control) of section 2, with the delay of h
      rows as in its released code; each step and variate alone. Its scale is a fraction of the
      greatest recent residual; ours is the held-out width, or half of the width if it outgrows
      that, so that one spike in the data moves a width once and no further. Where the start is 0
      (the series did not change), the first residual that is not takes its place.
    """
    count, horizon, _ = residuals.shape
    found = np.empty((count + 1, *start.shape), residuals.dtype)
    width, scale = start.astype(np.float64), start.astype(np.float64)
    for row in range(count + 1):
        steps = np.arange(min(row, horizon))
        windows = row - 1 - steps
        size = np.abs(residuals[windows, steps])
        there = np.True_ if measured is None else measured[windows, steps]
        missed = size > found[windows, steps]
        own, known = width[steps], scale[steps]
        scale[steps] = known = np.where((known == 0) & there, size, known)
        moved = own + rate * np.maximum(known, own / 2) * (missed - (1 - coverage))
        width[steps] = np.where(there, np.maximum(moved, 0), own)
        found[row] = width
    return found


def choose_rate(
    residuals: np.ndarray, coverage: float, measured: np.ndarray | None = None
) -> float:
    """Chooses the rate of `track` on held-out windows.

    Widths are calibrated on the first half of the windows and tracked through the second with each
    of `RATES`. The choice is the fastest whose interval score is at most 5 % above the best one's:
    scores hardly differ over a wide range of rates, and a faster one holds the coverage through
    more drift than these windows may show.

    Args:
      residuals: [n, H, V], of consecutive windows that the model was not fitted to.
      coverage: between 0 and 1.
      measured: bool [n, H, V], which of them count; None is all.

    Returns:
      One of `RATES`; `RATE` if there are too few windows.
    """
    there = np.ones(residuals.shape, bool) if measured is None else measured
    half, horizon = len(residuals) // 2, residuals.shape[1]
    known = max(half - horizon + 1, 0)  # windows whose last step is seen when window `half` is made
    try:
        start = conformal(residuals[:known], coverage, there[:known])
    except InputError:
        return RATE
    left, there = residuals[half:], there[half:]
    fixed = interval_score(left, start, coverage, there)
    scores = []
    for rate in RATES:
        widths = track(start, left, rate=rate, coverage=coverage, measured=there)[:-1]
        found = interval_score(left, widths, coverage, there)
        scores.append(np.divide(found, fixed, out=np.ones_like(fixed), where=fixed > 0).mean())
    return max(r for r, s in zip(RATES, scores, strict=True) if s <= WORSE * min(scores))


def interval_score(
    residuals: np.ndarray,
    half_width: np.ndarray,
    coverage: float,
    measured: np.ndarray | None = None,
) -> np.ndarray:
    """The mean interval score of each variate, float64 [V], in its unit; less is better.

    It is the width, plus 2 / (1 - coverage) times the distance of a truth outside: the right widths
    score best on average, wider and narrower ones worse.

    Args:
      residuals: [n, H, V].
      half_width: [H, V], or [n, H, V].
      coverage: between 0 and 1.
      measured: bool [n, H, V], which residuals count; a variate without any scores 0.

    Source: Gneiting and Raftery 2007, doi 10.1198/016214506000001437, equation 43.
    """
    beyond = np.maximum(np.abs(residuals) - half_width, 0)
    score = 2 * half_width + 2 / (1 - coverage) * beyond
    there = np.ones(residuals.shape, bool) if measured is None else measured
    total = score.sum((0, 1), dtype=np.float64, where=there)
    return total / np.maximum(there.sum((0, 1)), 1)


@dataclasses.dataclass(frozen=True)
class Coverage:
    """Coverage and width of prediction intervals.

    Attributes:
      share: of all residuals, those inside.
      of_series: the same of each variate, float64 [V].
      of_step: the same of each step, float64 [H]; NaN where none was measured.
      width: mean distance between the ends of each variate's intervals, float64 [V], in its unit.
    """

    share: float
    of_series: np.ndarray
    of_step: np.ndarray
    width: np.ndarray


def measure_coverage(
    residuals: np.ndarray, half_width: np.ndarray, measured: np.ndarray | None = None
) -> Coverage:
    """Measures intervals of half widths [H, V], or one per window, on residuals [n, H, V].

    Here n counts windows, H is the horizon in steps, and V the variates.

    Args:
      residuals: truth less forecast.
      half_width: [H, V] or [n, H, V], at least 0.
      measured: bool [n, H, V], which residuals count, at least one per variate; None is all.
    """
    there = np.ones(residuals.shape, bool) if measured is None else measured
    inside = (np.abs(residuals) <= half_width) & there

    def share(axes):
        count = there.sum(axes)
        return np.divide(inside.sum(axes), count, out=np.full(count.shape, np.nan), where=count > 0)

    width = np.broadcast_to(half_width, residuals.shape).mean((0, 1), dtype=np.float64)
    return Coverage(float(inside.sum() / there.sum()), share((0, 1)), share((0, 2)), 2 * width)
