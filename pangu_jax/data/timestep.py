"""The step between timestamps: inferring it, continuing it, finding gaps.

Hours, and all that is shorter, are steps of instants. Days, weekdays (Monday to Friday) and months
are steps of local dates, so that a midnight stays one when clocks are changed. Months keep their
day, or their last day: after 28 February the 30th comes back. Which of these a step is, is read
from the stamps: the one that leaves the fewest of them missing.
"""

import dataclasses
from typing import Literal

import numpy as np

from pangu_jax.core.config import check_choices
from pangu_jax.core.errors import InputError
from pangu_jax.data.timestamp import DAY, END, Timestamps, at_clock, in_zone, show, skipped

Unit = Literal["us", "s", "day", "weekday", "month"]
INSTANTS = {"us": 1, "s": 10**6}  # in microseconds, as is the hour
HOUR = 3600 * 10**6
AT_LEAST = {**INSTANTS, "day": 24 * HOUR, "weekday": 24 * HOUR, "month": 28 * 24 * HOUR}
MONTH = np.timedelta64(1, "M")
NAMES = (("h", 3600), ("min", 60), ("s", 1))


@dataclasses.dataclass(frozen=True)
class TimeStep:
    """The distance between neighboring stamps.

    Attributes:
      count: how many units.
      unit: "us" and "s" (microseconds, seconds) are of instants; "day", "weekday" and "month" are
        of local dates.
      month_end: whether every stamp lies on the last day of its month.
      day: for months, the day that stamps lie on where the month has it, 29 or 30; 0 where all
        months have it, so that any stamp tells it.
    """

    count: int
    unit: Unit = "s"
    month_end: bool = False
    day: int = 0

    def __post_init__(self):
        check_choices(self, "a time step's")
        if self.count < 1:
            raise InputError(f"a time step must be at least 1, got {self.count}")
        if not 0 <= self.day <= 31:
            raise InputError(f"the day of a month is at most 31, got {self.day}")

    def __str__(self) -> str:
        """As a reader would say it: "15 min", "0.5 s", "1 d", "1 month (at its end)"."""
        if self.unit == "month":
            return f"{self.count} month" + (" (at its end)" if self.month_end else "")
        if self.unit in ("day", "weekday"):
            return f"{self.count} {'d' if self.unit == 'day' else 'weekday'}"
        if self.unit == "us" and self.count % 10**6:
            return f"{self.count / 10**6:.6f}".rstrip("0") + " s"
        seconds = self.count * INSTANTS[self.unit] // 10**6
        name, size = next((n, s) for n, s in NAMES if seconds % s == 0)
        return f"{seconds // size} {name}"

    def at(self, first: np.ndarray | np.datetime64, numbers: np.ndarray) -> np.ndarray:
        """The times that lie `numbers` steps after `first`, datetime64[us] of their common shape.

        Instants or local times, as the unit is. Months without a `day` keep that of `first`.
        """
        steps, first = np.asarray(numbers) * self.count, first.astype("datetime64[us]")
        if self.unit in INSTANTS:
            return first + steps * np.timedelta64(INSTANTS[self.unit], "us")
        days = first.astype("datetime64[D]")
        clock = first - days
        if self.unit == "day":
            return days + steps * DAY + clock
        if self.unit == "weekday":
            return _of_weekday(_weekday(days) + steps) + clock
        month = days.astype("datetime64[M]")
        day = days - month.astype("datetime64[D]") if self.day == 0 else (self.day - 1) * DAY
        ends = _last_day(month + steps * MONTH)
        same = (month + steps * MONTH).astype("datetime64[D]") + day
        return (ends if self.month_end else np.minimum(same, ends)) + clock

    def after(self, last: np.datetime64, steps: int) -> np.ndarray:
        """The `steps` times that follow `last`, datetime64[us].

        Raises:
          InputError: they go beyond the year 9999.
        """
        return self.following(Timestamps.of(np.array([last])), steps).local

    def following(self, stamps: Timestamps, steps: int) -> Timestamps:
        """The `steps` stamps that follow the last.

        Raises:
          InputError: they go beyond the year 9999.
        """
        last = len(stamps) - 1
        # Checked before any are made: too many fit in neither memory nor 64 bits.
        left = int((END - stamps.local[last]).astype(np.int64))
        if steps * self.count * AT_LEAST[self.unit] < left:
            found = self.follow(stamps, np.full(steps, last), np.arange(1, steps + 1))
            if (found.local < END).all():
                return found
        raise InputError(
            f"{steps} steps of {self} after {stamps.show(last)} go beyond the year 9999"
        )

    def follow(self, stamps: Timestamps, rows: np.ndarray, numbers: np.ndarray) -> Timestamps:
        """The stamps that lie `numbers` [n] steps after those of `rows` [n].

        Their offsets are those of their zone; without a zone, of the stamp that they follow.
        """
        offset = None if stamps.offset is None else stamps.offset[rows]
        if self.unit in INSTANTS:
            found = self.at(stamps.instants[rows], numbers)
            if stamps.zone is not None:
                return in_zone(found, stamps.zone)
            return Timestamps(found if offset is None else found + offset, offset)
        found = self.at(stamps.local[rows], numbers)
        if stamps.zone is not None:
            return at_clock(found, stamps.zone)
        return Timestamps(found, offset)

    def units(self, stamps: Timestamps) -> np.ndarray | None:
        """How many units each stamp lies after a fixed time, int64 [n]; None where one has none."""
        if self.unit in INSTANTS:
            since = (stamps.instants - stamps.instants[0]).astype(np.int64)
            whole, rest = np.divmod(since, INSTANTS[self.unit])
            return None if rest.any() else whole
        days = stamps.local.astype("datetime64[D]")
        clock = stamps.local - days
        if (clock != clock[0]).any():
            return None
        if self.unit == "day":
            return days.astype(np.int64)
        if self.unit == "weekday":
            return None if (~np.is_busday(days)).any() else _weekday(days)
        months = days.astype("datetime64[M]")
        # From the first stamp of a day that all months have, the others are where it says.
        wanted = dataclasses.replace(self, count=1).at(
            stamps.local[0], (months - months[0]).astype(np.int64)
        )
        return None if (wanted != stamps.local).any() else months.astype(np.int64)

    def fits(self, stamps: Timestamps) -> bool:
        """Whether neighboring stamps lie this step apart."""
        found = self.units(stamps)
        return found is not None and bool((np.diff(found) == self.count).all())

    def same_as(self, other: "TimeStep") -> bool:
        """Whether the two are one step; days of months, and days as 24 hours, do not matter."""
        return self._kind() == other._kind()

    def _kind(self) -> tuple:
        size = self.count * INSTANTS.get(self.unit, 0)
        if size:
            days, rest = divmod(size, 86400 * 10**6)
            return (size, "us", False) if rest else (days, "day", False)
        return self.count, self.unit, self.month_end


