"""Timestamps: parsing, the instants they denote, and formatting.

A stamp is a local time, and an offset from UTC where it is written with one; the instant is the
local time less the offset. A zone, where one is named, makes offsets exact, also those to come.
"""

import dataclasses
import datetime as dt
import re
import zoneinfo
from collections.abc import Callable

import numpy as np

from pangu_jax.core.errors import InputError

MICROSECOND, DAY = np.timedelta64(1, "us"), np.timedelta64(1, "D")
# Python's years are 1 to 9999; a day is left at each end for offsets.
FIRST, END = np.datetime64("0001-01-02", "us"), np.datetime64("9999-12-31", "us")
FINER = re.compile(r"[.,]\d{6}\d*[1-9]")


@dataclasses.dataclass(frozen=True)
class Timestamps:
    """Points in time.

    Attributes:
      local: datetime64[us], [n], what the clock on the wall showed.
      offset: timedelta64[us], [n], what that clock was ahead of UTC; None where stamps have none.
      zone: the IANA name of the zone, which then knows the offset of any other time; or None.
    """

    local: np.ndarray
    offset: np.ndarray | None = None
    zone: str | None = None

    @classmethod
    def of(cls, times: "np.ndarray | Timestamps") -> "Timestamps":
        """Timestamps, or local times without offsets, as stamps."""
        return times if isinstance(times, Timestamps) else cls(times.astype("datetime64[us]"))

    def __len__(self) -> int:
        return len(self.local)

    def __getitem__(self, rows) -> "Timestamps":
        """The stamps of several rows."""
        return Timestamps(self.local[rows], None if self.offset is None else self.offset[rows],
                      self.zone)  # fmt: skip

    @property
    def instants(self) -> np.ndarray:
        """Times in UTC, datetime64[us]; the local ones where there are no offsets."""
        return self.local if self.offset is None else self.local - self.offset

    @property
    def offset_changes(self) -> bool:
        """Whether clocks were put forward or back between the stamps."""
        return self.offset is not None and bool((self.offset != self.offset[:1]).any())

    def show(self, row: int) -> str:
        """A stamp as messages write it: seconds only where there are some."""
        return show(self.local[row], None if self.offset is None else self.offset[row])

    def texts(self) -> list[str]:
        """The stamps as files hold them, with as many decimals as they need, at most six."""
        below = (self.local - self.local.astype("datetime64[s]")).astype(np.int64)
        decimals = next(d for d in range(7) if not (below % 10 ** (6 - d)).any())
        length = len("2024-01-01T00:00:00") + (decimals + 1 if decimals else 0)
        texts = [text[:length].replace("T", " ") for text in np.datetime_as_string(self.local)]
        if self.offset is None:
            return texts
        return [t + show_offset(o) for t, o in zip(texts, self.offset, strict=True)]


def show(time: np.datetime64, offset: np.timedelta64 | None = None) -> str:
    """One stamp; seconds and their decimals only where there are some."""
    whole, part = str(time.astype("datetime64[us]")).replace("T", " ").split(".")
    part = part.rstrip("0")
    text = f"{whole}.{part}" if part else whole.removesuffix(":00")
    return text if offset is None else text + show_offset(offset)


def show_offset(offset: np.timedelta64) -> str:
    """An offset such as +02:00, with seconds only where there are some."""
    seconds = int(offset / np.timedelta64(1, "s"))
    sign, seconds = "-" if seconds < 0 else "+", abs(seconds)
    rest = f":{seconds % 60:02d}" if seconds % 60 else ""
    return f"{sign}{seconds // 3600:02d}:{seconds // 60 % 60:02d}{rest}"


def parse_time(text: str, form: str | None = None) -> dt.datetime:
    """A time stamp, with an offset if it is written with one.

    Args:
      text: ISO 8601, with "T" or a space; or year/month/day.
      form: a `strptime` format to use instead.

    Raises:
      ValueError: not a time, or one finer than a microsecond.
    """
    text = text.strip()
    if form is not None:
        found = dt.datetime.strptime(text, form)
    else:
        if text.isdigit() and len(text) != 8:
            raise ValueError(f"{text!r} is a number, not a time")
        if FINER.search(text):
            raise ValueError(f"{text!r} is finer than a microsecond")
        found = dt.datetime.fromisoformat(text.replace("/", "-") if "/" in text[:5] else text)
    offset = found.utcoffset()
    if offset is not None and offset.microseconds:
        raise ValueError(f"{text!r} has an offset finer than a second")
    return found


