"""Forecast errors over every window, next to those of simple baselines."""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from einops import repeat

from pangu_jax.losses.forecast import window_errors
from pangu_jax.models import timepro
from pangu_jax.models.timepro_config import TimeProConfig
from pangu_jax.nn.how import HOW, How


@dataclasses.dataclass(frozen=True)
class Score:
    """Errors over all windows.

    Attributes:
      mse: mean squared error over windows, steps and variates.
      mae: mean absolute error.
      windows: how many windows there were.
    """

    mse: float
    mae: float
    windows: int


def score(
    params: Any,
    series: np.ndarray,
    starts: np.ndarray,
    *,
    cfg: TimeProConfig,
    batch: int = 64,
    how: How = HOW,
) -> Score:
    """The errors of a model; no window is dropped, and the batch does not matter.

    Args:
      params: made by `timepro.spec`.
      series: [rows, V], scaled.
      starts: int [n], first rows of the windows.
      cfg: the model.
      batch: windows at once.
      how: implementations.
    """
    squared, absolute = _errors(
        params, jnp.asarray(series), jnp.asarray(starts), cfg=cfg, batch=batch, how=how
    )
    return _score(squared, absolute)


@partial(jax.jit, static_argnames=("cfg", "batch", "how"))
def _errors(params, series, starts, *, cfg, batch, how):
    return window_errors(
        lambda x: timepro.apply(params, x, cfg=cfg, how=how),
        series,
        starts,
        look_back=cfg.look_back,
        horizon=cfg.horizon,
        batch=batch,
    )


def _score(squared, absolute) -> Score:
    squared, absolute = (np.asarray(x, np.float64) for x in (squared, absolute))
    return Score(float(squared.mean()), float(absolute.mean()), squared.size)


def forecasts(
    params: Any,
    series: np.ndarray,
    starts: np.ndarray,
    *,
    cfg: TimeProConfig,
    batch: int = 64,
    how: How = HOW,
) -> np.ndarray:
    """The forecasts of all windows, float32 [n, H, V], on the host."""
    found = []
    for first in range(0, len(starts), batch):
        part = starts[first : first + batch]
        filled = np.concatenate([part, np.repeat(part[-1:], batch - len(part))])
        # Windows are taken here, so that series of any length share one compiled function.
        seen = series[filled[:, None] + np.arange(cfg.look_back)]
        out = _forecast(params, jnp.asarray(seen), cfg, how)
        found.append(np.asarray(out)[: len(part)])
    return np.concatenate(found)


@partial(jax.jit, static_argnames=("cfg", "how"))
def _forecast(params, seen, cfg, how):
    return timepro.apply(params, seen, cfg=cfg, how=how)


@dataclasses.dataclass(frozen=True)
class Linear:
    """A linear map from the window less its mean to the forecast less that mean.

    Attributes:
      kernel: float64 [T, H], the same for all variates.
    """

    kernel: np.ndarray

    def __call__(self, seen: np.ndarray) -> np.ndarray:
        """Windows [B, T, V] to forecasts [B, H, V]."""
        mean = seen.mean(1, keepdims=True)
        return np.matmul(self.kernel.T.astype(seen.dtype), seen - mean) + mean


def fit_linear(
    series: np.ndarray, starts: np.ndarray, *, look_back: int, horizon: int, ridge: float = 1e-3
) -> Linear:
    """Least squares in closed form over all windows and variates.

    Args:
      series: [rows, V], scaled.
      starts: int [n], consecutive first rows of the training windows.
      look_back: T.
      horizon: H.
      ridge: times the number of windows and variates, added to the diagonal.
    """
    products = lag_products(series, starts, look_back, horizon)
    own, cross = products[:, :look_back], products[:, look_back:]
    # Taking the window's mean off is itself a matrix, so it is applied to the sums of products.
    center = np.eye(look_back) - 1 / look_back
    gram = center @ own @ center
    right = center @ (cross - own.mean(1, keepdims=True))
    count = len(starts) * series.shape[1]
    return Linear(np.linalg.solve(gram + ridge * count * np.eye(look_back), right))


def lag_products(
    series: np.ndarray, starts: np.ndarray, look_back: int, horizon: int
) -> np.ndarray:
    """Sums, over windows and variates, of the products of steps i and j of the window.

    Steps that lie d apart multiply the same pairs of rows in every window, so one running sum a
    distance serves all windows: the time is linear in the rows whatever the sizes. Any linear map's
    squared error, and how two maps' forecasts agree, follow from these sums.

    Args:
      series: [rows, V].
      starts: int [n], consecutive first rows of windows.
      look_back: T.
      horizon: H.

    Returns:
      float64 [T, T + H]: i over the steps that are seen, j over all.
    """
    first, count, length = int(starts[0]), len(starts), look_back + horizon
    rows = np.asarray(series[first : first + count + length - 1], np.float64)
    found = np.empty((look_back, length))
    for apart in range(length):
        pairs = np.einsum("tv,tv->t", rows[: len(rows) - apart], rows[apart:])
        sums = np.concatenate([[0], np.cumsum(pairs)])
        at = np.arange(min(look_back, length - apart))
        total = sums[at + count] - sums[at]
        found[at, at + apart] = total
        mirrored = at + apart < look_back
        found[at[mirrored] + apart, at[mirrored]] = total[mirrored]
    return found


def repeat_last(horizon: int):
    """The baseline that forecasts the last value seen: [B, T, V] to [B, H, V]."""
    return lambda seen: repeat(seen[:, -1], "b v -> b h v", h=horizon)


def score_function(
    forecast: Callable[[jax.Array], jax.Array],
    series: np.ndarray,
    starts: np.ndarray,
    *,
    look_back: int,
    horizon: int,
    filled: np.ndarray | None = None,
) -> Score:
    """The errors of any function from windows [B, T, V] to forecasts [B, H, V], in float64.

    Args:
      forecast: the function.
      series: [rows, V].
      starts: int [n], first rows of the windows.
      look_back: T.
      horizon: H.
      filled: bool [rows, V], values that were made up: seen, but not measured.
    """
    squared, absolute, count = 0.0, 0.0, 0
    series = np.asarray(series, np.float64)
    for first in range(0, len(starts), 512):
        rows = starts[first : first + 512, None] + np.arange(look_back + horizon)
        seen, wanted = rows[:, :look_back], rows[:, look_back:]
        difference = forecast(series[seen]) - series[wanted]
        if filled is not None:
            difference = difference[~filled[wanted]]
        squared += np.square(difference).sum()
        absolute += np.abs(difference).sum()
        count += difference.size
    return Score(float(squared / count), float(absolute / count), len(starts))
