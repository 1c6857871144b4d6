"""CSV files as users have them, good and bad, and the steps between their times."""

import dataclasses
import gzip
import time

import numpy as np
import pytest

from pangu_jax.core.errors import InputError
from pangu_jax.data.series import CsvFormat, Series, read_csv, write_csv
from pangu_jax.data.timestep import TimeStep, infer_step

DAY = ["2024-01-01,1,10", "2024-01-02,2,20", "2024-01-03,3,30", "2024-01-04,4,40"]


def file(tmp_path, lines, name="load.csv", header="date,a,b"):
    path = tmp_path / name
    text = "\n".join([header, *lines] if header else lines) + "\n"
    path.write_bytes(gzip.compress(text.encode()) if name.endswith(".gz") else text.encode())
    return path


def test_a_wide_file_is_read_and_written(tmp_path):
    for name in ("load.csv", "load.csv.gz"):
        found = read_csv(file(tmp_path, [*DAY, "", " , , "], name))
        assert found.names == ("a", "b")
        np.testing.assert_array_equal(found.values, [[1, 10], [2, 20], [3, 30], [4, 40]])
        assert found.step == TimeStep(1, "day")
        assert found.times[0] == np.datetime64("2024-01-01T00:00:00")
        assert found.notes == ()
    out = tmp_path / "out.csv"
    write_csv(out, ["a", "b"], found.times[:2], np.array([[1.5, np.nan], [2, 3]]))
    assert out.read_text() == "time,a,b\n2024-01-01 00:00:00,1.5,\n2024-01-02 00:00:00,2,3\n"


def test_times_of_all_usual_kinds(tmp_path):
    for stamps, options, first in (
        (["2024/05/01 00:00", "2024/05/01 00:15", "2024/05/01 00:30"], {}, "2024-05-01T00:00"),
        (["20240501", "20240502", "20240503"], {}, "2024-05-01"),
        (["2024-05-01T02:00:00+02:00", "2024-05-01T01:00Z", "2024-05-01T02:00Z"], {},
         "2024-05-01T02:00"),
        (["01.05.24", "02.05.24", "03.05.24"], {"time_format": "%d.%m.%y"}, "2024-05-01"),
    ):  # fmt: skip
        path = file(tmp_path, [f"{i},{t}" for i, t in enumerate(stamps)], header="x,when")
        found = read_csv(path, CsvFormat(time="when", **options))
        assert found.times[0] == np.datetime64(first, "s")
        assert found.names == ("x",)


def test_a_long_file_becomes_columns(tmp_path):
    lines = [f"2024-01-0{d},{n},{d * v}" for d in (2, 1, 3) for n, v in (("x", 1), ("y", 10))]
    path = file(tmp_path, lines, header="ds,unique_id,y")
    found = read_csv(path, CsvFormat(id="unique_id", value="y"))
    assert found.names == ("x", "y")
    np.testing.assert_array_equal(found.values, [[1, 10], [2, 20], [3, 30]])
    with pytest.raises(InputError, match="1 values are missing, the first at 2024-01-03 00:00 in"):
        read_csv(file(tmp_path, lines[:-1], header="ds,unique_id,y"), CsvFormat(id="unique_id",
                 value="y"))  # fmt: skip
    with pytest.raises(InputError, match="'x' has a second value"):
        read_csv(file(tmp_path, [*lines, lines[0]], header="ds,unique_id,y"),
                 CsvFormat(id="unique_id", value="y"))  # fmt: skip


