"""Steps of time against pandas' date offsets: what follows, what is inferred, what is repaired."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pangu_jax.core.errors import InputError
from pangu_jax.data.repair import repair
from pangu_jax.data.stamp import Stamps, at_clock, in_zone, show
from pangu_jax.data.table import Table
from pangu_jax.data.timestep import TimeStep, find_step, infer_step

ZONES = ("Europe/Berlin", "America/New_York", "Australia/Lord_Howe", "Asia/Kolkata", "UTC")
OPTIONS = settings(max_examples=60, deadline=None, derandomize=True)


@st.composite
def whole(draw):
    """A step and the stamps that pandas counts by it, local times of about a year."""
    kind = draw(st.sampled_from(["us", "s", "day", "weekday", "month", "month end"]))
    rows = draw(st.integers(12, 40))
    first = pd.Timestamp("1995-01-01") + pd.Timedelta(hours=draw(st.integers(0, 24 * 365 * 40)))
    if kind == "us":
        count = draw(st.integers(1, 9_999_999).filter(lambda n: n % 10**6))
        step, offset = TimeStep(count, "us"), pd.Timedelta(microseconds=count)
    elif kind == "s":
        count = draw(st.integers(1, 86399))
        step, offset = TimeStep(count, "s"), pd.Timedelta(seconds=count)
    elif kind == "day":
        count = draw(st.integers(1, 27))
        step, offset = TimeStep(count, "day"), pd.DateOffset(days=count)
    elif kind == "weekday":
        step, offset = TimeStep(1, "weekday"), pd.tseries.offsets.BDay(1)
        first = offset.rollforward(first)
    elif kind == "month":
        count, day = draw(st.integers(1, 12)), draw(st.integers(1, 30))
        first = first.replace(month=12, day=day)
        # A year's step sees one month alone; the others come by February's end sooner or later.
        step = TimeStep(count, "month", day=day if day > 28 and count < 12 else 0)
        return step, [first + pd.DateOffset(months=count * i) for i in range(rows)]
    else:
        count = draw(st.integers(1, 12))
        step, offset = TimeStep(count, "month", True), pd.tseries.offsets.MonthEnd(count)
        first = pd.tseries.offsets.MonthEnd().rollforward(first)
    times = [first]
    for _ in range(rows - 1):
        times.append(times[-1] + offset)
    return step, times


def local(times):
    return np.array([np.datetime64(t.tz_localize(None), "us") for t in times])


def known(step):
    """The step with the day that all its stamps tell."""
    return (step.count, step.unit, step.month_end)


@OPTIONS
@given(whole(), st.data())
def test_steps_are_pandas_offsets(case, data):
    step, times = case
    stamps = Stamps(local(times))
    seen = stamps[: len(stamps) - 3]
    found = infer_step(seen, "x")
    assert known(found) == known(step)
    assert step.fits(stamps)
    assert found.following(seen, 3).texts() == stamps[-3:].texts()
    # Rows within are taken away, and come back.
    gone = data.draw(st.sets(st.integers(2, len(times) - 3), min_size=1, max_size=len(times) // 4))
    kept = np.setdiff1d(np.arange(len(times)), sorted(gone))
    values = np.arange(len(kept), dtype=float)[:, None]
    order = data.draw(st.permutations(range(len(kept))))
    table = Table(("a",), stamps[kept][order], values[order], None, [])
    assert known(find_step(stamps[kept], "x")) == known(step)
    with pytest.raises(InputError, match="are missing; --repair fills gaps"):
        infer_step(stamps[kept], "x")
    again, _, filled, notes = repair("x", table)
    np.testing.assert_array_equal(again.local, stamps.local)
    assert np.flatnonzero(filled).tolist() == sorted(gone)
    assert f"{len(gone)} missing rows were filled in" in notes


@OPTIONS
@given(
    st.sampled_from(ZONES),
    st.integers(0, 365 * 10),
    st.sampled_from([15, 30, 60, 180, 24 * 60, 7 * 24 * 60]),
    st.integers(0, 23),
)
def test_steps_in_a_zone_are_pandas_ranges(zone, day, minutes, hour):
    # Lord Howe changes by half an hour; no zone here skips or repeats the hours from 4 on.
    days = minutes % (24 * 60) == 0
    first = pd.Timestamp("2015-01-01") + pd.Timedelta(days=day, hours=max(hour, 4))
    freq = pd.DateOffset(days=minutes // (24 * 60)) if days else pd.Timedelta(minutes=minutes)
    times = pd.date_range(first, periods=400, freq=freq, tz=zone)
    offset = np.array([t.utcoffset() for t in times], "timedelta64[us]")
    stamps = Stamps(local(times), offset, zone)
    found = infer_step(stamps[:-100], "x")
    assert found == (TimeStep(minutes // (24 * 60), "day") if days else TimeStep(minutes * 60))
    coming = found.following(stamps[:-100], 100)
    np.testing.assert_array_equal(coming.local, stamps.local[-100:])
    np.testing.assert_array_equal(coming.offset, stamps.offset[-100:])
    np.testing.assert_array_equal(in_zone(stamps.instants, zone).local, stamps.local)
    if days:
        np.testing.assert_array_equal(at_clock(stamps.local, zone).offset, stamps.offset)


def test_fewest_missing_decides_and_the_step_has_a_name():
    close = pd.bdate_range("2022-01-03", periods=200).delete([20, 77, 78, 150])
    step = find_step(Stamps(local(close)), "x")
    assert step == TimeStep(1, "weekday")
    for step, text in (
        (TimeStep(86400), "24 h"), (TimeStep(5400), "90 min"), (TimeStep(1500000, "us"), "1.5 s"),
        (TimeStep(100, "us"), "0.0001 s"), (TimeStep(7, "day"), "7 d"),
        (TimeStep(2, "weekday"), "2 weekday"),
    ):  # fmt: skip
        assert str(step) == text


def test_steps_of_one_length_are_one_step():
    day = TimeStep(1, "day")
    assert TimeStep(86400).same_as(day)
    assert TimeStep(2 * 10**6, "us").same_as(TimeStep(2))
    assert TimeStep(1, "month", day=30).same_as(TimeStep(1, "month"))
    assert not day.same_as(TimeStep(1, "weekday"))
    assert not TimeStep(1, "month", True).same_as(TimeStep(1, "month"))


@pytest.mark.parametrize(("step", "zone"), [(TimeStep(1, "day"), None), (TimeStep(3600), "UTC")])
def test_the_last_year_is_an_end(step, zone):
    last = np.array(["9999-12-29T23:00"], "datetime64[us]")
    stamps = Stamps(last) if zone is None else at_clock(last, zone)
    with pytest.raises(InputError, match=r"the year 9999|outside of the years"):
        step.following(stamps, 100)
    assert show(last[0]) == "9999-12-29 23:00"
