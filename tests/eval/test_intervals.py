"""Half widths and what they cover, against plain loops; no width knows what comes later."""

import math

import numpy as np
import pytest

from pangu_jax.core.errors import InputError
from pangu_jax.eval import intervals
from pangu_jax.eval.intervals import (
    choose_rate,
    conformal,
    interval_score,
    measure_coverage,
    track,
)


def test_intervals_cover_what_they_promise_on_exchangeable_residuals():
    residuals = np.random.default_rng(0).standard_t(3, size=(400, 2, 3))
    width = conformal(residuals[:200], 0.9)
    assert width.shape == (2, 3)
    # The rank by hand: the 181st smallest of 200.
    np.testing.assert_array_equal(width, np.sort(abs(residuals[:200]), 0)[180])
    assert 0.85 < measure_coverage(residuals[200:], width).share < 0.95
    with pytest.raises(InputError, match="needs at least 9 held-out windows, there are 8"):
        conformal(residuals[:8], 0.9)
    with pytest.raises(InputError, match="between 0 and 1"):
        conformal(residuals, 1.0)


def test_values_that_were_filled_in_are_not_measured():
    rng = np.random.default_rng(3)
    residuals, measured = rng.normal(size=(40, 5, 2)), rng.random((40, 5, 2)) < 0.8
    measured[:, 3] = False
    measured[:, 3, 0][:9] = measured[:, 3, 1][9:18] = True
    width, inside = conformal(residuals, 0.8, measured), {}
    for h in range(5):
        for v in range(2):
            kept = sorted(abs(residuals[measured[:, h, v], h, v]))
            rank = math.ceil((len(kept) + 1) * 0.8 - 1e-9)
            assert width[h, v] == kept[rank - 1]
            inside[h, v] = [x <= width[h, v] for x in kept]
    np.testing.assert_array_equal(
        conformal(residuals, 0.8, np.ones(residuals.shape, bool)), conformal(residuals, 0.8)
    )
    found = measure_coverage(residuals, width, measured)
    mean = lambda chosen: np.mean([y for k, x in inside.items() if chosen(k) for y in x])  # noqa: E731
    assert found.share == pytest.approx(mean(lambda k: True))
    for v in range(2):
        assert found.of_series[v] == pytest.approx(mean(lambda k, v=v: k[1] == v))
    for h in range(5):
        assert found.of_step[h] == pytest.approx(mean(lambda k, h=h: k[0] == h))
    np.testing.assert_allclose(found.width, 2 * width.mean(0))
    measured[:, 3] = False
    assert np.isnan(measure_coverage(residuals, width, measured).of_step).tolist() == [
        False, False, False, True, False,
    ]  # fmt: skip


def drifting(seed=0, shape=(120, 6, 2)):
    """Residuals that triple in the end, some of them filled in; the second series stood still."""
    rng = np.random.default_rng(seed)
    residuals = rng.normal(size=shape) * np.linspace(1, 3, shape[0])[:, None, None]
    start = rng.uniform(1, 2, shape[1:])
    start[:3, 1] = 0
    measured = rng.random(shape) < 0.9
    measured[:4, 0] = False
    return start, residuals, measured


def row_by_row(start, residuals, measured, rate, coverage):
    """What someone does who keeps every interval, and looks at them again as each row comes in."""
    count, horizon, variates = residuals.shape
    width, scale, given = start.copy(), start.copy(), []
    for now in range(count + 1):
        for made in range(max(now - horizon, 0), now):
            step = now - made - 1  # the row that has come in is this step of that forecast
            for v in range(variates):
                if not measured[made, step, v]:
                    continue
                size = abs(residuals[made, step, v])
                if scale[step, v] == 0:
                    scale[step, v] = size
                by = rate * max(scale[step, v], width[step, v] / 2)
                by *= coverage if size > given[made][step, v] else coverage - 1
                width[step, v] = max(width[step, v] + by, 0)
        given.append(width.copy())
    return np.array(given)


@pytest.mark.parametrize(("rate", "count"), [(0.05, 120), (0.9, 120), (0.3, 3), (0.3, 0)])
def test_widths_are_those_of_someone_who_looks_at_each_row_as_it_comes(rate, count):
    start, residuals, measured = drifting()
    residuals, measured = residuals[:count], measured[:count]
    found = track(start, residuals, rate=rate, coverage=0.8, measured=measured)
    wanted = row_by_row(start, residuals, measured, rate, 0.8)
    np.testing.assert_allclose(found, wanted, rtol=1e-12, atol=1e-12)
    plain = track(start, residuals, rate=rate, coverage=0.8)
    wanted = row_by_row(start, residuals, np.ones(residuals.shape, bool), rate, 0.8)
    np.testing.assert_allclose(plain, wanted, rtol=1e-12, atol=1e-12)
    assert (found >= 0).all() and (found[0] == start).all()
    if count == 120:
        assert (found[-1] > 0).all()  # also where nothing had moved before
        assert (found[:, 0] != found[:1, 0]).any()


