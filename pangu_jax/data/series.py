"""Series from CSV files: a time column and numbers, in columns or one observation a row.

Nothing is guessed in silence: what does not fit is refused in one sentence that names file, row and
column, or, when repairing is asked for, repaired and noted.
"""

import csv
import dataclasses
import gzip
import math
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from pangu_jax.core.errors import InputError
from pangu_jax.core.files import atomic_write
from pangu_jax.data.timestep import TimeStep, common_step, infer_step, parse_time, show

TIME_NAMES = ("date", "time", "datetime", "timestamp", "ds")
MISSING = ("", "na", "nan", "null", "none")


@dataclasses.dataclass(frozen=True)
class Series:
    """Variates over time.

    Attributes:
      values: float64 [rows, V].
      names: of the variates.
      times: datetime64[s] [rows].
      step: what lies between two rows.
      notes: what was repaired, a sentence each.
    """

    values: np.ndarray
    names: tuple[str, ...]
    times: np.ndarray
    step: TimeStep
    notes: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class CsvFormat:
    """How a file is laid out.

    Attributes:
      time: the time column; None takes one named date, time, datetime, timestamp or ds, or the
        first column.
      time_format: a strptime format for times that are not ISO 8601.
      id: for the long layout, the column that says which variate a row is of.
      value: for the long layout, the column of the value.
      delimiter: between fields.
      repair: puts rows in order, keeps the first of equal times, and fills gaps and missing values
        on a straight line between their neighbours; each is noted.
    """

    time: str | None = None
    time_format: str | None = None
    id: str | None = None
    value: str | None = None
    delimiter: str = ","
    repair: bool = False

    def __post_init__(self):
        if (self.id is None) != (self.value is None):
            raise InputError("the long layout needs both an id and a value column")
        if len(self.delimiter) != 1:
            raise InputError(f"a delimiter is one character, got {self.delimiter!r}")


def read_csv(path: str | Path, layout: CsvFormat = CsvFormat()) -> Series:
    """Reads a series.

    Args:
      path: a UTF-8 CSV file with a header, possibly gzipped.
      layout: how it is laid out.

    Raises:
      InputError: no such file, no rows, a column that is missing, text where a number belongs, a
        value that is missing or not finite, times that are unreadable, repeated, out of order, or
        leave a gap.
    """
    rows = _rows(Path(path), layout.delimiter)
    try:
        header = [name.strip().lstrip("\ufeff") for name in next(rows)[1]]
    except StopIteration:
        raise InputError(f"{path} is empty") from None
    repeated = {name for name in header if header.count(name) > 1}
    if repeated:
        raise InputError(f"{path} has two columns named {sorted(repeated)[0]!r}")
    if layout.id is None:
        names, times, values = _wide(path, header, rows, layout)
    else:
        names, times, values = _long(path, header, rows, layout)
    if not len(times):
        raise InputError(f"{path} has a header and no rows")
    notes: list[str] = []
    if layout.repair:
        times, values, notes = _repair(path, names, times, values)
    _refuse_missing(path, names, times, values)
    step = infer_step(times, str(path))
    return Series(values, tuple(names), times, step, tuple(notes))


def write_csv(path: str | Path, names: list[str], times: np.ndarray, values: np.ndarray) -> None:
    """Writes times [rows] and values [rows, columns]; NaN becomes an empty field."""
    with atomic_write(path) as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["time", *names])
        for time, row in zip(times, values, strict=True):
            writer.writerow([str(time).replace("T", " "), *map(_written, row)])


def _written(value: float) -> str:
    return "" if math.isnan(value) else f"{value:.10g}"


def _rows(path: Path, delimiter: str) -> Iterator[tuple[int, list[str]]]:
    """Line numbers and fields, blank lines left out."""
    try:
        opener = gzip.open if path.suffix == ".gz" else open
        with opener(path, "rt", encoding="utf-8", newline="") as file:
            reader = csv.reader(file, delimiter=delimiter)
            for row in reader:
                if row and any(field.strip() for field in row):
                    yield reader.line_num, row
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8 text") from error
    except (OSError, EOFError, zlib.error, csv.Error) as error:
        raise InputError(f"cannot read {path}: {error}") from error


