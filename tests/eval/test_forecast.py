"""Errors over every window, and baselines, against plain loops."""

import chex
import jax
import numpy as np
import pytest

from pangu_jax.core.spec import init
from pangu_jax.data import ltsf
from pangu_jax.data.windows import Scaler, parts, split_rows
from pangu_jax.eval.forecast import (
    fit_linear,
    forecasts,
    repeat_last,
    score,
    score_function,
)
from pangu_jax.models import timepro
from pangu_jax.models.timepro_config import TimeProConfig

MODEL = TimeProConfig(look_back=12, horizon=5, layers=1, patch=12, stride=6)
RNG = np.random.default_rng(0)
SERIES = RNG.normal(size=(90, 3)).astype(np.float32).cumsum(0)


@pytest.fixture(scope="module")
def params():
    return jax.jit(lambda key: init(timepro.spec(MODEL), key=key))(jax.random.key(0))


@pytest.mark.long
def test_every_window_counts_once_whatever_the_batch(params):
    starts = np.arange(33, dtype=np.int32)
    one = jax.jit(lambda x: timepro.apply(params, x, cfg=MODEL))
    out = np.concatenate([one(SERIES[None, s : s + 12]) for s in starts])
    wanted = np.stack([SERIES[s + 12 : s + 17] for s in starts])
    for batch in (1, 7, 32, 256):
        found = score(params, SERIES, starts, cfg=MODEL, batch=batch)
        assert found.windows == 33
        assert found.mse == pytest.approx(np.mean((out - wanted) ** 2, dtype=float), rel=1e-6)
        assert found.mae == pytest.approx(np.mean(abs(out - wanted), dtype=float), rel=1e-6)
    np.testing.assert_allclose(
        forecasts(params, SERIES, starts, cfg=MODEL, batch=8), out, rtol=1e-5, atol=1e-5
    )


def test_more_windows_and_a_short_last_batch_compile_nothing(params, at_most):
    at_most(1, timepro, "apply")
    for count in (8, 3, 9):
        found = forecasts(params, SERIES, np.arange(count), cfg=MODEL, batch=4)
        chex.assert_shape(found, (count, 5, 3))


def test_the_linear_map_is_least_squares_over_windows_written_out():
    starts = np.arange(4, 60, dtype=np.int32)
    x, y = [], []
    for s in starts:
        for v in range(3):
            seen = SERIES[s : s + 12, v].astype(np.float64)
            x.append(seen - seen.mean())
            y.append(SERIES[s + 12 : s + 17, v] - seen.mean())
    x, y = np.array(x), np.array(y)
    root = np.sqrt(1e-3 * len(x))
    x_ridge = np.concatenate([x, root * np.eye(12)])
    y_ridge = np.concatenate([y, np.zeros((12, 5))])
    want = np.linalg.lstsq(x_ridge, y_ridge, rcond=None)[0]
    found = fit_linear(SERIES, starts, look_back=12, horizon=5)
    np.testing.assert_allclose(found.kernel, want, atol=1e-9)
    test = np.arange(60, 70, dtype=np.int32)
    seen = np.stack([SERIES[s : s + 12] for s in test]).astype(float)
    mean = seen.mean(1, keepdims=True)
    out = np.einsum("btv,th->bhv", seen - mean, want) + mean
    truth = np.stack([SERIES[s + 12 : s + 17] for s in test])
    result = score_function(found, SERIES, test, look_back=12, horizon=5)
    assert result.mse == pytest.approx(np.mean((out - truth) ** 2))
    last = score_function(repeat_last(5), SERIES, test, look_back=12, horizon=5)
    assert last.mae == pytest.approx(np.mean(abs(seen[:, -1:] - truth)))


def test_baselines_of_etth1_are_the_known_ones(data_dir):
    values = ltsf.load("ETTh1", data_dir / "ltsf")
    split = split_rows(len(values), "hourly")
    series = Scaler.fit(values[: split.train[1]]).scale(values)
    at = parts(split, look_back=96, horizon=96)
    assert len(at.test) == 2785
    sizes = {"look_back": 96, "horizon": 96}
    linear = score_function(fit_linear(series, at.train, **sizes), series, at.test, **sizes)
    repeat = score_function(repeat_last(96), series, at.test, **sizes)
    # As another program measured them.
    assert (linear.mse, linear.mae) == pytest.approx((0.3833, 0.3917), abs=1e-3)
    assert (repeat.mse, repeat.mae) == pytest.approx((1.294, 0.713), abs=1e-3)


def test_values_that_were_filled_in_are_not_measured():
    rng = np.random.default_rng(3)
    series, filled = rng.normal(size=(60, 2)), rng.random((60, 2)) < 0.2
    starts, look_back, horizon = np.arange(40), 8, 5
    forecast = lambda seen: np.repeat(seen[:, -1:], horizon, axis=1)  # noqa: E731
    found = score_function(
        forecast, series, starts, look_back=look_back, horizon=horizon, filled=filled
    )
    left, there = [], []
    for start in starts:
        last = series[start + look_back - 1]
        for h in range(horizon):
            left.append(series[start + look_back + h] - last)
            there.append(~filled[start + look_back + h])
    left, there = np.array(left), np.array(there)
    assert found.mse == pytest.approx((left[there] ** 2).mean())
    assert found.mae == pytest.approx(np.abs(left[there]).mean())
