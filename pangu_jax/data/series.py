"""Series from CSV files: a time column and numbers, in columns or one observation per row.

Nothing is guessed in silence: what does not fit is refused in one sentence that names file, row and
column, or, when repairing is asked for, repaired and noted.
"""

import csv
import dataclasses
import math
from pathlib import Path

import numpy as np

from pangu_jax.core.errors import InputError
from pangu_jax.core.files import atomic_write
from pangu_jax.data.repair import gather, repair
from pangu_jax.data.table import CsvFormat, Table, read_table
from pangu_jax.data.timestamp import Timestamps
from pangu_jax.data.timestep import TimeStep, infer_step

__all__ = ["CsvFormat", "Series", "read_csv", "write_csv"]


@dataclasses.dataclass(frozen=True)
class Series:
    """A multivariate time series.

    Attributes:
      values: float64 [rows, V].
      names: of the variates.
      times: datetime64[us], [rows], local times.
      step: what lies between two rows.
      notes: what was left out or repaired, a sentence each.
      offsets: timedelta64[us], [rows], of the local times from UTC; None where they have none.
      zone: the IANA zone of the times, if it is known.
      filled: bool [rows, V], the values that repairing made up; None is none.
    """

    values: np.ndarray
    names: tuple[str, ...]
    times: np.ndarray
    step: TimeStep
    notes: tuple[str, ...] = ()
    offsets: np.ndarray | None = None
    zone: str | None = None
    filled: np.ndarray | None = None

    def __post_init__(self):
        for name in ("times", "offsets", "filled"):
            found = getattr(self, name)
            if found is not None and len(found) != len(self.values):
                raise InputError(
                    f"a series of {len(self.values)} rows has {name} of {len(found)} rows"
                )

    @property
    def stamps(self) -> Timestamps:
        """The times with their offsets."""
        return Timestamps(self.times, self.offsets, self.zone)


def read_csv(path: str | Path, layout: CsvFormat = CsvFormat()) -> Series:
    """Reads a series.

    Args:
      path: a UTF-8 CSV file with a header, possibly gzipped.
      layout: how it is laid out.

    Raises:
      InputError: no such file, no rows, a column that is missing or has no name, text where a
        number belongs, a value that is missing or not finite, times that are unreadable, repeated,
        out of order, or leave a gap, some with an offset and some without.
    """
    table = read_table(Path(path), layout)
    filled, notes = None, []
    if layout.repair:
        stamps, values, filled, notes = repair(str(path), table)
    elif table.column is None:
        stamps, values = table.stamps, table.values
    else:
        stamps, values = _of_long(path, table)
    _refuse_missing(path, table.names, stamps, values)
    step = infer_step(stamps, str(path))
    if filled is not None and not filled.any():
        filled = None
    return Series(values, table.names, stamps.local, step, (*table.notes, *notes), stamps.offset,
                  stamps.zone, filled)  # fmt: skip


def write_csv(
    path: str | Path, names: list[str], times: np.ndarray | Timestamps, values: np.ndarray
) -> None:
    """Writes times [rows] and values [rows, columns]; NaN becomes an empty field."""
    with atomic_write(path) as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["time", *names])
        for time, row in zip(Timestamps.of(times).texts(), values, strict=True):
            writer.writerow([time, *map(_written, row)])


def _written(value: float) -> str:
    return "" if math.isnan(value) else f"{value:.10g}"


def _of_long(path, table: Table) -> tuple[Timestamps, np.ndarray]:
    rows = gather(table)
    if rows.repeated:
        pairs = np.stack([table.stamps.instants.astype(np.int64), table.column])
        _, first = np.unique(pairs, axis=1, return_index=True)
        second = np.setdiff1d(np.arange(len(table.column)), first)[0]
        raise InputError(
            f"{path} line {table.lines[second]}: {table.names[table.column[second]]!r} has a "
            f"second value at {table.stamps.show(second)}"
        )
    return rows.stamps, rows.values


def _refuse_missing(path, names, stamps, values) -> None:
    missing = np.isnan(values)
    if not missing.any():
        return
    row, column = np.argwhere(missing)[0]
    there = np.flatnonzero(~missing[:, column])
    advice = "the option repair fills them"
    if len(there) and not there[0] < row < there[-1]:
        begins = row < there[0]
        advice = (
            f"it {'begins' if begins else 'ends'} at {stamps.show(there[0 if begins else -1])}, "
            "and the option repair keeps the rows that all columns have"
        )
    raise InputError(
        f"{path}: {int(missing.sum())} values are missing, the first at {stamps.show(row)} in "
        f"column {names[column]!r}; {advice}"
    )
