"""Reading and writing of single stamps, against pandas and the zones of the standard library."""

import datetime as dt
import zoneinfo

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pangu_jax.core.errors import InputError
from pangu_jax.data import timestamp
from pangu_jax.data.timestamp import Timestamps, check_format, parse_time

DRAWN = settings(max_examples=50, deadline=None, derandomize=True, database=None)
ZONES = ("Europe/Berlin", "America/St_Johns", "Australia/Lord_Howe", "Africa/Monrovia")
MICRO = np.timedelta64(1, "us")


def instants_of(begin, step, rows=60):
    return np.datetime64(begin, "us") + np.arange(rows) * np.timedelta64(step, "us")


@DRAWN
@given(st.datetimes(dt.datetime(1850, 1, 1), dt.datetime(2037, 1, 1)), st.integers(1, 10**11),
       st.sampled_from(ZONES))  # fmt: skip
def test_what_is_written_is_read_as_the_same_instant(begin, step, zone):
    found = timestamp.in_zone(instants_of(begin, step), zone)
    for text, instant, row in zip(found.texts(), found.instants, range(60), strict=True):
        for written in (text, found.show(row)):
            read = parse_time(written)
            assert read.replace(tzinfo=None) - read.utcoffset() == instant.item()
        assert read.utcoffset() == zoneinfo.ZoneInfo(zone).fromutc(
            instant.item().replace(tzinfo=zoneinfo.ZoneInfo(zone))
        ).utcoffset()  # fmt: skip


@DRAWN
@given(st.integers(0, 11), st.sampled_from((600, 900, 1800, 3600, 7200, 10800)),
       st.sampled_from(ZONES[:3]), st.booleans())  # fmt: skip
def test_clocks_that_go_back_are_read_from_the_order_alone(shift, step, zone, backward):
    change = {"Europe/Berlin": "2024-10-27T01:00", "America/St_Johns": "2024-11-03T04:30",
              "Australia/Lord_Howe": "2024-04-06T15:00"}[zone]  # fmt: skip
    begin = np.datetime64(change) - np.timedelta64(5 * step + 900 * shift, "s")
    want = timestamp.in_zone(instants_of(begin, step * 10**6), zone)
    want = want[::-1] if backward else want
    found = timestamp.read_clock(want.local, zone)
    np.testing.assert_array_equal(found.offset, want.offset)


def test_a_clock_that_goes_forward_skips_times():
    times = np.array(["2024-03-31T01:59", "2024-03-31T02:00", "2024-03-31T03:00"], "datetime64[us]")
    found = timestamp.at_clock(times, "Europe/Berlin")
    assert timestamp.skipped(found).tolist() == [False, True, False]
    assert not timestamp.skipped(Timestamps.of(times)).any()


@pytest.mark.parametrize(
    ("text", "want"),
    [
        ("2024-05-01", "2024-05-01"),
        ("2024/05/01 10:15", "2024-05-01 10:15"),
        ("20240501", "2024-05-01"),
        (" 2024-05-01T10:15:00.5 ", "2024-05-01 10:15:00.5"),
        ("2024-05-01T10:15:00.1234560", "2024-05-01 10:15:00.123456"),
        ("2024-05-01T10:15:00,25Z", "2024-05-01 10:15:00.25+00:00"),
        ("2024-05-01 10:15-03:30", "2024-05-01 10:15-03:30"),
    ],
)
def test_times_of_iso_8601_are_read_as_pandas_reads_them(text, want):
    assert parse_time(text) == pd.Timestamp(want).to_pydatetime()


@pytest.mark.parametrize(
    "text",
    ["2024", "1704067200", "2024-13-01", "2024-05-01 10:15:00.1234567", "", "٢٠٢٤٠٥٠١",
     "2024-05-01T10:15:00+01:00:00.5", "2024-05-01 10:15 CET"],
)  # fmt: skip
def test_what_is_no_time_is_refused(text):
    with pytest.raises(ValueError, match=r"time|finer|format|month"):
        parse_time(text)


def test_texts_have_the_decimals_that_some_stamp_needs():
    times = np.array(["2024-01-01T00:00:00", "2024-01-01T00:00:00.250"], "datetime64[us]")
    assert Timestamps.of(times).texts() == ["2024-01-01 00:00:00.00", "2024-01-01 00:00:00.25"]
    assert Timestamps.of(times[:1]).texts() == ["2024-01-01 00:00:00"]
    negative = Timestamps(times, np.full(2, -12_600_000_000) * MICRO)
    assert negative.texts()[0].endswith("-03:30")
    assert negative.instants[0] == np.datetime64("2024-01-01T03:30")


@pytest.mark.parametrize("form", ["%d.%m. %H:%M", "%H:%M", "", "%%Y"])
def test_a_format_without_a_year_is_refused(form):
    with pytest.raises(InputError, match="has no year; %Y or %y reads one"):
        check_format(form)


@pytest.mark.parametrize("form", ["%d.%m.%y", "%Y-%m", "%c", "%G-W%V-%u", "%Y-%m-%d%%Z", "%Y %z"])
def test_other_formats_are_taken(form):
    check_format(form)
