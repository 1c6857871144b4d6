"""CSV files as users have them, good and bad, and the steps between their times."""

import gzip

import numpy as np
import pytest

from pangu_jax.core.errors import InputError
from pangu_jax.data.series import CsvFormat, read_csv, write_csv
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
         r"2 rows of step 1 d are missing; --repair"),
        (["2024-01-01,1,1", "2024-01-02,1,1", "2024-01-09,1,1", "2024-01-29,1,1"], "date,a,b",
         "the times are irregular"),
        ([*DAY, "2024-01-05,x,50"], "date,a,b", "line 6: 'x' in column 'a' is no number"),
        ([*DAY, "2024-01-05,,50"], "date,a,b", "1 values are missing, the first at 2024-01-05"),
        ([*DAY, "2024-01-05,NaN,50"], "date,a,b", "in column 'a'; it ends at 2024-01-04"),
        ([DAY[0], "2024-01-02,NaN,2", *DAY[2:]], "date,a,b", "in column 'a'; --repair fills them"),
        ([*DAY, "2024-01-05,1_000,50"], "date,a,b", "line 6: '1_000' in column 'a' is no number"),
        ([*DAY, "2024-01-05,\u0661,50"], "date,a,b", "in column 'a' is no number"),
        ([*DAY, "2024-01-05T00:00Z,5,50"], "date,a,b", "line 6: .* with an offset from UTC"),
        ([*DAY, "0001-01-01T00:00+14:00,5,50"], "date,a,b", "with an offset"),
        (["2024-01-01,1", "2024-01-02,2", "2024-01-03,3"], "date,", "column 2 has no name"),
        ([*DAY, "2024-01-05,inf,50"], "date,a,b", "line 6: column 'a' is infinite"),
        ([*DAY, "2024-01-05,1"], "date,a,b", "line 6 has 2 fields, the header has 3"),
        ([*DAY, "yesterday,1,1"], "date,a,b", "'yesterday' is not a time"),
        (["1704067200,1,1"], "date,a,b", "'1704067200' is not a time"),
        (DAY, "date,a,a", "two columns named 'a'"),
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
    assert step.after(times[-1], 1)[0] == np.datetime64("2024-03-30")
    assert step.day == 30


def test_a_byte_order_mark_and_quotes_are_no_part_of_a_name(tmp_path):
    path = tmp_path / "a.csv"
    rows = "".join(f'"{line.replace(",", chr(34) + "," + chr(34))}"\n' for line in DAY)
    path.write_bytes(b"\xef\xbb\xbf" + f'"stamp","a","b"\n{rows}'.encode())
    for layout in (CsvFormat(), CsvFormat(time="stamp")):
        assert read_csv(path, layout).names == ("a", "b")


def numbered(lines):
    return [f"{i},{line}" for i, line in enumerate(lines)]


def test_a_column_that_numbers_the_rows_is_left_out(tmp_path):
    for header in (",date,a,b", ",when,a,b", "Unnamed: 0,date,a,b"):
        found = read_csv(file(tmp_path, numbered(DAY), header=header))
        assert found.names == ("a", "b") and found.times[0] == np.datetime64("2024-01-01")
        assert found.notes == ("column 1, which has no name and numbers the rows, was left out",)
    odd = [f"{i * i},{line}" for i, line in enumerate(DAY)]
    with pytest.raises(InputError, match="column 1 has no name; name it or remove it"):
        read_csv(file(tmp_path, odd, header=",date,a,b"))


LONG = CsvFormat(id="id", value="y", repair=True)


def long(tmp_path, rows):
    return file(tmp_path, [f"2024-01-{d:02d},{n},{y}" for d, n, y in rows], header="ds,id,y")