def check_format(form: str) -> None:
    """Refuses what is no `strptime` format, or one that forgets the year or a zone's name.

    Raises:
      InputError: says what is wrong with it.
    """
    if re.search(r"(?<!%)(%%)*%Z", form):
        raise InputError(
            f"time_format {form!r} has %Z, which does not say what the offset is: use %z for "
            "offsets, or write the zone's name as it stands and give the option zone"
        )
    try:
        example = dt.datetime(2001, 2, 3, 4, 5, 6, tzinfo=dt.UTC).strftime(form)
        found = dt.datetime.strptime(example, form)
    except (ValueError, re.error) as error:
        raise InputError(f"time_format {form!r} is no strptime format: {error}") from error
    if found.year != 2001:
        raise InputError(f"time_format {form!r} has no year; %Y or %y reads one")


def find_zone(name: str) -> zoneinfo.ZoneInfo:
    """A zone of the IANA database.

    Raises:
      InputError: there is none of that name.
    """
    try:
        return zoneinfo.ZoneInfo(name)
    except (KeyError, ValueError, OSError) as error:
        hint = (
            "" if zoneinfo.available_timezones() else "; install tzdata: this system has no zones"
        )
        raise InputError(
            f"there is no zone {name!r}; IANA names are accepted, such as Europe/Berlin{hint}"
        ) from error


def in_zone(instants: np.ndarray, zone: str) -> Timestamps:
    """The stamps of instants (UTC, datetime64[us], [n]) in a zone.

    Raises:
      InputError: a year that Python does not know.
    """
    clock = find_zone(zone)
    found = _each(instants, lambda t: clock.fromutc(t.replace(tzinfo=clock)).utcoffset())
    return Timestamps(instants + found, found, zone)


def at_clock(local: np.ndarray, zone: str) -> Timestamps:
    """The stamps of local times [n] in a zone; of an hour that comes twice, in the first.

    Raises:
      InputError: a year that Python does not know.
    """
    return Timestamps(local, _offsets(local, zone, 0), zone)


def _offsets(local: np.ndarray, zone: str, fold: int) -> np.ndarray:
    """What local times are ahead of UTC, timedelta64[us], [n].

    Args:
      local: datetime64[us], [n].
      zone: its name.
      fold: of a time that comes twice, as clocks go back: 0 takes the first, 1 the second. One
        that clocks skip, as they go forward, has the offset before (0) or after (1).

    Raises:
      InputError: a year that Python does not know.
    """
    clock = find_zone(zone)
    return _each(local, lambda t: t.replace(tzinfo=clock, fold=fold).utcoffset())


def read_clock(local: np.ndarray, zone: str) -> Timestamps:
    """The stamps of a sequence of local times, of which an hour may come twice.

    Of the times that come twice, those are the second that do not come after all before them, or
    that only then lie the usual step after the one before.

    Args:
      local: datetime64[us], [n], as they follow one another; newest first will do as well.
      zone: its name.

    Raises:
      InputError: the times are in no order, so that nothing tells the two hours apart; or a year
        that Python does not know.
    """
    first, second = _offsets(local, zone, 0), _offsets(local, zone, 1)
    twice = first > second
    if not twice.any():
        return Timestamps(local, first, zone)
    steps = np.diff(local).astype(np.int64)
    order = slice(None, None, -1 if (steps < 0).sum() > (steps > 0).sum() else 1)
    ordered, again = local[order], twice[order]
    latest = np.maximum.accumulate(ordered)
    back = np.concatenate([[False], ordered[1:] <= latest[:-1]])
    astray = np.concatenate([[False], ordered[1:] < latest[:-1]]) & ~again
    if astray.any():
        raise InputError(
            f"{show(ordered[again][0])} comes twice in {zone}, and as the rows are not in "
            "order of time, nothing tells the two apart"
        )
    instants, later = ordered - first[order], ordered - second[order]
    usual = np.median(np.diff(instants).astype(np.int64)) if len(local) > 1 else 0
    back[1:] |= (later[1:] - instants[:-1]).astype(np.int64) == usual
    offset = np.where(again & back, second[order], first[order])
    return Timestamps(local, offset[order], zone)


def skipped(stamps: Timestamps) -> np.ndarray:
    """Which local times never were, as clocks went forward: bool [n]."""
    if stamps.zone is None:
        return np.zeros(len(stamps), bool)
    return in_zone(stamps.instants, stamps.zone).local != stamps.local


def _each(times: np.ndarray, find: Callable[[dt.datetime], dt.timedelta | None]) -> np.ndarray:
    """What `find` gives for every time, timedelta64[us], [n]; equal times are asked for once."""
    unique, inverse = np.unique(times, return_inverse=True)
    for time in unique[(unique < FIRST) | (unique >= END)]:
        raise InputError(f"{show(time)} is outside of the years that zones are known for")
    found = np.array([find(time) for time in unique.tolist()], "timedelta64[us]")
    return found[inverse]
