"""What a forecaster is worth: errors over every window, plain baselines, intervals."""

import dataclasses
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from einops import repeat

from pangu_jax.core.errors import InputError
from pangu_jax.losses.forecast import window_errors
from pangu_jax.models import timepro
from pangu_jax.models.timepro import TimeProConfig


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
    impl: dict[str, str] | None = None,
) -> Score:
    """The errors of a model; no window is dropped, and the batch does not matter.

    Args:
      params: made by `timepro.spec`.
      series: [rows, V], scaled.
      starts: int [n], first rows of the windows.
      cfg: the model.
      batch: windows at once.
      impl: {operator: implementation}.
    """
    run = _errors(cfg, batch, _frozen(impl))
    squared, absolute = run(params, jnp.asarray(series), jnp.asarray(starts))
    return _score(squared, absolute)


@partial(jax.jit, static_argnames=("cfg", "batch", "impl"))
def _run(params, series, starts, cfg, batch, impl):
    return window_errors(
        lambda x: timepro.apply(params, x, cfg=cfg, impl=dict(impl) if impl else None),
        series,
        starts,
        look_back=cfg.look_back,
        horizon=cfg.horizon,
        batch=batch,
    )


def _errors(cfg, batch, impl):
    return partial(_run, cfg=cfg, batch=batch, impl=impl)


def _frozen(impl):
    return tuple(sorted(impl.items())) if impl else None


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
    impl: dict[str, str] | None = None,
) -> np.ndarray:
    """The forecasts of all windows, float32 [n, H, V], on the host."""
    table, frozen, found = jnp.asarray(series), _frozen(impl), []
    for first in range(0, len(starts), batch):
        part = starts[first : first + batch]
        filled = np.concatenate([part, np.repeat(part[-1:], batch - len(part))])
        out = _forecast(params, table, jnp.asarray(filled), cfg, frozen)
        found.append(np.asarray(out)[: len(part)])
    return np.concatenate(found)


@partial(jax.jit, static_argnames=("cfg", "impl"))
def _forecast(params, series, starts, cfg, impl):
    seen = jnp.take(series, starts[:, None] + jnp.arange(cfg.look_back), axis=0)
    return timepro.apply(params, seen, cfg=cfg, impl=dict(impl) if impl else None)


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
    centre = np.eye(look_back) - 1 / look_back
    gram = centre @ own @ centre
    right = centre @ (cross - own.mean(1, keepdims=True))
    count = len(starts) * series.shape[1]
    return Linear(np.linalg.solve(gram + ridge * count * np.eye(look_back), right))


def lag_products(
    series: np.ndarray, starts: np.ndarray, look_back: int, horizon: int
) -> np.ndarray:
    """Sums, over windows and variates, of what step i and step j of the window multiply to.

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
    forecast,
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


def conformal(
    residuals: np.ndarray, coverage: float, measured: np.ndarray | None = None
) -> np.ndarray:
    """Half widths of intervals that cover new residuals with the given probability.

    The split-conformal rule for each step and variate: the ceil((n + 1) coverage)-th smallest of n
    absolute residuals. It is exact when residuals of past and future are exchangeable, which those
    of a series are only roughly: measure the coverage on data that was not used here.

    Args:
      residuals: [n, H, V], of windows that the model was not fitted to.
      coverage: between 0 and 1.
      measured: bool [n, H, V], which of them count; None is all.

    Returns:
      [H, V].

    Raises:
      InputError: too few residuals for the coverage.

    Source: arXiv 1604.04173, algorithm 2, each step and variate alone.
    """
    if not 0 < coverage < 1:
        raise InputError(f"coverage must be between 0 and 1, got {coverage}")
    size = np.abs(residuals)
    size = size if measured is None else np.where(measured, size, np.inf)
    count = np.array(len(size)) if measured is None else measured.sum(0)
    rank = _up((count + 1) * coverage)
    if (rank > count).any():
        raise InputError(
            f"a coverage of {coverage} needs at least {_up(coverage / (1 - coverage))} "
            f"held-out windows, there are {count.min()}"
        )
    ordered = np.partition(size, np.unique(rank - 1), axis=0)
    return np.take_along_axis(ordered, np.broadcast_to(rank - 1, (1, *size.shape[1:])), 0)[0]


def _up(number):
    """Rounded up, but 9.000000000000002 is 9."""
    return np.ceil(np.asarray(number) - 1e-9).astype(int)


def coverage_of(
    residuals: np.ndarray, half_width: np.ndarray, measured: np.ndarray | None = None
) -> float:
    """The share of residuals [n, H, V], or of those measured, inside half widths [H, V]."""
    inside = np.abs(residuals) <= half_width
    return float((inside if measured is None else inside[measured]).mean())
