"""Training forecasters: seeds, keys, schedule, early stop, best parameters, no later rows."""

import itertools
import os
import signal

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from pangu_jax.core.errors import InputError
from pangu_jax.core.spec import Spec, init
from pangu_jax.core.tree import flatten
from pangu_jax.data.windows import Scaler, SplitRows, parts
from pangu_jax.losses.forecast import window_errors
from pangu_jax.models import timepro
from pangu_jax.models.timepro_config import TimeProConfig
from pangu_jax.train import forecast
from pangu_jax.train.fit_config import FitConfig
from pangu_jax.train.forecast import (
    adam,
    batches,
    fit,
    forecast_loss,
    initial,
    learning_rate,
    schedule,
)
from pangu_jax.train.metrics import read_metrics
from pangu_jax.train.step import init_state, make_step
from pangu_jax.train.stop_signal import Stopped

MODEL = TimeProConfig(look_back=16, horizon=4, layers=1, patch=16, stride=8)
FIT = FitConfig(batch=8, learning_rate=1e-3, epochs=3)
SPLIT = SplitRows((0, 120), (120, 160), (160, 200))


def waves(rows=200, variates=3, seed=0):
    rng = np.random.default_rng(seed)
    t = np.arange(rows)[:, None]
    return np.sin(t / (3 + np.arange(variates))) + 0.1 * rng.normal(size=(rows, variates))


def trained(values, seeds=(0,), cfg=FIT, **options):
    series = Scaler.fit(values[:120]).scale(values)
    at = parts(SPLIT, look_back=16, horizon=4)
    return fit(series, at.train, at.validation, model=MODEL, cfg=cfg, seeds=seeds, **options)


@pytest.fixture(autouse=True)
def _single_steps(monkeypatch):
    """An epoch has twelve steps, less than a chunk: there is one program to compile."""
    monkeypatch.setattr(forecast, "CHUNK", 13)


def one(done, i):
    """The parameters of the i-th seed."""
    return jax.tree.map(lambda x: np.asarray(x)[i], done.params)


@pytest.mark.slow
def test_seeds_trained_together_are_those_trained_alone(at_most):
    # A step and a validation, of two seeds and of one: all epochs share them, and both lone seeds.
    at_most(4, timepro, "apply")
    both = trained(waves(), seeds=(3, 5))
    for i, seed in enumerate((3, 5)):
        alone = trained(waves(), seeds=(seed,))
        assert both.best_epoch[i] == alone.best_epoch[0]
        for a, b in zip(both.curves[i], alone.curves[0], strict=True):
            assert a == pytest.approx(b, rel=1e-4)
        chex.assert_trees_all_close(one(both, i), one(alone, 0), rtol=1e-7, atol=2e-4)
    first, second = (flatten(one(both, i)) for i in (0, 1))
    assert not np.allclose(first["head/kernel"], second["head/kernel"])


@pytest.mark.parametrize("seeds", [(3,), (3, 5)])
def test_every_step_has_its_own_key_and_every_epoch_its_own_order(seeds, monkeypatch):
    """A model that forecasts what it draws, of a series of zeros."""
    monkeypatch.setattr(forecast, "CHUNK", 2)
    monkeypatch.setattr(timepro, "apply", lambda *_, key, **__: jax.random.uniform(key))
    loss, steps, starts = forecast_loss(MODEL), 5, np.arange(7, 18, dtype=np.int32)
    taken = list(itertools.islice(batches(starts, seeds, batch=2), 2 * steps))
    chex.assert_trees_all_equal(next(batches(starts, seeds, batch=2, step=7)), taken[7])
    if len(seeds) == 1:
        taken = [jax.tree.map(lambda x: x[None], batch) for batch in taken]
    series, orders, draws = jnp.zeros((40, 1)), [], []
    for i in range(len(seeds)):
        own = [jax.tree.map(lambda x, i=i: x[i], batch) for batch in taken]
        draws += [float(loss(None, series, batch, None)[0]) for batch in own]
        seen = [tuple(batch["starts"].tolist()) for batch in own]
        orders += [sum(seen[:steps], ()), sum(seen[steps:], ())]
    assert all(draws) and len(set(draws)) == len(draws) == 2 * steps * len(seeds)
    assert len(set(orders)) == len(orders)
    for order in orders:  # one window is left over: a batch needs two
        assert len(set(order)) == 10 and set(order) < set(starts.tolist())


def test_the_rate_halves_from_the_third_epoch_on():
    cfg = FitConfig(learning_rate=8.0)
    assert [learning_rate(cfg, e) for e in range(1, 6)] == [8, 8, 4, 2, 1]
    assert [float(schedule(cfg, 3)(jnp.int32(step))) for step in (0, 5, 6, 9)] == [8, 8, 4, 2]


