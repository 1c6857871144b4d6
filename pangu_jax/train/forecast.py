"""Trains a forecaster from several seeds at once, each with its own shuffle and early stop."""

import dataclasses
import time
from collections.abc import Callable, Sequence
from functools import lru_cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from pangu_jax.core.errors import InputError
from pangu_jax.core.spec import materialise
from pangu_jax.losses.forecast import squared_error, window_errors, windows
from pangu_jax.models import timepro
from pangu_jax.models.timepro import TimeProConfig
from pangu_jax.nn.how import HOW, How

CHUNK = 64  # steps that run without returning to Python


@dataclasses.dataclass(frozen=True)
class FitConfig:
    """How a forecaster is trained.

    Attributes:
      batch: windows a step.
      learning_rate: of Adam in epochs 1 and 2; it halves with every epoch after.
      epochs: at most.
      patience: epochs without a better validation error before a seed stops.
    """

    batch: int = 32
    learning_rate: float = 5e-5
    epochs: int = 10
    patience: int = 3

    def __post_init__(self):
        for name in ("batch", "epochs", "patience"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.learning_rate <= 0:
            raise InputError(f"learning_rate must be above 0, got {self.learning_rate}")


@dataclasses.dataclass(frozen=True)
class Fit:
    """What came out.

    Attributes:
      params: the best parameters, every leaf with a leading axis of seeds.
      curves: for each seed, {"train", "validation"} a mean squared error per epoch.
      best_epoch: for each seed, counted from 1.
      step_s: seconds a step of all seeds together, after compilation; the median over chunks.
      seconds: in all.
      cut: whether `stop` ended the training before it would have ended itself.
    """

    params: Any
    curves: list[list[dict[str, float]]]
    best_epoch: list[int]
    step_s: float
    seconds: float
    cut: bool


def learning_rate(cfg: FitConfig, epoch: int) -> float:
    """The rate in an epoch, counted from 1: full, full, a half, a quarter, ..."""
    return cfg.learning_rate * 0.5 ** max(epoch - 2, 0)


def make_step(model: TimeProConfig, *, how: How = HOW) -> Callable[..., tuple[Any, jax.Array]]:
    """One step of Adam for one seed: `state, loss = step(state, series, starts, key, rate)`.

    The state is the pair of parameters and Adam's moments (`init` makes it).
    """
    adam = optax.scale_by_adam(eps=1e-8)

    def loss(params, seen, wanted, key):
        return squared_error(timepro.apply(params, seen, cfg=model, key=key, how=how), wanted)

    def step(state, series, starts, key, rate):
        params, moments = state
        seen, wanted = windows(series, starts, look_back=model.look_back, horizon=model.horizon)
        value, grads = jax.value_and_grad(loss)(params, seen, wanted, key)
        updates, moments = adam.update(grads, moments)
        params = jax.tree.map(lambda p, u: p - rate * u, params, updates)
        return (params, moments), value

    return step


def init(model: TimeProConfig, seed: int) -> tuple[Any, Any]:
    """The state that a seed starts from."""
    params = materialise(timepro.spec(model), key=jax.random.key(seed))
    return params, optax.scale_by_adam(eps=1e-8).init(params)


def fit(
    series: np.ndarray,
    train: np.ndarray,
    validation: np.ndarray,
    *,
    model: TimeProConfig,
    cfg: FitConfig,
    seeds: Sequence[int],
    how: How = HOW,
    progress: Callable[[int, int, str], None] | None = None,
    stop: Callable[[], bool] | None = None,
) -> Fit:
    """Trains until every seed has stopped.

    A seed's parameters depend on its number alone, up to rounding, not on the others. Batches are
    drawn anew each epoch without the windows that do not fill one; validation is over every window.

    Args:
      series: float32 [rows, V], scaled.
      train: int32, first rows of the training windows.
      validation: int32, first rows of the validation windows.
      model: the model.
      cfg: the training.
      seeds: at least one.
      how: implementations.
      progress: called with steps done, steps at most, and a line about the last epoch.
      stop: asked after every epoch; True ends the training there.

    Raises:
      InputError: fewer windows than a batch, or a loss that is not finite.
    """
    if len(train) < cfg.batch:
        raise InputError(
            f"there are {len(train)} training windows, a batch needs {cfg.batch}: give more rows, "
            "a shorter horizon, or a smaller batch"
        )
    began = time.perf_counter()
    # One seed runs without the extra axis: on a CPU that is the faster form.
    alone = len(seeds) == 1
    states = [init(model, seed) for seed in seeds]
    state = states[0] if alone else jax.tree.map(lambda *x: jnp.stack(x), *states)
    run, check = _make_chunk(model, how, alone), _make_check(model, how, alone)
    table, at = jnp.asarray(series), jnp.asarray(validation)
    steps = len(train) // cfg.batch
    best, best_error = jax.tree.map(jnp.copy, state[0]), np.full(len(seeds), np.inf)
    waited, best_epoch = np.zeros(len(seeds), int), np.zeros(len(seeds), int)
    curves: list[list[dict[str, float]]] = [[] for _ in seeds]
    times, line, cut = [], "", False
    for epoch in range(1, cfg.epochs + 1):
        order = _order(train, seeds, epoch, steps, cfg.batch)
        losses = []
        for first in range(0, steps, CHUNK):
            part = order[first : first + CHUNK]
            count = len(part)
            if count < CHUNK:
                part = np.concatenate([part, np.repeat(part[-1:], CHUNK - count, 0)])
            start = time.perf_counter()
            key = _keys(seeds, epoch, first, alone)
            rate = jnp.float32(learning_rate(cfg, epoch))
            state, total = run(state, table, jnp.asarray(part), key, rate, jnp.int32(count))
            losses.append(np.atleast_1d(np.asarray(total)))
            times.append((time.perf_counter() - start) / count)
            if progress is not None:
                done = (epoch - 1) * steps + first + count
                progress(done, cfg.epochs * steps, line)
        error = np.atleast_1d(np.asarray(check(state[0], table, at), np.float64))
        loss = np.sum(losses, 0) / steps
        _refuse_nonfinite(loss, error, epoch)
        running = waited < cfg.patience
        better = running & (error <= best_error)
        best = _pick(better, state[0], best, alone)
        best_error = np.where(better, error, best_error)
        best_epoch = np.where(better, epoch, best_epoch)
        waited = np.where(better, 0, waited + 1)
        for i in np.flatnonzero(running):
            curves[i].append({"train": float(loss[i]), "validation": float(error[i])})
        line = f"validation {error.mean():.4f}"
        if (waited >= cfg.patience).all():
            break
        if stop is not None and epoch < cfg.epochs and stop():
            cut = True
            break
    if alone:
        best = jax.tree.map(lambda x: x[None], best)
    seconds = time.perf_counter() - began
    step_s = float(np.median(times[1:] or times))
    return Fit(best, curves, best_epoch.tolist(), step_s, seconds, cut)


@lru_cache(maxsize=8)
def _make_chunk(model, how, alone):
    """Several steps in one call; how many is an argument, so there is one compilation."""
    step = make_step(model, how=how)
    if not alone:
        step = jax.vmap(step, in_axes=(0, None, 0, 0, None))

    @partial(jax.jit, donate_argnums=0)
    def run(state, series, order, keys, rate, count):
        def body(i, carry):
            state, total = carry
            # One key a seed and chunk; the step's number makes it new.
            fold = partial(jax.random.fold_in, data=i)
            key = fold(keys) if alone else jax.vmap(fold)(keys)
            state, loss = step(state, series, order[i], key, rate)
            return state, total + loss

        total = jnp.zeros(order.shape[1:-1], jnp.float32)
        return jax.lax.fori_loop(0, count, body, (state, total))

    return run


@lru_cache(maxsize=8)
def _make_check(model, how, alone):
    def error(params, series, starts):
        squared, _ = window_errors(
            lambda x: timepro.apply(params, x, cfg=model, how=how),
            series,
            starts,
            look_back=model.look_back,
            horizon=model.horizon,
            batch=min(64, starts.shape[0]),
        )
        return squared.mean()

    return jax.jit(error if alone else jax.vmap(error, in_axes=(0, None, None)))


def _order(train, seeds, epoch, steps, batch):
    """First rows of the windows of every step: [steps, B], or [steps, seeds, B]."""
    drawn = []
    for seed in seeds:
        order = np.random.default_rng([seed, epoch]).permutation(train)[: steps * batch]
        drawn.append(order.reshape(steps, batch))
    return drawn[0] if len(seeds) == 1 else np.stack(drawn, 1)


def _keys(seeds, epoch, first, alone):
    keys = [
        jax.random.fold_in(jax.random.fold_in(jax.random.key(seed + 2**16), epoch), first)
        for seed in seeds
    ]
    return keys[0] if alone else jnp.stack(keys)


def _pick(better, new, old, alone):
    """New parameters for the seeds that got better."""
    if alone:
        # A copy, as the state is given up to the next chunk.
        return jax.tree.map(jnp.copy, new) if better[0] else old
    flags = jnp.asarray(better)

    def choose(a, b):
        return jnp.where(flags.reshape(-1, *[1] * (a.ndim - 1)), a, b)

    return jax.tree.map(choose, new, old)


def _refuse_nonfinite(loss, error, epoch):
    if not (np.isfinite(loss).all() and np.isfinite(error).all()):
        raise InputError(f"the loss is not finite in epoch {epoch}; a lower learning rate may help")
