"""Forecasts in the units of the data, as far ahead as is asked, with intervals."""

import dataclasses

import jax
import numpy as np

from pangu_jax.checkpoint.forecaster import Forecaster
from pangu_jax.core.errors import InputError
from pangu_jax.data.series import Series
from pangu_jax.data.timestep import TimeStep
from pangu_jax.data.windows import Scaler
from pangu_jax.eval.forecast import forecasts


@dataclasses.dataclass(frozen=True)
class Prediction:
    """What comes after a series.

    Attributes:
      times: datetime64[s] [steps].
      names: of the columns.
      values: float64 [steps, V], in the units of the data.
      low: lower ends of the intervals, the same shape; NaN beyond the trained horizon, for which
        nothing was calibrated.
      high: upper ends.
    """

    times: np.ndarray
    names: tuple[str, ...]
    values: np.ndarray
    low: np.ndarray
    high: np.ndarray


def step_of(model: Forecaster) -> TimeStep:
    """What lies between two rows of the data that the model was trained on."""
    return TimeStep(model.cfg.step_count, model.cfg.step_unit, model.cfg.month_end)


def scaler_of(model: Forecaster) -> Scaler:
    """The scaling of the training rows."""
    return Scaler(model.cfg.mean, model.cfg.deviation)


def arrange(model: Forecaster, series: Series, where: str) -> np.ndarray:
    """The values of a series in the order of the model's columns, float64 [rows, V].

    Raises:
      InputError: other columns or another time step than the model was trained on.
    """
    missing = [name for name in model.cfg.names if name not in series.names]
    surplus = [name for name in series.names if name not in model.cfg.names]
    if missing or surplus:
        parts = [f"lacks {', '.join(missing)}"] if missing else []
        parts += [f"has {', '.join(surplus)}, which the model does not know"] if surplus else []
        raise InputError(f"{where} {' and '.join(parts)}")
    if series.step != step_of(model):
        raise InputError(
            f"{where} has a row every {series.step}, the model was trained on one every "
            f"{step_of(model)}"
        )
    return series.values[:, [series.names.index(name) for name in model.cfg.names]]


def average(model: Forecaster, scaled: np.ndarray, starts: np.ndarray) -> np.ndarray:
    """The mean forecast of all seeds, scaled, float32 [n, H, V]."""
    found = [forecasts(p, scaled, starts, cfg=model.cfg.model) for p in model.params]
    return np.mean(found, 0)


def predict(
    model: Forecaster, series: Series, *, steps: int | None = None, where: str = "the series"
) -> Prediction:
    """Forecasts what follows the last row.

    Beyond the trained horizon forecasts are fed back as if they had been seen, horizon by horizon;
    errors then add up, and no interval is given.

    Args:
      model: a trained forecaster.
      series: at least as many rows as the model looks back.
      steps: how far ahead; None is the trained horizon.
      where: how errors name the series.

    Raises:
      InputError: other columns, another step, too few rows, or `steps` below 1.
    """
    cfg = model.cfg.model
    steps = cfg.horizon if steps is None else steps
    if steps < 1:
        raise InputError(f"steps must be at least 1, got {steps}")
    values = arrange(model, series, where)
    if len(values) < cfg.look_back:
        raise InputError(f"{where} has {len(values)} rows, the model looks back on {cfg.look_back}")
    scaler = scaler_of(model)
    seen = scaler.scale(values[-cfg.look_back :])
    for _ in range(-(-steps // cfg.horizon)):
        start = np.array([len(seen) - cfg.look_back], np.int32)
        window = seen[start[0] :]
        seen = np.concatenate([seen, average(model, window, np.zeros(1, np.int32))[0]])
    found = scaler.unscale(seen[cfg.look_back :][:steps])
    width = np.full(found.shape, np.nan)
    width[: cfg.horizon] = model.half_width[:steps]
    times = step_of(model).after(series.times[-1], steps)
    return Prediction(times, model.cfg.names, found, found - width, found + width)


def residuals(model: Forecaster, values: np.ndarray, starts: np.ndarray) -> np.ndarray:
    """Truth less forecast in the units of the data, float32 [n, H, V].

    Args:
      model: a trained forecaster.
      values: float64 [rows, V], in the model's order.
      starts: int [n], first rows of the windows.
    """
    cfg, scaler = model.cfg.model, scaler_of(model)
    scaled = scaler.scale(values)
    rows = starts[:, None] + cfg.look_back + np.arange(cfg.horizon)
    difference = scaled[rows] - average(model, scaled, starts)
    return difference * np.array(scaler.deviation, np.float32)


def to_host(params):
    """Parameters as numpy arrays, one tree a seed: [seeds, ...] leaves to a list."""
    host = jax.device_get(params)
    seeds = jax.tree.leaves(host)[0].shape[0]
    return [jax.tree.map(lambda x, i=i: np.asarray(x[i]), host) for i in range(seeds)]