def test_a_step_is_adam_as_written_in_its_paper():
    series = jnp.asarray(waves(), jnp.float32)
    at, cfg = jnp.arange(8), FitConfig(learning_rate=1e-3)
    batch = {"starts": at, "draw": np.uint32([1, 2]), "place": np.int32([8, 3])}
    key = jax.random.wrap_key_data(batch["draw"])
    key = jax.random.fold_in(jax.random.fold_in(key, 8), 3)
    optimizer = adam(cfg, 100)
    spec = timepro.spec(MODEL)
    state = init_state(spec, optimizer, key=jax.random.key(0), params=initial(MODEL, (0,)))
    before = flatten(jax.device_get(state.params))
    chex.assert_trees_all_close(before, flatten(init(spec, key=jax.random.key(0))))

    def loss(params):
        rows = at[:, None] + jnp.arange(20)
        both = series[rows]
        out = timepro.apply(params, both[:, :16], cfg=MODEL, key=key)
        return jnp.mean((out - both[:, 16:]) ** 2)

    total, grad = jax.jit(jax.value_and_grad(loss))(state.params)
    grad = flatten(grad)
    state, metrics = make_step(forecast_loss(MODEL), optimizer)(state, batch, key, series)
    assert float(metrics["loss"]) == pytest.approx(float(total), rel=1e-5)
    assert float(metrics["weight"]) == 8
    for name, after in flatten(state.params).items():
        g = np.asarray(grad[name], np.float64)
        want = before[name] - 1e-3 * g / (np.abs(g) + 1e-8)  # both moments, corrected, at step 1
        # The root of a tiny squared gradient loses digits in float32.
        close = np.abs(g) > 1e-6
        np.testing.assert_allclose(np.asarray(after)[close], want[close], rtol=1e-3, atol=1e-6)


@pytest.mark.long
def test_it_stops_after_patience_and_keeps_the_best(monkeypatch):
    monkeypatch.setattr(forecast, "CHUNK", 8)  # and four single steps
    # A rate so large that later epochs only get worse.
    cfg = FitConfig(batch=8, learning_rate=0.3, epochs=9, patience=2)
    done = trained(waves(), cfg=cfg)
    errors = [epoch["validation"] for epoch in done.curves[0]]
    best = int(np.argmin(errors)) + 1
    assert done.best_epoch == [best]
    assert len(errors) == min(best + 2, 9)
    series = Scaler.fit(waves()[:120]).scale(waves())
    at = parts(SPLIT, look_back=16, horizon=4).validation
    rows = at[:, None] + np.arange(20)
    params = one(done, 0)
    out = jax.jit(lambda p, x: timepro.apply(p, x, cfg=MODEL))(params, series[rows][:, :16])
    assert np.mean((out - series[rows][:, 16:]) ** 2) == pytest.approx(min(errors), rel=1e-4)


@pytest.fixture
def counting(monkeypatch):
    """A model of one number that counts its steps, compiled in no time."""

    def loss(params, series, batch, key):
        return -params["steps"], jnp.float32(1), {}

    monkeypatch.setattr(timepro, "spec", lambda _: {"steps": Spec((), ())})
    monkeypatch.setattr(forecast, "forecast_loss", lambda *_, **__: loss)
    monkeypatch.setattr(forecast, "adam", lambda *_: optax.sgd(1.0))


STARTS = np.arange(16, dtype=np.int32)


def test_a_seed_that_has_stopped_stays_where_it_was(counting, monkeypatch):
    """The first would get better once more after its patience is over; the second goes on."""
    errors = iter([(1, 5), (2, 4), (3, 6), (0.5, 3), (0.5, 4), (0.5, 4), (0, 0)])
    monkeypatch.setattr(forecast, "_make_check", lambda *_: lambda *_: np.array(next(errors)))
    cfg = FitConfig(batch=8, epochs=9, patience=2)
    done = fit(np.zeros((30, 1)), STARTS, STARTS, model=MODEL, cfg=cfg, seeds=(0, 1))
    assert done.best_epoch == [1, 4] and done.params["steps"].tolist() == [2, 8]
    seen = [[epoch["validation"] for epoch in curve] for curve in done.curves]
    assert seen == [[1, 2, 3], [5, 4, 6, 3, 4, 4]]
    # The loss of an epoch is the mean over its steps: less one with each.
    assert [epoch["train"] for epoch in done.curves[0]] == [-0.5, -2.5, -4.5]


