"""Steps between stamps, and the stamps that follow, as pandas' date offsets have them."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pangu_jax.core.errors import InputError
from pangu_jax.data.series import CsvFormat, read_csv, write_csv
from pangu_jax.data.timestamp import Timestamps
from pangu_jax.data.timestep import INSTANTS, TimeStep, infer_step

ZONES = ("Europe/Berlin", "America/New_York", "Australia/Lord_Howe", "Asia/Kolkata", "UTC")
DRAWN = settings(
    max_examples=60, deadline=None, derandomize=True, database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)  # fmt: skip
BEGIN = st.datetimes(pd.Timestamp("1971-01-01"), pd.Timestamp("2035-12-31")).map(
    lambda t: pd.Timestamp(t).floor("min")
)


@st.composite
def offsets(draw):
    """A pandas offset, and whether its steps are of local dates."""
    kind = draw(st.sampled_from(("clock", "day", "weekday", "month", "month_end")))
    count = draw(st.integers(1, 5))
    if kind == "clock":
        unit = draw(st.sampled_from(("us", "ms", "s", "min", "h")))
        return pd.Timedelta(draw(st.integers(1, 23)), unit), False
    made = {
        "day": lambda: pd.DateOffset(days=count),
        "weekday": lambda: pd.offsets.BDay(count),
        "month": lambda: pd.DateOffset(months=count),
        "month_end": lambda: pd.offsets.MonthEnd(count),
    }
    return made[kind](), True


def series_of(begin, offset, rows):
    """Timestamps without a zone: each is counted from the first, so that months keep their day."""
    if isinstance(offset, pd.offsets.BDay | pd.offsets.MonthEnd):
        begin = offset.rollforward(begin)
    many = {"months": getattr(offset, "kwds", {}).get("months")}
    if many["months"]:
        return [begin + pd.DateOffset(months=many["months"] * i) for i in range(rows)]
    found = [begin]
    while len(found) < rows:
        found.append(found[-1] + offset)
    return found


def naive(stamps):
    return np.array([t.tz_localize(None).to_datetime64() for t in stamps], "datetime64[us]")


@DRAWN
@given(BEGIN, offsets())
def test_the_stamps_that_follow_are_those_of_pandas(begin, offset):
    whole = series_of(begin, offset[0], 40)
    seen, coming = naive(whole[:30]), naive(whole[30:])
    step = infer_step(seen, "x")
    np.testing.assert_array_equal(step.after(seen[-1], 10), coming)


@DRAWN
@given(BEGIN, offsets(), st.integers(1, 27), st.integers(1, 3))
def test_rows_that_are_missing_are_named_and_filled_in(tmp_path, begin, offset, at, many):
    whole = naive(series_of(begin, offset[0], 31))
    there = np.delete(whole, range(at, min(at + many, 30)))
    path = tmp_path / "a.csv"
    path.write_text("time,x\n" + "".join(f"{str(t).replace('T', ' ')},1\n" for t in there))
    with pytest.raises(InputError, match=r"are missing; the option repair fills gaps"):
        read_csv(path)
    found = read_csv(path, CsvFormat(repair=True))
    np.testing.assert_array_equal(found.times, whole)
    np.testing.assert_array_equal(np.flatnonzero(found.filled), range(at, min(at + many, 30)))


@DRAWN
@given(BEGIN, st.sampled_from(ZONES), st.sampled_from(("15min", "h", "6h", "D", "W")))
def test_in_a_zone_hours_are_of_instants_and_days_of_local_dates(begin, zone, step):
    begin = begin.floor("h") if step != "D" else begin.normalize() + pd.Timedelta(hours=12)
    begin = begin.tz_localize("UTC").tz_convert(zone) if step != "D" else begin.tz_localize(zone)
    if step == "W":
        begin = begin.tz_localize(None).normalize().tz_localize(zone, nonexistent="shift_forward")
    days = {"D": 1, "W": 7}.get(step)
    if days is None:
        whole = list(pd.date_range(begin, periods=40, freq=step))
    else:
        local = [begin.tz_localize(None) + pd.DateOffset(days=days * i) for i in range(40)]
        whole = [t.tz_localize(zone, ambiguous=True, nonexistent="shift_forward") for t in local]
        if naive(whole).tolist() != naive(local).tolist():
            return  # a midnight that never was
    ahead = np.array([t.utcoffset() for t in whole], "timedelta64[us]")
    stamps = Timestamps(naive(whole), ahead, zone)
    found = infer_step(stamps[:30], "x").following(stamps[:30], 10)
    np.testing.assert_array_equal(found.local, stamps.local[30:])
    np.testing.assert_array_equal(found.offset, ahead[30:])


@DRAWN
@given(BEGIN, offsets())
def test_whole_series_show_their_step(begin, offset):
    offset, _ = offset
    step = infer_step(naive(series_of(begin, offset, 40)), "x")
    if isinstance(offset, pd.Timedelta):
        assert step.unit in ("us", "s")
        assert step.count * INSTANTS[step.unit] == offset // pd.Timedelta(1, "us")
    elif isinstance(offset, pd.offsets.BDay) and offset.n % 5:
        assert (step.count, step.unit) == (offset.n, "weekday")
    elif isinstance(offset, pd.offsets.BDay):
        assert (step.count, step.unit) == (offset.n // 5 * 7, "day")
    elif isinstance(offset, pd.offsets.MonthEnd):
        assert (step.count, step.unit, step.month_end) == (offset.n, "month", True)
    else:
        unit, count = next(iter(offset.kwds.items()))
        ends = unit == "months" and (begin + pd.offsets.MonthEnd(0)).day == begin.day
        at_end = ends and begin.day == 31
        assert (step.count, step.unit) == (count, unit[:-1])
        assert step.month_end == at_end or (ends and begin.day < 31)


@DRAWN
@given(st.dates(pd.Timestamp("1990-01-01").date(), pd.Timestamp("2035-01-01").date()),
       st.sampled_from((*ZONES, None)), st.sampled_from(("months", "days", "weekdays")),
       st.integers(1, 3), st.integers(1, 27), st.randoms(use_true_random=False))  # fmt: skip
def test_local_dates_in_any_order_are_put_right(tmp_path, day, zone, unit, count, gone, random):
    begin = pd.Timestamp(day) + pd.Timedelta(12, "h")
    step = pd.offsets.BDay(count) if unit == "weekdays" else pd.DateOffset(**{unit: count})
    whole = [t.tz_localize(zone) for t in series_of(begin, step, 40)]
    rows = [f"{t.isoformat()},1\n" for i, t in enumerate(whole[:30]) if i != gone]
    random.shuffle(rows)
    path = tmp_path / "a.csv"
    path.write_text("time,x\n" + "".join(rows))
    found = read_csv(path, CsvFormat(repair=True, zone=zone))
    coming = found.step.following(found.stamps, 10)
    np.testing.assert_array_equal(np.concatenate([found.times, coming.local]), naive(whole))
    if zone:
        ahead = np.array([t.utcoffset() for t in whole], "timedelta64[us]")
        np.testing.assert_array_equal(np.concatenate([found.offsets, coming.offset]), ahead)
    write_csv(path, ["x"], found.stamps, found.values)
    again = read_csv(path, CsvFormat(zone=zone))
    np.testing.assert_array_equal(again.stamps.instants, found.stamps.instants)
    assert again.step == found.step


@pytest.mark.parametrize("step", ["1h", "1D", "B", "ME", "7us"])
@pytest.mark.parametrize("steps", [10**19, 4 * 10**17])
def test_steps_beyond_the_last_year_are_refused_before_they_are_made(step, steps):
    stamps = Timestamps.of(naive(pd.date_range("2024-01-31", periods=12, freq=step)))
    with pytest.raises(InputError, match="go beyond the year 9999"):
        infer_step(stamps, "x").following(stamps, steps)


def test_without_a_zone_the_last_offset_is_kept():
    hours = np.datetime64("2024-03-30T23:00", "us") + np.arange(6) * np.timedelta64(1, "h")
    ahead = np.where(hours < np.datetime64("2024-03-31T01:00"), 1, 2) * np.timedelta64(3600, "s")
    stamps = Timestamps(hours + ahead, ahead.astype("timedelta64[us]"))
    step = infer_step(stamps, "x")
    assert str(step) == "1 h"
    assert step.following(stamps, 1).texts() == ["2024-03-31 07:00:00+02:00"]
    days = np.arange("2024-03-29", "2024-04-03", dtype="datetime64[D]").astype("datetime64[us]")
    ahead = np.where(days <= np.datetime64("2024-03-31"), 1, 2) * np.timedelta64(3600, "s")
    stamps = Timestamps(days, ahead.astype("timedelta64[us]"))
    assert str(infer_step(stamps, "x")) == "1 d"
    assert infer_step(stamps, "x").following(stamps, 1).texts() == ["2024-04-03 00:00:00+02:00"]


def test_an_hour_that_comes_twice_is_read_in_its_zone(tmp_path):
    instants = pd.date_range("2024-10-26 22:00", periods=10, freq="h", tz="UTC")
    local = instants.tz_convert("Europe/Berlin").tz_localize(None)
    for order in (slice(None), slice(None, None, -1)):
        rows = [f"{t},{i}" for i, t in enumerate(local)][order]
        path = tmp_path / "a.csv"
        path.write_text("time,x\n" + "\n".join(rows) + "\n")
        found = read_csv(path, CsvFormat(zone="Europe/Berlin", repair=True))
        np.testing.assert_array_equal(found.stamps.instants, naive(instants))
        np.testing.assert_array_equal(found.values[:, 0], range(10))
    path.write_text("time,x\n" + "".join(f"{t},1\n" for t in local))
    with pytest.raises(InputError, match=r"02:00 appears twice; if clocks were .* the option zone"):
        read_csv(path)


def test_days_with_weekends_and_a_gap_are_days(tmp_path):
    days = pd.date_range("2024-11-04", periods=60)
    path = tmp_path / "a.csv"
    rows = "".join(f"{t:%Y-%m-%d},1\n" for t in days.delete(9))
    path.write_text("time,x\n" + rows)
    found = read_csv(path, CsvFormat(repair=True))
    np.testing.assert_array_equal(found.times, naive(days))


def test_weekdays_with_holidays(tmp_path):
    days = pd.bdate_range("2024-11-04", periods=60)
    there = days.delete([days.get_loc("2024-12-25"), days.get_loc("2025-01-01")])
    path = tmp_path / "a.csv"
    path.write_text("time,x\n" + "".join(f"{t:%Y-%m-%d},1\n" for t in there))
    with pytest.raises(InputError, match=r"step 1 weekday .* 2024-12-25 00:00, 2 in all"):
        read_csv(path)
    found = read_csv(path, CsvFormat(repair=True))
    np.testing.assert_array_equal(found.times, naive(days))


@pytest.mark.parametrize(
    ("step", "wanted"),
    [("100ms", "0.1 s"), ("1500ms", "1.5 s"), ("1us", "0.000001 s"), ("2s", "2 s")],
)
def test_decimals_are_kept(step, wanted, tmp_path):
    times = pd.date_range("2024-01-01 00:00:00.5", periods=20, freq=step)
    path = tmp_path / "a.csv"
    path.write_text("time,x\n" + "".join(f"{t},1\n" for t in times))
    found = read_csv(path)
    assert str(found.step) == wanted
    np.testing.assert_array_equal(found.times, naive(times))
    with pytest.raises(InputError, match="finer than a microsecond"):
        path.write_text("time,x\n2024-01-01 00:00:00.1234567,1\n")
        read_csv(path)


def test_rows_that_are_filled_in_have_the_offset_of_the_row_before(tmp_path):
    times = ["2024-03-31T00:00+01:00", "2024-03-31T01:00+01:00", "2024-03-31T03:00+02:00",
             "2024-03-31T05:00+02:00", "2024-03-31T06:00+02:00"]  # fmt: skip
    path = tmp_path / "a.csv"
    path.write_text("time,x\n" + "".join(f"{time},1\n" for time in times))
    found = read_csv(path, CsvFormat(repair=True))
    assert found.stamps.texts()[3] == "2024-03-31 04:00:00+02:00"
    assert found.filled[:, 0].tolist() == [False, False, False, True, False, False]


@pytest.mark.parametrize(
    ("micros", "wanted"), [(30_000_000, TimeStep(30, "s")), (500_000, TimeStep(500_000, "us"))]
)
def test_whole_seconds_are_counted_in_seconds(micros, wanted):
    times = np.datetime64("2024-01-01", "us") + np.arange(9) * np.timedelta64(micros, "us")
    assert infer_step(Timestamps(times), "x") == wanted


def test_the_day_of_months_is_the_latest_and_equal_steps_are_equal_in_any_unit():
    times = np.array(["2023-02-28", "2023-03-29", "2023-04-29"], "datetime64[us]")
    step = infer_step(times, "x")
    assert (step.unit, step.count, step.day) == ("month", 1, 29)
    assert str(step.after(times[0], 1)[0]).startswith("2023-03-29")
    day, second = 86400 * 10**6, 10**6
    assert TimeStep(day, "us").same_as(TimeStep(1, "day"))
    assert TimeStep(second, "us").same_as(TimeStep(1, "s"))
