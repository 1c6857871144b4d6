"""Time stamps: what lies between them, and which come next."""

import dataclasses
import datetime as dt
from typing import Literal

import numpy as np

from pangu_jax.core.errors import InputError

SECOND, MONTH = np.timedelta64(1, "s"), np.timedelta64(1, "M")
UNITS = (("d", 86400), ("h", 3600), ("min", 60), ("s", 1))


@dataclasses.dataclass(frozen=True)
class TimeStep:
    """The distance between neighbouring stamps.

    Attributes:
      count: how many units.
      unit: "s" (seconds) or "month".
      month_end: whether every stamp lies on the last day of its month.
    """

    count: int
    unit: Literal["s", "month"] = "s"
    month_end: bool = False

    def __post_init__(self):
        if self.count < 1:
            raise InputError(f"a time step must be at least 1, got {self.count}")

    def __str__(self) -> str:
        """As a reader would say it: "15 min", "1 d", "1 month (at its end)"."""
        if self.unit == "month":
            return f"{self.count} month" + (" (at its end)" if self.month_end else "")
        name, size = next((n, s) for n, s in UNITS if self.count % s == 0)
        return f"{self.count // size} {name}"

    def after(self, last: np.datetime64, steps: int) -> np.ndarray:
        """The `steps` stamps that follow `last`, datetime64[s].

        Months keep the day of `last`, or the month's last day where there is no such day.
        """
        numbers = np.arange(1, steps + 1) * self.count
        last = last.astype("datetime64[s]")
        if self.unit == "s":
            return last + numbers * SECOND
        month, day = last.astype("datetime64[M]"), last.astype("datetime64[D]")
        clock = last - day
        months = month + numbers * MONTH
        ends = (months + MONTH).astype("datetime64[D]") - np.timedelta64(1, "D")
        same = months.astype("datetime64[D]") + (day - month.astype("datetime64[D]"))
        return (ends if self.month_end else np.minimum(same, ends)) + clock


def parse_time(text: str, form: str | None = None) -> dt.datetime:
    """A time stamp without a zone; one with a zone is turned into UTC.

    Args:
      text: ISO 8601, with "T" or a space; or year/month/day.
      form: a `strptime` format to use instead.

    Raises:
      ValueError: not a time.
    """
    text = text.strip()
    if form is not None:
        found = dt.datetime.strptime(text, form)
    else:
        if text.isdigit() and len(text) != 8:
            raise ValueError(f"{text!r} is a number, not a time")
        found = dt.datetime.fromisoformat(text.replace("/", "-") if "/" in text[:5] else text)
    if found.tzinfo is not None:
        found = found.astimezone(dt.UTC).replace(tzinfo=None)
    return found


def infer_step(times: np.ndarray, where: str) -> TimeStep:
    """The step of stamps that are whole: no gap, none twice, in order.

    Args:
      times: datetime64[s] [rows].
      where: how errors name the file.

    Raises:
      InputError: fewer than three stamps, one repeated, out of order, or a gap; says where.
    """
    if len(times) < 3:
        raise InputError(f"{where} has {len(times)} rows; a time step shows in three or more")
    gaps = np.diff(times)
    seconds = gaps.astype(int)
    for bad, what in ((seconds == 0, "appears twice"), (seconds < 0, "comes after a later one")):
        if bad.any():
            row = int(np.flatnonzero(bad)[0]) + 1
            raise InputError(f"{where}: the time {show(times[row])} {what}")
    equal = (seconds == seconds[0]).all()
    # Months may happen to be equally long, such as December and January.
    monthly = _months(times) if seconds[0] >= 28 * 86400 else None
    if monthly is not None:
        return monthly
    if equal:
        return TimeStep(int(seconds[0]))
    step, share = common_step(seconds)
    if share < 0.5:
        raise InputError(f"{where}: the times are irregular; there is no common step")
    row = int(np.flatnonzero(seconds != step)[0])
    missing = seconds[row] / step - 1
    many = f"{missing:.0f} rows of step {TimeStep(step)} are" if missing % 1 == 0 else "rows are"
    raise InputError(
        f"{where}: between {show(times[row])} and {show(times[row + 1])} {many} missing; "
        "--repair fills gaps"
    )


def common_step(seconds: np.ndarray) -> tuple[int, float]:
    """The most common of several distances, and its share of them."""
    values, counts = np.unique(seconds, return_counts=True)
    best = int(np.argmax(counts))
    return int(values[best]), float(counts[best] / len(seconds))


def show(time: np.datetime64) -> str:
    """A stamp as it is written: the seconds only where there are some."""
    text = str(time.astype("datetime64[s]")).replace("T", " ")
    return text.removesuffix(":00")


def _months(times: np.ndarray) -> TimeStep | None:
    """The step in months of stamps at month ends, or on one day of the month; else None."""
    months, days = times.astype("datetime64[M]"), times.astype("datetime64[D]")
    counts = np.diff(months).astype(int)
    clocks = times - days
    if not ((counts == counts[0]).all() and counts[0] > 0 and (clocks == clocks[0]).all()):
        return None
    ends = (months + MONTH).astype("datetime64[D]") - np.timedelta64(1, "D")
    if (days == ends).all():
        return TimeStep(int(counts[0]), "month", True)
    of_month = (days - months.astype("datetime64[D]")).astype(int)
    longest = (ends - months.astype("datetime64[D]")).astype(int)
    # The 30th of every month is the 28th or 29th of February.
    if (of_month == np.minimum(of_month.max(), longest)).all():
        return TimeStep(int(counts[0]), "month")
    return None