@pytest.mark.parametrize(
    ("lines", "header", "message"),
    [
        ([], None, "is empty"),
        ([], "date,a", "has a header and no rows"),
        (DAY[:2], "date,a,b", "has 2 rows; a time step shows in three"),
        (["2024-01-01", "2024-01-02"], "date", "no column besides the time column 'date'"),
        ([*DAY, DAY[-1]], "date,a,b", "the time 2024-01-04 00:00 appears twice"),
        ([*DAY, DAY[0]], "date,a,b", "the time 2024-01-01 00:00 comes after a later one"),
        ([*DAY, "2024-01-07,5,50"], "date,a,b", "between 2024-01-04 00:00 and 2024-01-07 00:00 "
         r"2 rows of step 1 d are missing; the option repair"),
        (["2024-01-01,1,1", "2024-01-02,1,1", "2024-01-09,1,1", "2024-01-29,1,1"], "date,a,b",
         "the times are irregular"),
        ([*DAY, "2024-01-05,x,50"], "date,a,b", "line 6: 'x' in column 'a' is no number"),
        ([*DAY, "2024-01-05,,50"], "date,a,b", "1 values are missing, the first at 2024-01-05"),
        ([*DAY[:2], "2024-01-03,NaN,3", DAY[3]], "date,a,b", "in column 'a'; the option repair"),
        ([*DAY, "2024-01-05,NaN,50"], "date,a,b", "in column 'a'; it ends at 2024-01-04 00:00, and "
         "the option repair keeps the rows that all columns have"),
        ([*DAY, "2024-01-05,1_000,50"], "date,a,b", "line 6: '1_000' in column 'a' is no number"),
        ([*DAY, "2024-01-05,١٢,50"], "date,a,b", "line 6: '١٢' in column 'a' is no number"),
        ([*DAY, "2024-01-05T00:00Z,5,50"], "date,a,b", "line 6: .* is written with "
         "an offset from UTC, unlike the times before"),
        (["2024-01-01T00:00:00.1234567,1,1"], "date,a,b", "line 2: .* is finer than a microsecond"),
        (["1,2024-01-01,1"], ",date,", "column 3 has no name"),
        (["1,2024-01-01,1", "7,2024-01-02,1"], ",date,b", "column 1 has no name; name it"),
        (["1,x,y"], ",a,b", "column 1 has no name and holds '1', not a time; the option time"),
        (DAY, "date\0,a,b", "holds NUL characters"),
        ([*DAY[:3], "2024-01-04T12:00,4,40"], "date,a,b", "irregular: most lie 24 h apart, but "
         "2024-01-03 00:00 and 2024-01-04 12:00 lie 36 h apart"),
        ([*DAY, "2024-01-05,inf,50"], "date,a,b", "line 6: column 'a' is infinite"),
        ([*DAY, "2024-01-05,1"], "date,a,b", "line 6 has 2 fields, the header has 3"),
        ([*DAY, "yesterday,1,1"], "date,a,b", "'yesterday' is not a time"),
        (["1704067200,1,1"], "date,a,b", "'1704067200' is not a time"),
        (DAY, "date,a,a", "two columns named 'a'"),
        (["2024-01-31,1,1", "2024-02-29,1,1", "2024-03-31,1,1", "2024-05-31,1,1"], "date,a,b",
         r"between 2024-03-31 00:00 and 2024-05-31 00:00 1 rows of step 1 month \(at its end\) are "
         r"missing; the option repair fills gaps \(the first missing is 2024-04-30 00:00\)"),
        ([f"2024-10-27T0{h}:00,1,1" for h in (0, 1, 2, 2, 3)], "date,a,b",
         r"2024-10-27 02:00 appears twice; if clocks were changed there, the option zone"),
        ([f"2024-03-31T0{h}:00,1,1" for h in (0, 1, 3, 4)], "date,a,b",
         r"1 rows of step 1 h are missing.*; if clocks were changed there, the option zone"),
        ([f"2024-01-0{d}T00:00:0{s},1,1" for d, s in ((1, 0), (1, 1), (1, 1))], "date,a,b",
         "the time 2024-01-01 00:00:01 appears twice$"),
    ],
)  # fmt: skip
def test_each_fault_is_one_sentence(tmp_path, lines, header, message):
    with pytest.raises(InputError, match=message) as error:
        read_csv(file(tmp_path, lines, header=header) if header or lines else _empty(tmp_path))
    assert "load.csv" in str(error.value)
    assert "\n" not in str(error.value)


def _empty(tmp_path):
    path = tmp_path / "load.csv"
    path.write_text("")
    return path


