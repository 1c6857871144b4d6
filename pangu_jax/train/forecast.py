"""Trains a forecaster with several seeds at once, each with its own shuffle and early stopping."""

import contextlib
import dataclasses
import hashlib
import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from pangu_jax.core.errors import InputError
from pangu_jax.core.run_folder import open_run
from pangu_jax.losses.forecast import squared_error, window_errors, windows
from pangu_jax.models import timepro
from pangu_jax.models.timepro_config import TimeProConfig
from pangu_jax.nn.how import HOW, How
from pangu_jax.train.early_stopping import StopRule
from pangu_jax.train.fit_config import FitConfig
from pangu_jax.train.loop import train
from pangu_jax.train.loop_config import LoopConfig
from pangu_jax.train.step import Loss, draw
from pangu_jax.train.stop_signal import Stopped

CHUNK = 64  # steps that run without returning to Python


@dataclasses.dataclass(frozen=True)
class Fit:
    """The result of training.

    Attributes:
      params: the best parameters, every leaf with a leading axis of seeds.
      curves: for each seed, {"train", "validation"} a mean squared error per epoch.
      best_epoch: for each seed, counted from 1.
      step_s: seconds per step of all seeds together, after compilation; the median over chunks. 0
        where nothing was left to train.
      seconds: in all, since the training was started or resumed.
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


@lru_cache(maxsize=8)
def schedule(cfg: FitConfig, epoch_steps: int) -> optax.Schedule:
    """The learning rate by step, for epochs of `epoch_steps` steps."""
    rates = np.array([learning_rate(cfg, epoch + 1) for epoch in range(cfg.epochs)], np.float32)
    return lambda step: jnp.asarray(rates)[jnp.asarray(step) // epoch_steps]


@lru_cache(maxsize=8)
def adam(cfg: FitConfig, epoch_steps: int) -> optax.GradientTransformation:
    """Adam under that schedule."""
    return optax.adam(schedule(cfg, epoch_steps), eps=1e-8)


@lru_cache(maxsize=8)
def forecast_loss(model: TimeProConfig, *, how: How = HOW) -> Loss:
    """The mean squared error of windows of one series.

    Returns:
      loss(params, series, batch, key) -> (sum over windows, windows, {}); the series is [rows, V],
      the batch has "starts", the first rows of its windows, int32 [B], and what dropout's key is
      made from: "draw", uint32 [2], the key of the epoch, and "place", int32 [2], the step at
      which its chunk begins and the step within. So what is drawn depends on the seed and the step
      alone.
    """

    def loss(params, series, batch, key):
        key = jax.random.wrap_key_data(batch["draw"])
        for number in batch["place"]:
            key = jax.random.fold_in(key, number)
        seen, wanted = windows(
            series, batch["starts"], look_back=model.look_back, horizon=model.horizon
        )
        forecast = timepro.apply(params, seen, cfg=model, key=key, how=how)
        count = batch["starts"].shape[0]
        return squared_error(forecast, wanted) * count, jnp.float32(count), {}

    return loss


def initial(model: TimeProConfig, seeds: Sequence[int]) -> Any:
    """The parameters that seeds start from; stacked where there are several."""
    return draw(timepro.spec(model), jnp.stack([jax.random.key(seed) for seed in seeds]))


def batches(
    starts: np.ndarray, seeds: Sequence[int], *, batch: int, step: int = 0
) -> Iterator[dict[str, np.ndarray]]:
    """Batches from a step on, without end; each epoch is shuffled anew, for each seed on its own.

    Args:
      starts: int32, first rows of the windows.
      seeds: several give every leaf a leading axis of them.
      batch: windows per step; windows of an epoch that do not fill one are left out.
      step: where to begin.
    """
    epoch_steps = len(starts) // batch
    for epoch in itertools.count(step // epoch_steps + 1):
        of_seeds = [_epoch(starts, seed, epoch, batch) for seed in seeds]
        for i in range(step - (epoch - 1) * epoch_steps, epoch_steps):
            place = np.array([i // CHUNK * CHUNK, i % CHUNK], np.int32)
            rows = [{"starts": o[i], "draw": key, "place": place} for o, key in of_seeds]
            yield rows[0] if len(rows) == 1 else jax.tree.map(lambda *x: np.stack(x), *rows)
        step = epoch * epoch_steps


def fit(
    series: np.ndarray,
    train_starts: np.ndarray,
    validation: np.ndarray,
    *,
    model: TimeProConfig,
    cfg: FitConfig,
    seeds: Sequence[int],
    how: How = HOW,
    progress: Callable[[int, int, str], None] | None = None,
    stop: Callable[[], bool] | None = None,
    folder: str | Path | None = None,
) -> Fit:
    """Trains until every seed has stopped.

    A seed's parameters depend on its number alone, up to rounding, not on the others. Batches are
    drawn anew each epoch without the windows that do not fill one; validation is over every window.

    Args:
      series: float32 [rows, V], scaled.
      train_starts: int32, first rows of the training windows.
      validation: int32, first rows of the validation windows.
      model: the model.
      cfg: the training.
      seeds: at least one.
      how: implementations.
      progress: called with steps done, steps at most, and a line about the last epoch.
      stop: asked after every epoch; True ends the training there.
      folder: where metrics and checkpoints go, a run of its own, which resumes where it was
        stopped; None keeps nothing.

    Raises:
      InputError: fewer windows than a batch, a loss that is not finite, or a folder that holds
        another run.
      Stopped: SIGTERM or SIGINT came while a folder was given; the step was finished and saved.
    """
    seeds = tuple(seeds)
    if len(train_starts) < cfg.batch:
        raise InputError(
            f"there are {len(train_starts)} training windows, a batch needs {cfg.batch}: give more "
            "rows, a shorter horizon, or a smaller batch"
        )
    began = time.perf_counter()
    steps = len(train_starts) // cfg.batch
    watch = _Watch(cfg, len(seeds), steps, progress)
    check, at = _make_check(model, how, len(seeds)), jnp.asarray(validation)
    table = jnp.asarray(series)
    often = {"checkpoint_every": steps, "evaluate_every": steps}
    loop = LoopConfig(cfg.epochs * steps, seed=seeds, keep=1, chunk=CHUNK, **often)

    def stream(step: int) -> Iterator[dict[str, np.ndarray]]:
        watch.begin()
        return batches(train_starts, seeds, batch=cfg.batch, step=step)

    with contextlib.ExitStack() as held:
        place = None
        if folder is not None:
            settings = _settings(model, cfg, seeds, (series, train_starts, validation))
            place = held.enter_context(open_run(folder, settings, doing="training in"))
        cut = False
        try:
            state = train(
                forecast_loss(model, how=how),
                timepro.spec(model),
                stream,
                cfg=loop,
                optimizer=adam(cfg, steps),
                schedule=schedule(cfg, steps),
                frozen=table,
                folder=place,
                params=initial(model, seeds),
                evaluate=lambda params: {"mse": np.asarray(check(params, table, at)).tolist()},
                rule=StopRule("mse", cfg.patience),
                should_stop=stop,
                unit="windows",
                label=None,
                on_metrics=watch.on_metrics,
            )
        except Stopped as stopped:
            if stopped.status:
                raise
            state, cut = stopped.state, True
    best = state.best.params
    if len(seeds) == 1:
        best = jax.tree.map(lambda x: x[None], best)
    best_epoch = np.atleast_1d(np.asarray(state.best.step)) // steps
    seconds = time.perf_counter() - began
    return Fit(best, watch.curves(), best_epoch.tolist(), watch.step_s(), seconds, cut)


class _Watch:
    """The lines of metrics: errors of every epoch, and the time of a step."""

    def __init__(self, cfg: FitConfig, seeds: int, steps: int, progress: Callable | None):
        self._cfg, self._steps, self._progress = cfg, steps, progress
        self._train = np.zeros((cfg.epochs, seeds))
        self._validation: list[np.ndarray] = []
        self._text, self._times, self._last = "", [], None

    def begin(self) -> None:
        """Training begins: lines that come from now on are new."""
        self._last = time.perf_counter()

    def on_metrics(self, line: dict[str, Any]) -> None:
        """Takes a line."""
        epoch, i = divmod(line["step"] - 1, self._steps)
        if "eval_mse" in line:
            self._validation.append(np.atleast_1d(line["eval_mse"]))
            self._text = f"validation {self._validation[-1].mean():.4f}"
            self._last = None if self._last is None else time.perf_counter()
            return
        self._train[epoch] += np.atleast_1d(line["loss"]) / self._steps
        if self._last is None:
            return
        # The lines of a chunk come at once, when it has ended. What is left of an epoch goes step
        # by step, which takes longer: it counts where there are no chunks.
        now, each = time.perf_counter(), CHUNK if self._steps >= CHUNK else 1
        if i % each == 0 and i + each <= self._steps:
            self._times.append((now - self._last) / each)
        self._last = now
        if self._progress is not None:
            self._progress(line["step"], self._cfg.epochs * self._steps, self._text)

    def curves(self) -> list[list[dict[str, float]]]:
        """For each seed the errors of the epochs until its patience was over."""
        return [self._curve(i) for i in range(self._train.shape[1])]

    def _curve(self, seed: int) -> list[dict[str, float]]:
        curve, best, waited = [], np.inf, 0
        for loss, error in zip(self._train[:, seed], self._validation, strict=False):
            curve.append({"train": float(loss), "validation": float(error[seed])})
            waited = 0 if error[seed] <= best else waited + 1
            best = min(best, error[seed])
            if waited >= self._cfg.patience:
                break
        return curve

    def step_s(self) -> float:
        """Seconds per step, the first chunk's apart, which is compiled."""
        return float(np.median(self._times[1:] or self._times or [0.0]))


def _settings(model, cfg, seeds, arrays) -> dict[str, Any]:
    """What defines a run."""
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(np.ascontiguousarray(array).tobytes())
    return {"model": model, "training": cfg, "seeds": seeds, "data": digest.hexdigest()}


@lru_cache(maxsize=8)
def _make_check(model, how, seeds):
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

    return jax.jit(error if seeds == 1 else jax.vmap(error, in_axes=(0, None, None)))


def _epoch(starts, seed, epoch, batch) -> tuple[np.ndarray, np.ndarray]:
    """First rows of the windows of every step, [steps, B], and the key that dropout draws with."""
    steps = len(starts) // batch
    order = np.random.default_rng([seed, epoch]).permutation(starts)[: steps * batch]
    key = jax.random.fold_in(jax.random.key(seed + 2**16), epoch)
    return order.reshape(steps, batch), np.asarray(jax.random.key_data(key))
