"""One cell of the table: a data set, a horizon, and what is measured there."""

import dataclasses
import time
from functools import lru_cache
from pathlib import Path

import jax
import numpy as np

from experiments.timepro.config import SETTINGS, Experiment
from experiments.timepro.tuned import tuned_cell
from pangu_jax.core.config import to_json
from pangu_jax.core.spec import count
from pangu_jax.data import ltsf
from pangu_jax.data.windows import Parts, Scaler, parts, split_rows
from pangu_jax.eval.forecast import (
    fit_linear,
    forecasts,
    repeat_last,
    score,
    score_function,
)
from pangu_jax.models import timepro
from pangu_jax.models.timepro_config import TimeProConfig
from pangu_jax.train.forecast import fit

LOOK_BACK = 96


@lru_cache(maxsize=2)
def scaled(name: str, folder: str) -> np.ndarray:
    """A data set's rows, scaled by its training rows."""
    values = ltsf.load(name, folder)
    first, last = split_rows(len(values), ltsf.benchmark(name).rule).train
    return Scaler.fit(values[first:last]).scale(values)


def windows_of(name: str, series: np.ndarray, horizon: int, look_back: int = LOOK_BACK) -> Parts:
    split = split_rows(len(series), ltsf.benchmark(name).rule)
    return parts(split, look_back=look_back, horizon=horizon, where=name)


def run_cell(
    cell: tuple[str, int, str], experiment: Experiment, folder: str, run: Path, progress, stop
) -> dict:
    """Trains, in the run's folder, or fits what the cell asks for; measures every test window."""
    name, horizon, variant = cell
    series = scaled(name, folder)
    began = time.perf_counter()
    at = windows_of(name, series, horizon)
    if variant == "baselines":
        result = _baselines(series, at, horizon)
    elif variant == "tuned":
        result = tuned_cell(name, series, horizon)
    else:
        result = _model(cell, experiment, series, at, run, progress, stop)
    return {
        "data": name,
        "horizon": horizon,
        "variant": variant,
        "windows": len(at.test),
        **result,
        "device": jax.devices()[0].device_kind,
        "jax": jax.__version__,
        "seconds": time.perf_counter() - began,
    }


def _baselines(series, at, horizon) -> dict:
    sizes = {"look_back": LOOK_BACK, "horizon": horizon}
    linear = score_function(fit_linear(series, at.train, **sizes), series, at.test, **sizes)
    repeat = score_function(repeat_last(horizon), series, at.test, **sizes)
    return {
        "linear": {"mse": linear.mse, "mae": linear.mae},
        "repeat": {"mse": repeat.mse, "mae": repeat.mae},
    }


def _model(cell, experiment, series, at, run, progress, stop) -> dict:
    name, horizon, variant = cell
    model, training = SETTINGS[name, horizon]
    model = dataclasses.replace(model, state=variant == "full")
    epochs = min(experiment.epochs or training.epochs, training.epochs)
    training = dataclasses.replace(training, epochs=epochs)
    train = at.train[: experiment.windows]
    fitted = fit(
        series,
        train,
        at.validation,
        model=model,
        cfg=training,
        seeds=experiment.seeds,
        progress=progress,
        stop=stop,
        folder=run,
    )
    one = [jax.tree.map(lambda x, i=i: x[i], fitted.params) for i in range(len(experiment.seeds))]
    scores = [score(params, series, at.test, cfg=model) for params in one]
    return {
        "model": to_json(model),
        "training": to_json(training),
        "parameters": count(timepro.spec(model)),
        "seeds": list(experiment.seeds),
        "mse": [s.mse for s in scores],
        "mae": [s.mae for s in scores],
        "ensemble": _ensemble(one, model, series, at.test) if len(one) > 1 else None,
        "best_epoch": fitted.best_epoch,
        "cut": fitted.cut,
        "curves": fitted.curves,
        "step_s": fitted.step_s,
        "training_s": fitted.seconds,
    }


def _ensemble(params, model: TimeProConfig, series, starts, piece=1024) -> dict:
    """Errors of the mean forecast of all seeds, a piece of the windows at a time."""
    squared = absolute = 0.0
    for first in range(0, len(starts), piece):
        at = starts[first : first + piece]
        mean = np.mean([forecasts(p, series, at, cfg=model, batch=256) for p in params], 0)
        rows = at[:, None] + model.look_back + np.arange(model.horizon)
        difference = mean.astype(np.float64) - series[rows]
        squared += np.square(difference).mean((1, 2)).sum()
        absolute += np.abs(difference).mean((1, 2)).sum()
    return {"mse": squared / len(starts), "mae": absolute / len(starts)}