def test_files_that_are_none(tmp_path):
    with pytest.raises(InputError, match="cannot read"):
        read_csv(tmp_path / "none.csv")
    path = tmp_path / "a.csv"
    path.write_bytes(b"date,a\n\xff\xfe,1\n")
    with pytest.raises(InputError, match="not UTF-8"):
        read_csv(path)
    path = tmp_path / "a.csv.gz"
    path.write_bytes(gzip.compress(b"date,a\n" * 1000)[:30])
    with pytest.raises(InputError, match="cannot read"):
        read_csv(path)
    with pytest.raises(InputError, match="no column 'when'; it has date, a, b"):
        read_csv(file(tmp_path, DAY), CsvFormat(time="when"))
    with pytest.raises(InputError, match="both an id and a value"):
        CsvFormat(id="x")


def test_repairs_are_made_and_noted(tmp_path):
    lines = [DAY[1], DAY[0], DAY[0], DAY[2], "2024-01-06,6,", "2024-01-07,7,70"]
    found = read_csv(file(tmp_path, lines), CsvFormat(repair=True))
    assert found.notes == (
        "rows were put in order of time",
        "1 rows of a repeated time were left out",
        "2 missing rows were filled in",
        "1 missing values were filled in",
    )
    np.testing.assert_allclose(found.values[:, 0], range(1, 8))
    np.testing.assert_allclose(found.values[:, 1], np.arange(1, 8) * 10)
    with pytest.raises(InputError, match="column 'b' has no value at all"):
        read_csv(file(tmp_path, [x.rsplit(",", 1)[0] + "," for x in DAY]), CsvFormat(repair=True))


@pytest.mark.parametrize(
    ("stamps", "step", "following"),
    [
        (["2024-01-01T23:30", "2024-01-01T23:45", "2024-01-02T00:00"], "15 min",
         ["2024-01-02T00:15", "2024-01-02T00:30"]),
        (["2024-02-28T22:00", "2024-02-28T23:00", "2024-02-29T00:00"], "1 h",
         ["2024-02-29T01:00", "2024-02-29T02:00"]),
        (["2024-02-27", "2024-02-28", "2024-02-29"], "1 d", ["2024-03-01", "2024-03-02"]),
        (["2023-11-30", "2023-12-31", "2024-01-31"], "1 month (at its end)",
         ["2024-02-29", "2024-03-31"]),
        (["2024-04-30T18:00", "2024-05-31T18:00", "2024-06-30T18:00"], "1 month (at its end)",
         ["2024-07-31T18:00", "2024-08-31T18:00"]),
        (["2023-12-30", "2024-01-30", "2024-02-29", "2024-03-30"], "1 month",
         ["2024-04-30", "2024-05-30"]),
        (["2024-01-01", "2024-04-01", "2024-07-01"], "3 month", ["2024-10-01", "2025-01-01"]),
        (["2022-12-31", "2023-12-31", "2024-12-31"], "12 month (at its end)",
         ["2025-12-31", "2026-12-31"]),
    ],
)  # fmt: skip
def test_steps_and_the_times_that_follow(stamps, step, following):
    times = np.array(stamps, "datetime64[s]")
    found = infer_step(times, "x")
    assert str(found) == step
    np.testing.assert_array_equal(found.after(times[-1], 2), np.array(following, "datetime64[s]"))


def test_the_30th_comes_back_after_february():
    times = np.array(["2023-12-30", "2024-01-30", "2024-02-29"], "datetime64[s]")
    step = infer_step(times, "x")
    assert step.day == 30
    assert step.after(times[-1], 2).tolist() == [
        np.datetime64(f"2024-0{m}-30", "us").item() for m in (3, 4)
    ]


def stamps_of(path, **layout):
    found = read_csv(path, CsvFormat(**layout))
    return found, found.stamps.texts(), found.step.following(found.stamps, 2).texts()


def lines_of(times, value=lambda i: i % 7):
    return [f"{time},{value(i)}" for i, time in enumerate(times)]