def test_of_repeated_rows_a_value_wins_over_none_and_contradictions_are_counted(tmp_path):
    rows = [(d, n, d) for d in range(1, 9) for n in "ab"]
    rows[6:6] = [(4, "a", "")]
    found = read_csv(long(tmp_path, [*rows, (5, "a", 999), (6, "b", 6)]), LONG)
    np.testing.assert_array_equal(found.values[:, 0], range(1, 9))
    assert found.filled is None
    (note,) = found.notes
    assert note.startswith(
        "3 rows of a repeated time were left out; 1 of their values contradict the first ones"
    )
    wide = ["2024-01-01,1,", "2024-01-01,,10", *DAY[1:]]
    found = read_csv(file(tmp_path, wide), CsvFormat(repair=True))
    np.testing.assert_array_equal(found.values[0], [1, 10])


def test_ends_that_some_series_do_not_reach_are_cut_and_nothing_is_invented(tmp_path):
    rows = [(d, n, d) for d in range(1, 21) for n in "ab" if n == "a" or 3 <= d <= 17]
    found = read_csv(long(tmp_path, rows), LONG)
    assert found.times[0] == np.datetime64("2024-01-03") and len(found.times) == 15
    assert found.filled is None
    assert found.notes == (
        "2 rows before 2024-01-03 00:00 were left out, where 'b' begins",
        "3 rows after 2024-01-17 00:00 were left out, where 'b' ends",
    )
    few = [row for row in rows if row[1] == "a" or row[0] < 9]
    with pytest.raises(InputError, match=r"'b' has values from 2024-01-03 .* less than half"):
        read_csv(long(tmp_path, few), LONG)


def test_what_was_filled_in_is_known(tmp_path):
    lines = [DAY[0], "2024-01-02,,20", DAY[3], "2024-01-05,5,50"]
    found = read_csv(file(tmp_path, lines), CsvFormat(repair=True))
    np.testing.assert_array_equal(
        found.filled, [[False, False], [True, False], [True, True], [False] * 2, [False] * 2]
    )
    np.testing.assert_allclose(found.values[:, 0], range(1, 6))


def test_no_more_rows_are_filled_in_than_there_are(tmp_path):
    lines = [f"2024-01-{d:02d},1,1" for d in range(1, 31)] + ["2204-02-01,1,1"]
    with pytest.raises(InputError) as error:
        read_csv(file(tmp_path, lines), CsvFormat(repair=True))
    assert "would fill in" in str(error.value) and "more than the 31 that are there" in str(
        error.value
    )
    assert "between 2024-01-30 00:00 and 2204-02-01 00:00" in str(error.value)


def test_many_columns_take_no_time(tmp_path):
    names = ",".join(f"c{i}" for i in range(100_000))
    lines = [f"2024-01-0{d}," + ",".join(["1"] * 100_000) for d in (1, 2, 3)]
    assert len(read_csv(file(tmp_path, lines, header="date," + names)).names) == 100_000


@pytest.mark.parametrize(
    ("form", "said"),
    [
        ("%Y %Y", "is no strptime format"),
        ("%Q", "is no strptime format"),
        ("%Y-%m-%d %Z", "use %z"),
    ],
)
def test_a_time_format_that_is_none_is_named_before_a_file_is_read(form, said):
    with pytest.raises(InputError, match=said):
        CsvFormat(time_format=form)
    with pytest.raises(InputError, match="there is no zone 'Mars/Base'"):
        CsvFormat(zone="Mars/Base")


def test_years_at_the_ends_of_time(tmp_path):
    for year in ("0001-01-01", "9999-12-31"):
        lines = [f"{year}T00:00:0{i}-14:00,1,1" for i in range(4)]
        found = read_csv(file(tmp_path, lines))
        assert str(found.step) == "1 s"
        with pytest.raises(InputError, match="outside of the years that zones are known for"):
            read_csv(file(tmp_path, lines), CsvFormat(zone="Europe/Berlin"))
    with pytest.raises(InputError, match="go beyond the year 9999"):
        found.step.following(found.stamps, 10**6)