def test_a_training_goes_on_where_it_was_stopped(counting, monkeypatch, tmp_path):
    errors = dict(enumerate([(4, 4), (3, 5), (2, 6), (7, 1), (8, 8), (9, 9)], start=1))
    cfg, asked = FitConfig(batch=8, epochs=6, patience=2), []

    def check(params, *_):
        return np.array(errors[int(params["steps"].max()) // 2])

    def run(folder, **options):
        found = np.zeros((30, 1)), STARTS, STARTS
        return fit(*found, model=MODEL, cfg=cfg, seeds=(0, 1), folder=folder, **options)

    monkeypatch.setattr(forecast, "_make_check", lambda *_: check)
    whole = run(tmp_path / "whole")
    part = run(tmp_path / "parts", stop=lambda: asked.append(1) or len(asked) == 2)
    assert part.cut and not whole.cut and [len(curve) for curve in part.curves] == [2, 2]

    def interrupt(done, *_):
        if done == 5:
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(Stopped) as stop:
        run(tmp_path / "parts", progress=interrupt)
    assert stop.value.status == 128 + signal.SIGTERM
    for _ in range(2):  # the second has nothing left to do
        last = run(tmp_path / "parts")
        chex.assert_trees_all_equal(last.params, whole.params)
        assert (last.curves, last.best_epoch) == (whole.curves, whole.best_epoch)
    lines = [
        [{k: v for k, v in line.items() if not k.endswith("_per_s")} for line in read_metrics(path)]
        for path in sorted(tmp_path.glob("*/metrics.jsonl"))
    ]
    assert lines[0] == lines[1] and "windows_per_s" in read_metrics(path_of(tmp_path))[0]
    for other in ((np.ones((30, 1)), STARTS, STARTS), (np.zeros((30, 1)), STARTS, STARTS[1:])):
        with pytest.raises(InputError, match="holds a run with another data"):
            fit(*other, model=MODEL, cfg=cfg, seeds=(0, 1), folder=tmp_path / "parts")


def path_of(folder):
    return folder / "parts" / "metrics.jsonl"


@pytest.mark.long
def test_nothing_after_the_training_part_reaches_the_weights():
    values, spoilt = waves(), waves()
    spoilt[120:] = np.random.default_rng(9).normal(size=spoilt[120:].shape) * 50
    # One epoch: later ones could differ by which one validation prefers, as they should.
    clean, other = (trained(x, stop=lambda: True) for x in (values, spoilt))
    chex.assert_trees_all_equal(clean.params, other.params)
    assert clean.curves[0][0]["validation"] != other.curves[0][0]["validation"]


def test_windows_errors_are_means_over_their_own_steps_and_variates():
    series, at = np.random.default_rng(0).normal(size=(30, 2)).astype(np.float32), np.arange(5)
    sizes = {"look_back": 4, "horizon": 3, "batch": 2}  # the last of three pieces is filled up
    found = window_errors(lambda seen: 0.5 * seen[:, 1:], jnp.asarray(series), at, **sizes)
    away = [0.5 * series[i + 1 : i + 4] - series[i + 4 : i + 7] for i in at]
    wanted = [[np.mean(x**2) for x in away], [np.mean(abs(x)) for x in away]]
    np.testing.assert_allclose(found, wanted, rtol=1e-5)


def test_it_is_the_validation_windows_that_decide(counting, monkeypatch):
    seen = []

    def check(params, series, at):
        seen.append(at.tolist())
        return 1.0

    monkeypatch.setattr(forecast, "_make_check", lambda *_: check)
    fit(np.zeros((30, 1)), STARTS, STARTS[:3] + 9, model=MODEL, cfg=FIT, seeds=(0,))
    assert seen == [[9, 10, 11]] * FIT.epochs


def test_stop_ends_at_an_epoch_and_says_so(counting, monkeypatch):
    monkeypatch.setattr(forecast, "_make_check", lambda *_: lambda *_: np.array(1.0))
    for asked, epochs in ((True, 1), (False, FIT.epochs)):
        done = trained(waves(), stop=lambda asked=asked: asked)
        assert done.cut is asked
        assert len(done.curves[0]) == epochs


@pytest.mark.filterwarnings("ignore:overflow:RuntimeWarning")
def test_what_cannot_be_trained_is_refused():
    with pytest.raises(InputError, match="101 training windows, a batch needs 500"):
        trained(waves(), cfg=FitConfig(batch=500))
    with pytest.raises(InputError, match="loss is not finite at step 1: loss nan"):
        trained(waves() * np.nan)
    with pytest.raises(InputError, match="patience must be at least 1"):
        FitConfig(patience=0)
