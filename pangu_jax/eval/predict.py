"""Forecasts in the data's units, as far ahead as requested, with intervals."""

import dataclasses
from collections.abc import Callable, Sequence

import jax
import numpy as np

from pangu_jax.checkpoint.forecaster import Forecaster
from pangu_jax.core.errors import InputError
from pangu_jax.data.series import Series
from pangu_jax.data.timestamp import Timestamps, parse_time, show_offset
from pangu_jax.data.timestep import TimeStep
from pangu_jax.data.windows import Scaler
from pangu_jax.eval.forecast import forecasts
from pangu_jax.eval.intervals import track
from pangu_jax.models.timepro_config import TimeProConfig

PIECE = 1024  # windows that are forecast between two calls of `progress`


@dataclasses.dataclass(frozen=True)
class Prediction:
    """What comes after a series.

    Attributes:
      times: datetime64[us], [steps], local times.
      names: of the columns.
      values: float64 [steps, V], in the units of the data.
      low: lower ends of the intervals, the same shape; NaN beyond the trained horizon, for which
        nothing was calibrated.
      high: upper ends.
      offsets: timedelta64[us], [steps], of the local times from UTC, if the series had some.
      zone: the IANA zone of the times, if it is known.
      notes: what is not certain, a sentence each.
    """

    times: np.ndarray
    names: tuple[str, ...]
    values: np.ndarray
    low: np.ndarray
    high: np.ndarray
    offsets: np.ndarray | None = None
    zone: str | None = None
    notes: tuple[str, ...] = ()

    @property
    def stamps(self) -> Timestamps:
        """The times with their offsets."""
        return Timestamps(self.times, self.offsets, self.zone)


def step_of(model: Forecaster) -> TimeStep:
    """What lies between two rows of the data that the model was trained on."""
    cfg = model.cfg
    return TimeStep(cfg.step_count, cfg.step_unit, cfg.month_end, cfg.month_day)


def scaler_of(model: Forecaster) -> Scaler:
    """The scaling of the training rows."""
    return Scaler(model.cfg.mean, model.cfg.std)


def arrange(model: Forecaster, series: Series, where: str) -> tuple[np.ndarray, np.ndarray | None]:
    """The values of a series in the order of the model's columns, and which were filled in.

    Returns:
      float64 [rows, V], and bool [rows, V], or None where none was.

    Raises:
      InputError: other columns or another time step than the model was trained on.
    """
    place = {name: i for i, name in enumerate(series.names)}
    missing = [name for name in model.cfg.names if name not in place]
    known = set(model.cfg.names)
    surplus = [name for name in series.names if name not in known]
    if missing or surplus:
        parts = [f"lacks {', '.join(missing)}"] if missing else []
        parts += [f"has {', '.join(surplus)}, which the model does not know"] if surplus else []
        raise InputError(f"{where} {' and '.join(parts)}")
    step = step_of(model)
    if not (step.same_as(series.step) or step.fits(series.stamps)):
        raise InputError(
            f"{where} has a row every {series.step}, the model was trained on one every {step}"
        )
    columns = [place[name] for name in model.cfg.names]
    filled = series.filled
    return series.values[:, columns], None if filled is None else filled[:, columns]


def average(model: Forecaster, scaled: np.ndarray, starts: np.ndarray) -> np.ndarray:
    """The mean forecast of all seeds, scaled, float32 [n, H, V]."""
    found = [forecasts(p, scaled, starts, cfg=model.cfg.model) for p in model.params]
    return np.mean(found, 0)