def infer_step(times: np.ndarray | Timestamps, where: str) -> TimeStep:
    """The step of stamps that are whole: no gap, none twice, in order.

    Args:
      times: datetime64 [rows], or stamps.
      where: how errors name the file.

    Raises:
      InputError: fewer than three stamps, one repeated, out of order, or a gap; says where.
    """
    stamps = Timestamps.of(times)
    if len(stamps) < 3:
        raise InputError(f"{where} has {len(stamps)} rows; a time step shows in three or more")
    gaps = np.diff(stamps.instants).astype(np.int64)
    for bad, what in ((gaps == 0, "appears twice"), (gaps < 0, "comes after a later one")):
        if bad.any():
            row = int(np.flatnonzero(bad)[0]) + 1
            hint = _clock_hint(stamps, row - 1)
            raise InputError(f"{where}: the time {stamps.show(row)} {what}{hint}")
    step = find_step(stamps, where)
    if not step.fits(stamps):
        raise InputError(f"{where}: {describe_gap(step, stamps)}")
    return step


def find_step(stamps: Timestamps, where: str) -> TimeStep:
    """The step of three or more stamps in order, some of which may be missing.

    Of the units that all stamps lie on, the one with the fewest stamps missing, and of these the
    largest; its step is the most common one, and all others are multiples of it.

    Raises:
      InputError: the stamps are irregular; says where.
    """
    found = []
    for unit in _candidates(stamps):
        units = unit.units(stamps)
        if units is None:
            continue
        steps = np.diff(units)
        count, share = _most_common(steps)
        if share >= 0.5 and (steps > 0).all() and not (steps % count).any():
            found.append((int(steps.sum()) // count - len(steps), unit, count))
    if not found:
        raise InputError(f"{where}: {_irregular(stamps)}")
    missing, unit, count = min(found, key=lambda x: x[0])
    if unit.unit == "us" and count % 10**6 == 0:
        unit, count = TimeStep(1, "s"), count // 10**6
    step = dataclasses.replace(unit, count=count)
    _refuse_skipped(step, stamps, where)
    if step == TimeStep(1, "day") and missing:
        _refuse_weekends(stamps, where)
    return step


def describe_gap(step: TimeStep, stamps: Timestamps, largest: bool = False) -> str:
    """Which stamps are missing between two that are there: at the first gap, or the largest."""
    missing = np.diff(step.units(stamps)) // step.count - 1
    row = int(np.argmax(missing if largest else missing > 0))
    many, total = int(missing[row]), int(missing.sum())
    first = step.follow(stamps, np.array([row]), np.array([1]))
    text = (
        f"between {stamps.show(row)} and {stamps.show(row + 1)} {many} rows of step {step} are "
        f"missing"
    )
    if largest:
        return text
    more = f", {total} in all" if total > many else ""
    return (
        f"{text}; the option repair fills gaps (the first missing is {first.show(0)}{more})"
        f"{_clock_hint(stamps, row)}"
    )


def _candidates(stamps: Timestamps) -> tuple[TimeStep, ...]:
    """One of each unit, the largest first."""
    days = stamps.local.astype("datetime64[D]")
    latest = int((days - days.astype("datetime64[M]").astype("datetime64[D]")).max() / DAY) + 1
    month = TimeStep(1, "month", day=latest if latest > 28 else 0)
    return (TimeStep(1, "month", True), month, TimeStep(1, "day"), TimeStep(1, "us"),
            TimeStep(1, "weekday"))  # fmt: skip


def _most_common(steps: np.ndarray) -> tuple[int, float]:
    """The most common of several distances, and its share of them."""
    values, counts = np.unique(steps, return_counts=True)
    best = int(np.argmax(counts))
    return int(values[best]), float(counts[best] / len(steps))


def _irregular(stamps: Timestamps) -> str:
    gaps = np.diff(stamps.instants).astype(np.int64)
    usual, share = _most_common(gaps)
    if share < 0.5:
        return "the times are irregular; there is no common step"
    row = int(np.flatnonzero(gaps % usual)[0])
    apart = [TimeStep(int(gap), "us") for gap in (usual, gaps[row])]
    text = (
        f"the times are irregular: most lie {apart[0]} apart, but {stamps.show(row)} and "
        f"{stamps.show(row + 1)} lie {apart[1]} apart"
    )
    off = int(gaps[row] + usual // 2) % usual - usual // 2
    if stamps.offset is not None and stamps.zone is None and abs(off) == HOUR:
        text += "; if these are local days, the option zone (such as Europe/Berlin) says so"
    return text


def _refuse_skipped(step: TimeStep, stamps: Timestamps, where: str) -> None:
    if step.unit in INSTANTS and (never := skipped(stamps)).any():
        time = show(stamps.local[int(np.flatnonzero(never)[0])])
        raise InputError(
            f"{where}: {time} never was in {stamps.zone}, where clocks went forward over it; is "
            "that the zone of the times?"
        )


def _refuse_weekends(stamps: Timestamps, where: str) -> None:
    """A few weekend days among weekdays are no reason to invent all the others."""
    free = ~np.is_busday(stamps.local.astype("datetime64[D]"))
    if 0 < free.sum() < 0.1 * len(stamps):
        raise InputError(
            f"{where}: the rows are of weekdays, but {stamps.show(int(np.argmax(free)))} is on a "
            f"weekend ({int(free.sum())} such rows); leave these out"
        )


def _clock_hint(stamps: Timestamps, row: int) -> str:
    """What may be behind an hour that is there twice, or not at all, after a row."""
    steps = np.diff(stamps.local).astype(np.int64)
    usual = np.median(steps)
    if stamps.offset is not None or usual >= 24 * HOUR or abs(steps[row] - usual) != HOUR:
        return ""
    return "; if clocks were changed there, the option zone (such as Europe/Berlin) says so"


def _weekday(days: np.ndarray) -> np.ndarray:
    """The number of a day among all days from Monday to Friday."""
    week, day = np.divmod(days.astype("datetime64[D]").astype(np.int64) + 3, 7)
    return week * 5 + day


def _of_weekday(numbers: np.ndarray) -> np.ndarray:
    """The days, datetime64[D], of such numbers."""
    week, day = np.divmod(numbers, 5)
    return (week * 7 + day - 3).astype("datetime64[D]")


def _last_day(months: np.ndarray) -> np.ndarray:
    return (months + MONTH).astype("datetime64[D]") - DAY