@pytest.mark.parametrize(
    ("times", "zone", "step", "last", "following"),
    [
        # A constant offset is kept, and so is that of the last row where nothing tells the next.
        (["2024-05-01T22:00+02:00", "2024-05-01T23:00+02:00", "2024-05-02T00:00+02:00"], None,
         "1 h", "2024-05-02 00:00:00+02:00",
         ["2024-05-02 01:00:00+02:00", "2024-05-02 02:00:00+02:00"]),
        (["2024-03-29T00:00+01:00", "2024-03-30T00:00+01:00", "2024-03-31T00:00+01:00",
          "2024-04-01T00:00+02:00"], None, "1 d", "2024-04-01 00:00:00+02:00",
         ["2024-04-02 00:00:00+02:00", "2024-04-03 00:00:00+02:00"]),
        (["2024-10-24T00:00+02:00", "2024-10-25T00:00+02:00", "2024-10-26T00:00+02:00"],
         "Europe/Berlin", "1 d", "2024-10-26 00:00:00+02:00",
         ["2024-10-27 00:00:00+02:00", "2024-10-28 00:00:00+01:00"]),
        (["2024-03-31T00:00+01:00", "2024-03-31T01:00+01:00", "2024-03-31T03:00+02:00"], None,
         "1 h", "2024-03-31 03:00:00+02:00",
         ["2024-03-31 04:00:00+02:00", "2024-03-31 05:00:00+02:00"]),
        # Local midnights, written in UTC.
        (["2024-03-29T23:00Z", "2024-03-30T23:00Z", "2024-03-31T22:00Z", "2024-04-01T22:00Z"],
         "Europe/Berlin", "1 d", "2024-04-02 00:00:00+02:00",
         ["2024-04-03 00:00:00+02:00", "2024-04-04 00:00:00+02:00"]),
        # The hour that comes twice, also of half hours, newest first, and forecast.
        (["2024-10-27T01:00", "2024-10-27T02:00", "2024-10-27T02:00", "2024-10-27T03:00"],
         "Europe/Berlin", "1 h", "2024-10-27 03:00:00+01:00",
         ["2024-10-27 04:00:00+01:00", "2024-10-27 05:00:00+01:00"]),
        ([f"2024-10-27T{t}" for t in ("01:30", "02:00", "02:30", "02:00", "02:30", "03:00")],
         "Europe/Berlin", "30 min", "2024-10-27 03:00:00+01:00",
         ["2024-10-27 03:30:00+01:00", "2024-10-27 04:00:00+01:00"]),
        (["2024-10-27T00:00", "2024-10-27T01:00", "2024-10-27T02:00"], "Europe/Berlin", "1 h",
         "2024-10-27 02:00:00+02:00", ["2024-10-27 02:00:00+01:00", "2024-10-27 03:00:00+01:00"]),
        # No more than a clock that shows 24 hours later each time, whatever it shows.
        (["2024-03-30T12:00+01:00", "2024-03-31T13:00+02:00", "2024-04-01T13:00+02:00",
          "2024-04-02T13:00+02:00"], None, "24 h", "2024-04-02 13:00:00+02:00",
         ["2024-04-03 13:00:00+02:00", "2024-04-04 13:00:00+02:00"]),
        (["2024-01-01T00:00:00.5", "2024-01-01T00:00:01.5", "2024-01-01T00:00:02.500"], None,
         "1 s", "2024-01-01 00:00:02.5", ["2024-01-01 00:00:03.5", "2024-01-01 00:00:04.5"]),
        (["2024-01-01T00:00:00", "2024-01-01T00:00:01.5", "2024-01-01T00:00:03"], None,
         "1.5 s", "2024-01-01 00:00:03.0", ["2024-01-01 00:00:04.5", "2024-01-01 00:00:06.0"]),
        # Weekdays are a step once a weekend is left out.
        (["2024-05-02", "2024-05-03", "2024-05-06"], None, "1 weekday", "2024-05-06 00:00:00",
         ["2024-05-07 00:00:00", "2024-05-08 00:00:00"]),
        (["2024-04-29", "2024-04-30", "2024-05-01", "2024-05-02", "2024-05-03"], None, "1 d",
         "2024-05-03 00:00:00", ["2024-05-04 00:00:00", "2024-05-05 00:00:00"]),
        # Years that Python's own arithmetic cannot bring into UTC.
        (["0001-01-01T00:00+02:00", "0001-01-01T01:00+02:00", "0001-01-01T02:00+02:00"], None,
         "1 h", "0001-01-01 02:00:00+02:00",
         ["0001-01-01 03:00:00+02:00", "0001-01-01 04:00:00+02:00"]),
    ],
)  # fmt: skip
def test_stamps_go_on_as_they_were_written(tmp_path, times, zone, step, last, following):
    path = file(tmp_path, lines_of(times), header="date,a")
    found, texts, after = stamps_of(path, zone=zone)
    assert (str(found.step), texts[-1], after) == (step, last, following)
    # What is written reads back as the same.
    write_csv(tmp_path / "again.csv", ["a"], found.stamps, found.values)
    again, texts_again, _ = stamps_of(tmp_path / "again.csv", zone=zone)
    assert texts_again == texts
    assert again.step == found.step