def predict(
    model: Forecaster,
    series: Series,
    *,
    steps: int | None = None,
    where: str = "the series",
    progress: Callable[[int, int], None] | None = None,
) -> Prediction:
    """Forecasts what follows the last row.

    The intervals are tracked through the rows after `model.cfg.tracked_to`: the more of them the
    series holds, the better the intervals fit the errors that are made now. Beyond the trained
    horizon forecasts are fed back as if they had been seen, horizon by horizon; errors then add up,
    and no interval is given.

    Args:
      model: a trained forecaster.
      series: at least as many rows as the model looks back.
      steps: how far ahead; None is the trained horizon.
      where: how errors name the series.
      progress: called with windows tracked and windows in all.

    Raises:
      InputError: other columns, another step, too few rows, or `steps` below 1.
    """
    cfg = model.cfg.model
    steps = cfg.horizon if steps is None else steps
    if steps < 1:
        raise InputError(f"steps must be at least 1, got {steps}")
    values, filled = arrange(model, series, where)
    if len(values) < cfg.look_back:
        raise InputError(f"{where} has {len(values)} rows, the model looks back on {cfg.look_back}")
    times, notes = _times(step_of(model), series, steps)
    scaler = scaler_of(model)
    seen = scaler.scale(values[-cfg.look_back :])
    for _ in range(-(-steps // cfg.horizon)):
        start = np.array([len(seen) - cfg.look_back], np.int32)
        window = seen[start[0] :]
        seen = np.concatenate([seen, average(model, window, np.zeros(1, np.int32))[0]])
    found = scaler.unscale(seen[cfg.look_back :][:steps])
    width = np.full(found.shape, np.nan)
    half_width, more = _newest_widths(model, series.stamps, values, filled, where, progress)
    width[: cfg.horizon] = half_width[:steps]
    return Prediction(
        times.local, model.cfg.names, found, found - width, found + width, times.offset,
        times.zone, (*notes, *more),
    )  # fmt: skip


def _newest_widths(
    model, stamps, values, filled, where, progress
) -> tuple[np.ndarray, tuple[str, ...]]:
    """Half widths [H, V] for the window that ends with the last row, and what is to be said."""
    cfg = model.cfg.model
    if not model.cfg.rate:
        return model.half_width, (
            "the intervals have the widths of the training, as this forecaster was trained by a "
            "version that did not adapt them to newer rows; to have them adapt, train it again",
        )
    starts = np.arange(tracked_from(model, stamps), len(values) - cfg.look_back)
    if not len(starts):
        return model.half_width, (
            f"the intervals have the widths of {model.cfg.tracked_to}: {where} has no later row "
            f"with {cfg.look_back} rows before it, so there was nothing to adapt them to",
        )
    notes = ()
    times, last = _times_and_last(model, stamps)
    if times[cfg.look_back - 1] > last:
        notes = (
            f"the intervals were adapted to the last {len(starts)} rows alone; to adapt them to "
            f"all rows after {model.cfg.tracked_to}, {where} must begin {cfg.look_back - 1} rows "
            "before that time",
        )
    # The last windows reach beyond the series; the filling is never read.
    beyond = np.repeat(values[-1:], cfg.horizon, 0)
    if filled is not None:
        filled = np.concatenate([filled, np.ones(beyond.shape, bool)])
    left = residuals(model, np.concatenate([values, beyond]), starts, progress)
    return half_widths(model, left, present(filled, starts, cfg, values.shape[1]))[-1], notes


def tracked_from(model: Forecaster, stamps: Timestamps) -> int:
    """The first row of the first window that was made when the half widths were, or later.

    It may lie beyond the series. Of two stamps of which one has no offset local times are compared.
    """
    if not model.cfg.rate:
        return len(stamps)
    times, last = _times_and_last(model, stamps)
    earlier = np.flatnonzero(times < last)
    newest = earlier[-1] + 1 if len(earlier) else 0  # the row of that time, or what follows it
    return max(int(newest) - model.cfg.model.look_back + 1, 0)


def _times_and_last(model: Forecaster, stamps: Timestamps) -> tuple[np.ndarray, np.datetime64]:
    """The times of a series, and that up to which the half widths were tracked, comparable."""
    time = parse_time(model.cfg.tracked_to)
    offset, local = time.utcoffset(), np.datetime64(time.replace(tzinfo=None), "us")
    if offset is None or stamps.offset is None:
        return stamps.local, local
    return stamps.instants, local - np.timedelta64(offset, "us")


def half_widths(
    model: Forecaster, residuals: np.ndarray, measured: np.ndarray, older: int = 0
) -> np.ndarray:
    """The half widths that consecutive windows are given, and those of the next, [n + 1, H, V].

    Args:
      model: a trained forecaster.
      residuals: float32 [n, H, V], of the windows.
      measured: bool [n, H, V], which of them are of values that were there.
      older: how many windows come before `tracked_from`: they have the stored half widths.
    """
    cfg = model.cfg
    found = track(
        model.half_width,
        residuals[older:],
        rate=cfg.rate,
        coverage=cfg.coverage,
        measured=measured[older:],
    )
    return np.concatenate([np.repeat(found[:1], older, 0), found]) if older else found


def _times(step: TimeStep, series: Series, steps: int) -> tuple[Timestamps, tuple[str, ...]]:
    """The stamps that follow those of a series, and a note where their offset is not certain.

    A short series may not show all of its step, such as which day of the month it is of: then the
    model's is taken.
    """
    stamps = series.stamps
    says_more = step.day or not step.same_as(series.step)
    step = step if says_more and step.fits(stamps) else series.step
    found = step.following(stamps, steps)
    if stamps.zone is not None or not stamps.offset_changes:
        return found, ()
    offset = show_offset(stamps.offset[-1])
    return found, (
        f"clocks are changed within the series; the forecasts keep its last offset, {offset}, as "
        "only the option zone (such as Europe/Berlin) says when they are changed next",
    )


def residuals(
    model: Forecaster,
    values: np.ndarray,
    starts: np.ndarray,
    progress: Callable[[int, int], None] | None = None,
) -> np.ndarray:
    """Observation minus forecast in the data's units, float32 [n, H, V].

    Args:
      model: a trained forecaster.
      values: float64 [rows, V], in the model's order.
      starts: int [n], first rows of the windows.
      progress: called with windows done and windows in all.
    """
    cfg, scaler = model.cfg.model, scaler_of(model)
    scaled = scaler.scale(values)
    found = np.empty((len(starts), cfg.horizon, values.shape[1]), np.float32)
    for first in range(0, len(starts), PIECE):
        part = starts[first : first + PIECE]
        difference = scaled[_targets(cfg, part)] - average(model, scaled, part)
        found[first : first + PIECE] = difference * np.array(scaler.std, np.float32)
        if progress is not None:
            progress(first + len(part), len(starts))
    return found


def measured(
    filled: np.ndarray | None,
    starts: np.ndarray,
    cfg: TimeProConfig,
    names: Sequence[str],
    where: str,
) -> np.ndarray:
    """Which residuals are of observed values, bool [n, H, V].

    Args:
      filled: bool [rows, V], the values that were made up; None is none.
      starts: int [n], first rows of the windows.
      cfg: the model.
      names: of the series.
      where: how the error names the part of the series.

    Raises:
      InputError: a series of which no value was there.
    """
    found = present(filled, starts, cfg, len(names))
    for name, some in zip(names, found.any((0, 1)), strict=True):
        if not some:
            raise InputError(
                f"{where}: all values of {name!r} were filled in; none can be measured"
            )
    return found


def present(
    filled: np.ndarray | None, starts: np.ndarray, cfg: TimeProConfig, variates: int
) -> np.ndarray:
    """Which values that windows forecast were there, bool [n, H, V]; see `measured`."""
    if filled is None:
        return np.ones((len(starts), cfg.horizon, variates), bool)
    return ~filled[_targets(cfg, starts)]


def _targets(cfg: TimeProConfig, starts: np.ndarray) -> np.ndarray:
    """The rows that windows forecast, int [n, H]."""
    return starts[:, None] + cfg.look_back + np.arange(cfg.horizon)


def to_host(params):
    """Parameters as numpy arrays, one tree per seed: [seeds, ...] leaves to a list."""
    host = jax.device_get(params)
    seeds = jax.tree.leaves(host)[0].shape[0]
    return [jax.tree.map(lambda x, i=i: np.asarray(x[i]), host) for i in range(seeds)]
