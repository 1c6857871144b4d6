"""CSV files as tables: a header, a column of times, and numbers."""

import dataclasses
import itertools
import math
import re
from pathlib import Path

import numpy as np

from pangu_jax.core.errors import InputError
from pangu_jax.data.csv_file import check_fields, csv_rows
from pangu_jax.data.timestamp import (
    Timestamps,
    check_format,
    find_zone,
    in_zone,
    parse_time,
    read_clock,
)

TIME_NAMES = ("date", "time", "datetime", "timestamp", "ds")
MISSING = ("", "na", "nan", "null", "none")
UNNAMED = re.compile(r"(Unnamed: \d+)?")  # as pandas calls such a column when it writes it again


@dataclasses.dataclass(frozen=True)
class CsvFormat:
    r"""How a file is laid out.

    Attributes:
      time: the time column; None takes one named date, time, datetime, timestamp or ds, or the
        first column.
      time_format: a strptime format for times that are not ISO 8601.
      zone: the IANA zone of the times, such as Europe/Berlin: times without an offset are its local
        times, the hour that comes twice included, those with one are turned into its local times.
      id: for the long layout, the column that says which variate a row is of.
      value: for the long layout, the column of the value.
      delimiter: between fields; \t is a tab.
      repair: puts rows in order, takes the first value of equal times, cuts the ends that some
        series do not reach, and fills gaps and missing values between on a straight line between
        their neighbors; each is noted, and errors and intervals leave out what was filled in.
    """

    time: str | None = None
    time_format: str | None = None
    zone: str | None = None
    id: str | None = None
    value: str | None = None
    delimiter: str = ","
    repair: bool = False

    def __post_init__(self):
        if (self.id is None) != (self.value is None):
            raise InputError("the long layout needs both an id and a value column")
        if self.delimiter != r"\t" and (len(self.delimiter) != 1 or self.delimiter in '"\r\n\0'):
            raise InputError(
                f"a delimiter is one character, no quote and no line end, got {self.delimiter!r}"
            )
        if self.time_format is not None:
            check_format(self.time_format)
        if self.zone is not None:
            find_zone(self.zone)


@dataclasses.dataclass(frozen=True)
class Table:
    """The contents of a file, row by row, unchanged.

    Attributes:
      names: of the variates.
      stamps: of the rows.
      values: float64 [n, V]; of the long layout [n]. NaN is missing.
      column: of the long layout, which variate a row is of, int [n].
      lines: the numbers of the rows' lines.
      notes: what was left out, a sentence each.
    """

    names: tuple[str, ...]
    stamps: Timestamps
    values: np.ndarray
    column: np.ndarray | None
    lines: list[int]
    notes: tuple[str, ...] = ()


def read_table(path: Path, layout: CsvFormat) -> Table:
    """Reads a UTF-8 CSV file with a header, possibly gzipped.

    Raises:
      InputError: no such file, no rows, a column that is missing or has no name, a row of another
        length, an unreadable time or number.
    """
    header, rows = csv_rows(path, layout.delimiter.replace(r"\t", "\t"))
    rows = (found for found in rows if any(field.strip() for field in found[1]))
    first = next(rows, None)
    if first is None:
        raise InputError(f"{path} has a header and no rows")
    rows = check_fields(path, len(header), itertools.chain([first], rows))
    first = next(rows)
    time = _time_column(path, header, first[1], layout)
    read = _wide if layout.id is None else _long
    return read(path, header, time, itertools.chain([first], rows), layout)


def _wide(path, header, time, rows, layout) -> Table:
    for place, name in enumerate(header):
        if not name and place not in (0, time):
            raise InputError(f"{path}: column {place + 1} has no name; name it or remove it")
    names = [name for place, name in enumerate(header) if place != time]
    if not names:
        raise InputError(f"{path} has no column besides the time column {header[time]!r}")
    times, values, lines = _Times(path, layout), [], []
    for line, row in rows:
        times.add(line, row.pop(time))
        values.append([_number(path, line, n, x) for n, x in zip(names, row, strict=True)])
        lines.append(line)
    table, notes = np.array(values, np.float64), ()
    if time != 0 and UNNAMED.fullmatch(names[0]):
        if _counts(table[:, 0]) and len(names) > 1:
            table, names = table[:, 1:], names[1:]
            notes = ("column 1, which has no name and numbers the rows, was left out",)
        elif not names[0]:
            raise InputError(f"{path}: column 1 has no name; name it or remove it")
    return Table(tuple(names), times.stamps(), table, None, lines, notes)


