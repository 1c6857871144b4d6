"""Repairs of series: order, repeated times, gaps, missing values; each is noted."""

import dataclasses

import numpy as np

from pangu_jax.core.errors import InputError
from pangu_jax.data.table import Table
from pangu_jax.data.timestamp import DAY, Timestamps
from pangu_jax.data.timestep import describe_gap, find_step


@dataclasses.dataclass(frozen=True)
class Rows:
    """One row per time, in order.

    Attributes:
      stamps: of the rows.
      values: float64 [rows, V]; NaN is missing.
      repeated: how many of the file's rows were of a time that had been there.
      contradicting: how many of their values were other than those that were kept.
    """

    stamps: Timestamps
    values: np.ndarray
    repeated: int
    contradicting: int


def gather(table: Table) -> Rows:
    """The rows of a table by their time; of several values the first is kept.

    A missing value is none: it gives way to one that comes later.
    """
    _, first, row = np.unique(table.stamps.instants, return_index=True, return_inverse=True)
    width = len(table.names)
    if table.column is None:
        kept = len(first)
        cells = row[:, None] * width + np.arange(width)
    else:
        cells = row * width + table.column
        kept = len(np.unique(cells))
    there = ~np.isnan(table.values)
    cells, found = cells[there], table.values[there]
    filled, at = np.unique(cells, return_index=True)
    values = np.full(len(first) * width, np.nan)
    values[filled] = found[at]
    contradicting = int((values[cells] != found).sum())
    return Rows(table.stamps[first], values.reshape(-1, width), len(row) - kept, contradicting)


def repair(path: str, table: Table) -> tuple[Timestamps, np.ndarray, np.ndarray, list[str]]:
    """Rows in order, one per time, without gaps or missing values.

    Args:
      path: how errors name the file.
      table: what it holds.

    Returns:
      stamps [rows], values [rows, V], which of them were filled in, bool [rows, V], and what was
      done, a sentence each.

    Raises:
      InputError: a variate without values, times without a common step, more rows to fill in than
        there are, or variates that share less than half of the rows.
    """
    notes = []
    if table.column is None and (np.diff(table.stamps.instants) < 0 * DAY).any():
        notes.append("rows were put in order of time")
    rows = gather(table)
    if rows.repeated:
        notes.append(_repeated(table, rows))
    stamps, values, new = _fill_gaps(path, rows)
    kept, cut = _common_rows(path, table.names, stamps, values)
    stamps, values, new = stamps[kept], values[kept], new[kept]
    if new.any():
        notes.append(f"{int(new.sum())} missing rows were filled in")
    filled = np.isnan(values)
    missing = int(filled[~new].sum())
    if missing:
        notes.append(f"{missing} missing values were filled in")
    at = np.arange(len(values))
    for column, gone in enumerate(filled.T):
        values[gone, column] = np.interp(at[gone], at[~gone], values[~gone, column])
    return stamps, values, filled, notes + cut


def _repeated(table: Table, rows: Rows) -> str:
    text = f"{rows.repeated} rows of a repeated time were left out"
    if not rows.contradicting:
        return text
    text += f"; {rows.contradicting} of their values contradict the first ones, which were kept"
    local = np.sort(table.stamps.local)
    twice = local[1:][np.diff(local) == 0 * DAY]
    by_night = (twice - twice.astype("datetime64[D]") < np.timedelta64(4, "h")).all()
    steps = np.diff(rows.stamps.local)
    if table.stamps.offset is None and by_night and len(steps) and steps.min() < DAY:
        text += " (if clocks went back there, the option zone keeps both)"
    return text


def _fill_gaps(path: str, rows: Rows) -> tuple[Timestamps, np.ndarray, np.ndarray]:
    """Rows of NaN where stamps are missing; and which rows these are."""
    stamps, values, count = rows.stamps, rows.values, len(rows.values)
    if count < 3:
        return stamps, values, np.zeros(count, bool)
    step = find_step(stamps, path)
    units = step.units(stamps)
    place = (units - units[0]) // step.count
    missing = int(place[-1]) + 1 - count
    if missing > count:
        raise InputError(
            f"{path}: repair would fill in {missing} rows, more than the {count} that are there; "
            f"{describe_gap(step, stamps, largest=True)}: is a time wrong?"
        )
    new = np.ones(count + missing, bool)
    new[place] = False
    numbers = np.flatnonzero(new)
    before = np.searchsorted(place, numbers) - 1
    between = step.follow(stamps, before, numbers - place[before])
    whole = np.full((len(new), values.shape[1]), np.nan)
    whole[place] = values
    return _merged(stamps, between, new), whole, new


def _merged(there: Timestamps, between: Timestamps, new: np.ndarray) -> Timestamps:
    def both(old, added):
        found = np.empty(len(new), old.dtype)
        found[~new], found[new] = old, added
        return found

    offset = None if there.offset is None else both(there.offset, between.offset)
    return Timestamps(both(there.local, between.local), offset, there.zone)


def _common_rows(path, names, stamps, values) -> tuple[slice, list[str]]:
    """The rows from where all variates have begun to where the first ends: nothing is invented."""
    for name, column in zip(names, values.T, strict=True):
        if np.isnan(column).all():
            raise InputError(f"{path}: column {name!r} has no value at all")
    there = ~np.isnan(values)
    first, last = there.argmax(0), len(values) - 1 - there[::-1].argmax(0)
    begin, end = int(first.max()), int(last.min()) + 1
    if 2 * (end - begin) < len(values):
        short = int((last - first).argmin())
        raise InputError(
            f"{path}: {names[short]!r} has values from {stamps.show(first[short])} to "
            f"{stamps.show(last[short])} only, so that all series together have less than half of "
            f"the {len(values)} rows; leave it out, or give the rows that all have"
        )
    notes = []
    if begin:
        notes.append(
            f"{begin} rows before {stamps.show(begin)} were left out, where "
            f"{names[int(first.argmax())]!r} begins"
        )
    if end < len(values):
        notes.append(
            f"{len(values) - end} rows after {stamps.show(end - 1)} were left out, where "
            f"{names[int(last.argmin())]!r} ends"
        )
    return slice(begin, end), notes