def test_newest_first_is_told_apart_and_disorder_is_not(tmp_path):
    hours = ["2024-10-27T01:00", "2024-10-27T02:00", "2024-10-27T02:00", "2024-10-27T03:00"]
    newest = file(tmp_path, lines_of(hours[::-1]), header="date,a")
    found, texts, _ = stamps_of(newest, zone="Europe/Berlin", repair=True)
    assert [text[11:13] + text[-6:] for text in texts] == [
        "01+02:00", "02+02:00", "02+01:00", "03+01:00"
    ]  # fmt: skip
    np.testing.assert_array_equal(found.values[:, 0], [3, 2, 1, 0])
    mixed = file(tmp_path, lines_of([*hours[2:], *hours[:2]]), header="date,a")
    with pytest.raises(InputError, match="02:00 comes twice in Europe/Berlin, and as the rows"):
        stamps_of(mixed, zone="Europe/Berlin", repair=True)
    # Every series of a long file has its own order.
    long = [f"{time},{name},{i}" for name in "pq" for i, time in enumerate(hours)]
    long = file(tmp_path, long, header="date,id,y")
    found = read_csv(long, CsvFormat(zone="Europe/Berlin", id="id", value="y"))
    np.testing.assert_array_equal(found.values, np.repeat(np.arange(4)[:, None], 2, 1))


@pytest.mark.parametrize(
    ("times", "zone", "message"),
    [
        (["2024-03-31T01:00", "2024-03-31T02:00", "2024-03-31T04:00", "2024-03-31T05:00"],
         "Europe/Berlin", "2024-03-31 02:00 never was in Europe/Berlin"),
        (["9999-12-31T22:00", "9999-12-31T23:00"], "Europe/Berlin",
         "load.csv: 9999-12-31 22:00 is outside of the years"),
        # A day that is there twice, as its hour comes twice, is no gap.
        (["2024-10-25T02:30", "2024-10-26T02:30", "2024-10-27T02:30", "2024-10-27T02:30",
          "2024-10-28T02:30"], "Europe/Berlin",
         r"irregular.* 02:30\+02:00 and 2024-10-27 02:30\+01:00 lie 1 h apart"),
        (["2024-03-29T23:00Z", "2024-03-30T23:00Z", "2024-03-31T22:00Z", "2024-04-01T22:00Z"],
         None, "if these are local days, the option zone"),
        ([f"{y}-01-01T0{h}:00" for y, h in ((2024, 0), (2024, 1), (2024, 2), (2924, 0))], None,
         "would fill in 788.* rows, more than the 4 that are there; between 2024-01-01 02:00 and "
         "2924-01-01 00:00"),
        ([str(d) for d in np.arange("2024-01-01", "2024-02-01", dtype="datetime64[D]")
          if np.is_busday(d) or str(d) == "2024-01-20"], None,
         r"of weekdays, but 2024-01-20 00:00 is on a weekend \(1 such rows\)"),
    ],
)  # fmt: skip
def test_times_that_repair_does_not_help(tmp_path, times, zone, message):
    path = file(tmp_path, lines_of(times), header="date,a")
    with pytest.raises(InputError, match=message) as error:
        stamps_of(path, zone=zone, repair=True)
    assert "repair fills" not in str(error.value)


