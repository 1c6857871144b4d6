"""Training forecasters: seeds, keys, schedule, early stop, best parameters, no later rows."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pangu_jax.core.errors import InputError
from pangu_jax.core.tree import flatten
from pangu_jax.data.windows import Borders, Scaler, parts
from pangu_jax.models import timepro
from pangu_jax.models.timepro import TimeProConfig
from pangu_jax.train import forecast
from pangu_jax.train.forecast import FitConfig, fit, init, learning_rate, make_step

MODEL = TimeProConfig(look_back=16, horizon=4, layers=1, patch=16, stride=8)
FIT = FitConfig(batch=8, learning_rate=1e-3, epochs=3)
SPLIT = Borders((0, 120), (120, 160), (160, 200))


def waves(rows=200, variates=3, seed=0):
    rng = np.random.default_rng(seed)
    t = np.arange(rows)[:, None]
    return np.sin(t / (3 + np.arange(variates))) + 0.1 * rng.normal(size=(rows, variates))


def trained(values, seeds=(0,), cfg=FIT, **options):
    series = Scaler.fit(values[:120]).scale(values)
    at = parts(SPLIT, look_back=16, horizon=4)
    return fit(series, at.train, at.validation, model=MODEL, cfg=cfg, seeds=seeds, **options)


@pytest.fixture(autouse=True)
def _short_chunks(monkeypatch):
    """Of the twelve steps of an epoch the last chunk has fewer than the first."""
    monkeypatch.setattr(forecast, "CHUNK", 8)


def one(done, i):
    """The parameters of the i-th seed."""
    return jax.tree.map(lambda x: x[i], done.params)


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
    """A step that trains nothing and writes down what it is given."""
    steps, batch = 5, 2

    def init(model, seed):
        return (jnp.zeros(2 * steps), jnp.zeros((2 * steps, batch), jnp.int32)), jnp.int32(0)

    def step(state, series, starts, key, rate):
        (draws, seen), number = state
        draw = jax.random.uniform(key)
        draws, seen = draws.at[number].set(draw), seen.at[number].set(starts)
        return ((draws, seen), number + 1), draw

    monkeypatch.setattr(forecast, "init", init)
    monkeypatch.setattr(forecast, "make_step", lambda *_, **__: step)
    monkeypatch.setattr(forecast, "_make_chunk", forecast._make_chunk.__wrapped__)
    monkeypatch.setattr(forecast, "_make_check", lambda *_: lambda *_: np.zeros(len(seeds)))
    monkeypatch.setattr(forecast, "CHUNK", 2)
    train, cfg = np.arange(7, 18, dtype=np.int32), FitConfig(batch=batch, epochs=2)
    done = fit(np.zeros((30, 1)), train, train[:1], model=MODEL, cfg=cfg, seeds=seeds)
    draws, seen = map(np.asarray, done.params)
    assert draws.all() and len(np.unique(draws)) == draws.size
    # And the loss of an epoch is the mean over its steps.
    losses = [[epoch["train"] for epoch in curve] for curve in done.curves]
    np.testing.assert_allclose(losses, draws.reshape(len(seeds), 2, steps).mean(-1), rtol=1e-6)
    orders = [tuple(epoch.ravel()) for one in seen for epoch in np.split(one, 2)]
    assert len(set(orders)) == len(orders)
    for order in orders:  # one window is left over: a batch needs two
        assert len(set(order)) == 10 and set(order) < set(train)


def test_the_rate_halves_from_the_third_epoch_on():
    cfg = FitConfig(learning_rate=8.0)
    assert [learning_rate(cfg, e) for e in range(1, 6)] == [8, 8, 4, 2, 1]


def test_a_step_is_adam_as_written_in_its_paper():
    state = init(MODEL, 0)
    series = jnp.asarray(waves(), jnp.float32)
    at, key = jnp.arange(8), jax.random.key(1)
    before = flatten(state[0])
    step = jax.jit(make_step(MODEL))

    def loss(params):
        rows = at[:, None] + jnp.arange(20)
        both = series[rows]
        out = timepro.apply(params, both[:, :16], cfg=MODEL, key=key)
        return jnp.mean((out - both[:, 16:]) ** 2)

    total, grad = jax.jit(jax.value_and_grad(loss))(state[0])
    grad = flatten(grad)
    (params, _), value = step(state, series, at, key, jnp.float32(1e-3))
    assert value == pytest.approx(float(total), rel=1e-5)
    for name, after in flatten(params).items():
        g = np.asarray(grad[name], np.float64)
        want = before[name] - 1e-3 * g / (np.abs(g) + 1e-8)  # both moments, corrected, at step 1
        # The root of a tiny squared gradient loses digits in float32.
        close = np.abs(g) > 1e-6
        np.testing.assert_allclose(np.asarray(after)[close], want[close], rtol=1e-3, atol=1e-6)


def test_it_stops_after_patience_and_keeps_the_best():
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
    out = timepro.apply(params, jnp.asarray(series[rows][:, :16]), cfg=MODEL)
    assert np.mean((out - series[rows][:, 16:]) ** 2) == pytest.approx(min(errors), rel=1e-4)


def test_a_seed_that_has_stopped_stays_where_it_was(monkeypatch):
    """The first would get better once more after its patience is over; the second goes on."""
    errors = iter([(1, 5), (2, 4), (3, 6), (0.5, 3), (0.5, 4), (0.5, 4), (0, 0)])

    def step(state, series, starts, key, rate):
        return (state[0] + 1, state[1]), jnp.float32(0)  # counts its steps

    monkeypatch.setattr(forecast, "init", lambda *_: (jnp.int32(0), jnp.int32(0)))
    monkeypatch.setattr(forecast, "make_step", lambda *_, **__: step)
    monkeypatch.setattr(forecast, "_make_chunk", forecast._make_chunk.__wrapped__)
    monkeypatch.setattr(forecast, "_make_check", lambda *_: lambda *_: np.array(next(errors)))
    train, cfg = np.arange(8, dtype=np.int32), FitConfig(batch=8, epochs=9, patience=2)
    done = fit(np.zeros((30, 1)), train, train, model=MODEL, cfg=cfg, seeds=(0, 1))
    assert done.best_epoch == [1, 4] == done.params.tolist()
    seen = [[epoch["validation"] for epoch in curve] for curve in done.curves]
    assert seen == [[1, 2, 3], [5, 4, 6, 3, 4, 4]]


def test_nothing_after_the_training_part_reaches_the_weights():
    values, spoilt = waves(), waves()
    spoilt[120:] = np.random.default_rng(9).normal(size=spoilt[120:].shape) * 50
    # One epoch: later ones could differ by which one validation prefers, as they should.
    cfg = FitConfig(batch=8, learning_rate=1e-3, epochs=1)
    clean, other = trained(values, cfg=cfg), trained(spoilt, cfg=cfg)
    chex.assert_trees_all_equal(clean.params, other.params)
    assert clean.curves[0][0]["validation"] != other.curves[0][0]["validation"]


def test_stop_ends_at_an_epoch_and_says_so():
    done = trained(waves(), stop=lambda: True)
    assert done.cut
    assert len(done.curves[0]) == 1
    assert not trained(waves()).cut


@pytest.mark.filterwarnings("ignore:overflow:RuntimeWarning")
def test_what_cannot_be_trained_is_refused():
    with pytest.raises(InputError, match="101 training windows, a batch needs 500"):
        trained(waves(), cfg=FitConfig(batch=500))
    with pytest.raises(InputError, match="not finite in epoch 1"):
        trained(waves() * np.nan)
    with pytest.raises(InputError, match="patience must be at least 1"):
        FitConfig(patience=0)