def _long(path, header, time, rows, layout) -> Table:
    places = [_column(path, header, name) for name in (layout.id, layout.value)]
    if len({time, *places}) < 3:
        raise InputError(
            f"{path}: times, ids and values must be three columns, got {header[time]!r}, "
            f"{layout.id!r} and {layout.value!r}"
        )
    times, values, column, lines = _Times(path, layout), [], [], []
    names: dict[str, int] = {}
    for line, row in rows:
        name = row[places[0]].strip()
        if not name:
            raise InputError(f"{path} line {line}: column {layout.id!r} is empty")
        times.add(line, row[time])
        column.append(names.setdefault(name, len(names)))
        values.append(_number(path, line, layout.value, row[places[1]]))
        lines.append(line)
    column = np.array(column)
    return Table(tuple(names), times.stamps(column), np.array(values, np.float64), column, lines)


def _time_column(path, header, row, layout) -> int:
    if layout.time is not None:
        return _column(path, header, layout.time)
    known = [i for i, name in enumerate(header) if name.lower() in TIME_NAMES]
    if known or not UNNAMED.fullmatch(header[0]):
        return known[0] if known else 0
    # The first column may be a table's index: times, or numbers beside a column of times.
    times = [i for i, text in enumerate(row) if _is_time(text, layout)]
    if 0 in times or len(times) == 1:
        return times[0]
    raise InputError(
        f"{path}: column 1 has no name and holds {row[0]!r}, not a time; the option time says "
        f"which column holds the times: {', '.join(filter(None, header))}"
    )


def _is_time(text: str, layout: CsvFormat) -> bool:
    try:
        parse_time(text, layout.time_format)
    except ValueError:
        return False
    return True


def _column(path, header, name) -> int:
    if name not in header:
        raise InputError(f"{path} has no column {name!r}; it has {', '.join(header)}")
    return header.index(name)


def _counts(numbers: np.ndarray) -> bool:
    """Whether these are whole numbers of which each comes once and none is left out."""
    return bool((np.diff(np.sort(numbers)) == 1).all() and (numbers % 1 == 0).all())


class _Times:
    """The times of a file, one by one; all have an offset, or none has."""

    def __init__(self, path, layout):
        self._path, self._layout = path, layout
        self._local, self._offset = [], []

    def add(self, line: int, text: str) -> None:
        try:
            found = parse_time(text, self._layout.time_format)
        except ValueError as error:
            raise self._unreadable(line, text, error) from None
        offset = found.utcoffset()
        if self._local and (offset is None) != (self._offset[0] is None):
            raise InputError(
                f"{self._path} line {line}: {text!r} is written "
                f"{'without' if offset is None else 'with'} an offset from UTC, unlike the times "
                "before it"
            )
        self._local.append(found.replace(tzinfo=None))
        self._offset.append(offset)

    def _unreadable(self, line, text, error) -> InputError:
        if "finer" in str(error):
            return InputError(f"{self._path} line {line}: {error}, which is not read")
        wanted = self._layout.time_format or "ISO 8601, such as 2024-05-31 14:15"
        return InputError(
            f"{self._path} line {line}: {text!r} is not a time ({wanted}); the options "
            "time and time_format say which column and how it is written"
        )

    def stamps(self, column: np.ndarray | None = None) -> Timestamps:
        """As stamps; `column` [n] says which of several series a row belongs to."""
        try:
            return self._stamps(column)
        except InputError as error:
            raise InputError(f"{self._path}: {error}") from error

    def _stamps(self, column: np.ndarray | None) -> Timestamps:
        local, zone = np.array(self._local, "datetime64[us]"), self._layout.zone
        if self._offset[0] is not None:
            found = Timestamps(local, np.array(self._offset, "timedelta64[us]"))
            return found if zone is None else in_zone(found.instants, zone)
        if zone is None:
            return Timestamps(local)
        if column is None:
            return read_clock(local, zone)
        offset = np.empty(len(local), "timedelta64[us]")
        for rows in np.split(
            np.argsort(column, kind="stable"), np.cumsum(np.bincount(column))[:-1]
        ):
            offset[rows] = read_clock(local[rows], zone).offset
        return Timestamps(local, offset, zone)


def _number(path, line, name, text) -> float:
    text = text.strip()
    if text.lower() in MISSING:
        return math.nan
    try:
        # Python also reads 1_000 and digits of other scripts as numbers.
        value = float(text if text.isascii() and "_" not in text else "no number")
    except ValueError:
        raise InputError(f"{path} line {line}: {text!r} in column {name!r} is no number") from None
    if math.isinf(value):
        raise InputError(f"{path} line {line}: column {name!r} is infinite")
    return value