@pytest.mark.parametrize(
    ("form", "message"),
    [
        ({"time_format": "%Y %Y"}, "'%Y %Y' is no strptime format: redefinition"),
        ({"time_format": "%q"}, "'%q' is no strptime format"),
        ({"time_format": "%Y-%m-%d %Z"}, "has %Z, which does not say what the offset is"),
        ({"zone": "Europe/Nowhere"}, "there is no zone 'Europe/Nowhere'"),
        ({"zone": "Europe"}, "there is no zone 'Europe'"),
        ({"delimiter": '"'}, "a delimiter is one character, no quote"),
    ],
)
def test_a_layout_is_checked_before_a_file_is_read(form, message):
    with pytest.raises(InputError, match=message):
        CsvFormat(**form)


def test_gaps_are_repaired_by_the_step_that_is_named(tmp_path):
    months = [f"2010-{m:02d}-01" for m in (1, 2, 3, 4, 5, 7, 8, 9)]
    close = ["2024-05-06", "2024-05-07", "2024-05-09", "2024-05-10", "2024-05-13", "2024-05-14"]
    for times, missing in ((months, "2010-06-01"), (months[::-1], "2010-06-01"),
                           (close, "2024-05-08")):  # fmt: skip
        path = file(tmp_path, lines_of(times), header="date,a")
        found, texts, _ = stamps_of(path, repair=True)
        assert texts == sorted(f"{time} 00:00:00" for time in (*times, missing))
        assert "1 missing rows were filled in" in found.notes
        assert np.flatnonzero(found.filled).tolist() == [texts.index(f"{missing} 00:00:00")]


def test_a_value_wins_over_an_empty_one_and_contradictions_are_said(tmp_path):
    wide = [*DAY[:2], "2024-01-02,,21", *DAY[2:], "2024-01-05,,50", "2024-01-05,5,"]
    found = read_csv(file(tmp_path, wide), CsvFormat(repair=True))
    np.testing.assert_array_equal(found.values, [[i, 10 * i] for i in range(1, 6)])
    kept = "2 rows of a repeated time were left out; 1 of their values contradict the first ones"
    assert found.notes == (f"{kept}, which were kept",)
    long = [f"2024-01-0{d},{n},{v}" for d in (1, 2, 3) for n in "pq" for v in (("", d, d + 1))]
    found = read_csv(
        file(tmp_path, long, header="date,id,y"), CsvFormat(id="id", value="y", repair=True)
    )
    np.testing.assert_array_equal(found.values, [[1, 1], [2, 2], [3, 3]])
    assert "12 rows of a repeated time" in found.notes[0]
    assert "6 of their values contradict" in found.notes[0]
    # The same hour in two ways: the first row is kept, its value and how its time is written.
    hours = [f"2024-05-01T{time}" for time in ("00:00+00:00", "02:00+01:00", "01:00+00:00")]
    path = file(
        tmp_path, [*lines_of(hours, lambda _: 1), "2024-05-01T02:00+00:00,1"], header="date,a"
    )
    found, texts, _ = stamps_of(path, repair=True)
    assert texts[1] == "2024-05-01 02:00:00+01:00" and len(texts) == 3
    assert found.notes == ("1 rows of a repeated time were left out",)
    nights = lines_of([f"2024-10-27T0{h}:00" for h in (0, 1, 2, 2, 3, 4)])
    found = read_csv(file(tmp_path, nights, header="date,a"), CsvFormat(repair=True))
    assert found.notes[0].endswith("(if clocks went back there, the option zone keeps both)")