def _wide(path, header, rows, layout):
    time = _time_column(path, header, layout)
    names = [name for i, name in enumerate(header) if i != time]
    if not names:
        raise InputError(f"{path} has no column besides the time column {header[time]!r}")
    times, values = [], []
    for line, row in rows:
        if len(row) != len(header):
            raise InputError(
                f"{path} line {line} has {len(row)} fields, the header has {len(header)}"
            )
        times.append(_time(path, line, row[time], layout))
        fields = row[:time] + row[time + 1 :]
        values.append([_number(path, line, n, x) for n, x in zip(names, fields, strict=True)])
    return names, np.array(times, "datetime64[s]"), np.array(values, np.float64)


def _long(path, header, rows, layout):
    time = _time_column(path, header, layout)
    places = [_column(path, header, name) for name in (layout.id, layout.value)]
    found: dict[np.datetime64, dict[str, float]] = {}
    names: dict[str, None] = {}
    for line, row in rows:
        if len(row) != len(header):
            raise InputError(
                f"{path} line {line} has {len(row)} fields, the header has {len(header)}"
            )
        name, stamp = row[places[0]].strip(), _time(path, line, row[time], layout)
        at = found.setdefault(np.datetime64(stamp, "s"), {})
        if name in at and not layout.repair:
            raise InputError(f"{path} line {line}: {name!r} has a second value at {stamp}")
        names.setdefault(name)
        at.setdefault(name, _number(path, line, layout.value, row[places[1]]))
    times = np.array(sorted(found), "datetime64[s]")
    values = [[found[t].get(name, math.nan) for name in names] for t in times]
    return list(names), times, np.array(values, np.float64)


def _time_column(path, header, layout) -> int:
    if layout.time is not None:
        return _column(path, header, layout.time)
    known = [i for i, name in enumerate(header) if name.lower() in TIME_NAMES]
    return known[0] if known else 0


def _column(path, header, name) -> int:
    if name not in header:
        raise InputError(f"{path} has no column {name!r}; it has {', '.join(header)}")
    return header.index(name)


def _time(path, line, text, layout):
    try:
        return parse_time(text, layout.time_format)
    except ValueError:
        wanted = layout.time_format or "ISO 8601, such as 2024-05-31 14:15"
        raise InputError(
            f"{path} line {line}: {text!r} is not a time ({wanted}); --time and "
            "--time-format say which column and how it is written"
        ) from None


def _number(path, line, name, text) -> float:
    text = text.strip()
    if text.lower() in MISSING:
        return math.nan
    try:
        value = float(text)
    except ValueError:
        raise InputError(f"{path} line {line}: {text!r} in column {name!r} is no number") from None
    if math.isinf(value):
        raise InputError(f"{path} line {line}: column {name!r} is infinite")
    return value


def _refuse_missing(path, names, times, values) -> None:
    missing = np.isnan(values)
    if missing.any():
        row, column = np.argwhere(missing)[0]
        raise InputError(
            f"{path}: {int(missing.sum())} values are missing, the first at {show(times[row])} in "
            f"column {names[column]!r}; --repair fills them"
        )


def _repair(path, names, times, values):
    """Rows in order, one a time, without gaps or missing values; and what was done to get there."""
    notes = []
    if (np.diff(times) < np.timedelta64(0, "s")).any():
        order = np.argsort(times, kind="stable")
        times, values = times[order], values[order]
        notes.append("rows were put in order of time")
    times, first = np.unique(times, return_index=True)
    if len(first) < len(values):
        notes.append(f"{len(values) - len(first)} rows of a repeated time were left out")
        values = values[first]
    times, values, filled = _fill_gaps(times, values)
    if filled:
        notes.append(f"{filled} missing rows were filled in")
    missing = int(np.isnan(values).sum()) - filled * values.shape[1]
    if missing:
        notes.append(f"{missing} missing values were filled in")
    at = times.astype(np.int64)
    for column, name in enumerate(names):
        there = ~np.isnan(values[:, column])
        if not there.any():
            raise InputError(f"{path}: column {name!r} has no value at all")
        values[:, column] = np.interp(at, at[there], values[there, column])
    return times, values, notes


def _fill_gaps(times, values):
    """Rows of NaN where stamps of a fixed step are missing."""
    seconds = np.diff(times).astype(int)
    if len(seconds) < 2 or (seconds == seconds[0]).all():
        return times, values, 0
    step, share = common_step(seconds)
    if share < 0.5 or (seconds % step).any():
        return times, values, 0  # months, or irregular: told apart, or refused, afterwards
    place = np.concatenate([[0], np.cumsum(seconds // step)])
    whole = np.full((place[-1] + 1, values.shape[1]), np.nan)
    whole[place] = values
    times = times[0] + np.arange(len(whole)) * np.timedelta64(step, "s")
    return times, whole, len(whole) - len(values)