def test_no_width_knows_what_comes_after_its_forecast_was_made():
    start, residuals, measured = drifting(1)
    found = track(start, residuals, rate=0.2, coverage=0.8, measured=measured)
    rows = np.arange(120)[:, None] + np.arange(1, 7)  # the truth of each residual, by row
    for now in (0, 1, 5, 6, 7, 60, 119):
        other, others = residuals.copy(), measured.copy()
        other[rows > now] = (
            1e3 * np.random.default_rng(now).normal(size=(rows > now).sum())[:, None]
        )
        others[rows > now] ^= True
        again = track(start, other, rate=0.2, coverage=0.8, measured=others)
        np.testing.assert_array_equal(again[: now + 1], found[: now + 1])
        if now < 119:
            assert (again[now + 1] != found[now + 1]).any()


def test_tracking_holds_what_fixed_widths_lose():
    rng = np.random.default_rng(2)
    residuals = rng.normal(size=(3000, 4, 2)).astype(np.float32)
    residuals[1000:2000] *= 3
    residuals[2000:] *= 0.5
    start = conformal(rng.normal(size=(500, 4, 2)), 0.9)
    fixed = measure_coverage(residuals, start)
    widths = track(start, residuals, rate=0.02, coverage=0.9)[:-1]
    assert widths.dtype == np.float32
    tracked = measure_coverage(residuals, widths)
    assert abs(fixed.share - 0.9) > 0.05
    for share in (tracked.share, *tracked.of_series, *tracked.of_step):
        assert abs(share - 0.9) < 0.015
    # One spike, however great, moves a width by one step; and no measured value, none.
    spiked = residuals[:50].copy()
    spiked[10] = 1e30
    moved = np.diff(track(start, spiked, rate=0.02, coverage=0.9), axis=0)
    assert np.abs(moved).max() <= 0.02 * 0.9 * start.max() * 1.001
    nothing = np.zeros(spiked.shape, bool)
    still = track(start, spiked, rate=0.02, coverage=0.9, measured=nothing)
    assert (still == start.astype(np.float32)).all()
    assert (track(start, spiked, rate=0.0, coverage=0.9) == start.astype(np.float32)).all()


def test_the_interval_score_is_width_and_what_lies_beyond_it():
    residuals = np.array([[[0.5, -3.0]], [[-2.0, 7.0]]])
    width = np.array([[1.0, 2.0]])
    found = interval_score(residuals, width, 0.8)
    np.testing.assert_allclose(found, [2 + 10 * 1 / 2, 4 + 10 * (1 + 5) / 2])
    measured = np.array([[[True, False]], [[False, False]]])
    np.testing.assert_allclose(interval_score(residuals, width, 0.8, measured), [2, 0])


def test_the_rate_is_the_fastest_that_scores_well_on_the_second_half():
    rng = np.random.default_rng(5)
    slow = np.convolve(rng.normal(size=1200), np.ones(60), "valid")
    late = slow[np.arange(1000)[:, None] + np.arange(40)][..., None]  # known 40 rows later
    calm = rng.normal(size=(1000, 3, 2)) * [1, 100]
    chosen = []
    for residuals in (late, calm):
        measured = rng.random(residuals.shape) < 0.95
        # Half is 500: the first windows, of which the last step is known when window 500 is made.
        first = 500 - residuals.shape[1] + 1
        start = conformal(residuals[:first], 0.9, measured[:first])
        left, there = residuals[500:], measured[500:]
        fixed, scores = interval_score(left, start, 0.9, there), {}
        for rate in intervals.RATES:
            widths = row_by_row(start, left, there, rate, 0.9)[:-1]
            scores[rate] = np.mean(interval_score(left, widths, 0.9, there) / fixed)
        good = [rate for rate, s in scores.items() if s <= 1.05 * min(scores.values())]
        assert choose_rate(residuals, 0.9, measured) == max(good)
        chosen.append(max(good))
    assert chosen[0] < chosen[1]
    assert choose_rate(calm[:20], 0.9) == intervals.RATE  # too few
    assert choose_rate(calm, 0.9) == choose_rate(calm * [1e6, 1], 0.9)  # in whatever units
    assert choose_rate(np.zeros((400, 3, 2)), 0.9) in intervals.RATES