def test_ends_that_a_series_does_not_reach_are_cut_not_invented(tmp_path):
    rows = [
        f"2024-01-{d:02d},{d if d > 2 else ''},{d if d < 8 and d != 5 else ''}"
        for d in range(1, 11)
    ]
    found = read_csv(file(tmp_path, rows), CsvFormat(repair=True))
    np.testing.assert_array_equal(found.values[:, 1], range(3, 8))
    assert np.argwhere(found.filled).tolist() == [[2, 1]]
    assert found.notes == (
        "1 missing values were filled in",
        "2 rows before 2024-01-03 00:00 were left out, where 'a' begins",
        "3 rows after 2024-01-07 00:00 were left out, where 'b' ends",
    )
    short = [f"2024-01-{d:02d},{d},{d if d < 5 else ''}" for d in range(1, 11)]
    with pytest.raises(InputError, match="'b' has values from 2024-01-01 00:00 to 2024-01-04 "
                       "00:00 only, so that all series together have less than half"):  # fmt: skip
        read_csv(file(tmp_path, short), CsvFormat(repair=True))


@pytest.mark.parametrize(
    ("header", "first"), [(",date,a", 0), (",Datum,a", 0), ("Unnamed: 0,date,a", 5), (",a", None)]
)
def test_an_index_of_a_table_is_no_series(tmp_path, header, first):
    days = [f"2024-01-0{d},{d}" for d in range(1, 6)]
    rows = days if first is None else [f"{first + i},{row}" for i, row in enumerate(days)]
    found = read_csv(file(tmp_path, rows, header=header))
    assert found.names == ("a",)
    assert found.times[0] == np.datetime64("2024-01-01")
    left_out = ("column 1, which has no name and numbers the rows, was left out",)
    assert found.notes == (() if first is None else left_out)


def test_halves_number_no_rows(tmp_path):
    rows = [f"{i}.5,2024-01-0{i + 1},{i}" for i in range(5)]
    found = read_csv(file(tmp_path, rows, header="Unnamed: 0,date,a"))
    assert found.names == ("Unnamed: 0", "a") and found.notes == ()


@pytest.mark.parametrize(("id", "value"), [("a", "a"), ("date", "a"), ("b", "date")])
def test_the_three_columns_of_the_long_layout_are_three(tmp_path, id, value):
    with pytest.raises(InputError, match="times, ids and values must be three columns"):
        read_csv(file(tmp_path, DAY), CsvFormat(id=id, value=value))


def test_a_byte_order_mark_goes_before_quotes_and_a_tab_has_a_name(tmp_path):
    path = tmp_path / "x.csv"
    rows = "".join(f'"2024-01-0{d}"\t"{d}"\n' for d in range(1, 5))
    path.write_bytes(b"\xef\xbb\xbf" + f'"my stamp"\t"y"\n{rows}'.encode())
    found = read_csv(path, CsvFormat(time="my stamp", delimiter=r"\t"))
    assert found.names == ("y",)


def test_time_does_not_grow_with_the_square_of_the_columns(tmp_path):
    names = [f"c{i}" for i in range(20000)]
    row = ",".join("1" for _ in names)
    path = file(
        tmp_path, [f"2024-01-0{d},{row}" for d in (1, 2, 3)], header=f"date,{','.join(names)}"
    )
    began = time.process_time()
    assert len(read_csv(path).names) == 20000
    assert time.process_time() - began < 2


def test_parts_of_a_series_are_of_one_length():
    values, times = np.zeros((3, 1)), np.arange(2).astype("datetime64[D]")
    with pytest.raises(InputError, match="a series of 3 rows has times of 2 rows"):
        Series(values, ("a",), times, TimeStep(1, "day"))


def test_written_numbers_have_ten_digits_and_complete_rows_are_not_marked_as_filled(tmp_path):
    times = np.array(["2024-01-01", "2024-01-02", "2024-01-03"], "datetime64[us]")
    values = np.array([[1234567.891], [2.0], [3.0]])
    write_csv(tmp_path / "a.csv", ["load"], times, values)
    found = read_csv(tmp_path / "a.csv", CsvFormat(repair=True))
    np.testing.assert_array_equal(found.values, values)
    assert found.filled is None
    with pytest.raises(InputError, match="has filled of 2 rows"):
        dataclasses.replace(found, filled=np.zeros((2, 1), bool))
