"""Beyond the paper: what forecasts best among simple things, chosen on validation data alone.

Candidates are closed-form linear maps of several look-backs and repeating the last value. They are
mixed with weights that are at least 0 and sum to 1, found by least squares on the validation
windows; the test windows are measured once, with the mixture that validation chose.
"""

import numpy as np

from pangu_jax.data import ltsf
from pangu_jax.data.windows import borders, parts
from pangu_jax.eval.forecast import fit_linear, repeat_last

LOOK_BACKS = (96, 192, 336, 512, 720)
RIDGES = (1e-3,)


def tuned_cell(name: str, series: np.ndarray, horizon: int) -> dict:
    """Fits all candidates, mixes them by validation, and measures the mixture on the test part."""
    split = borders(len(series), ltsf.benchmark(name).rule)
    members = {"repeat": (1, repeat_last(horizon))}
    for look_back in LOOK_BACKS:
        at = parts(split, look_back=look_back, horizon=horizon, where=name)
        for ridge in RIDGES:
            found = fit_linear(series, at.train, look_back=look_back, horizon=horizon, ridge=ridge)
            members[f"linear {look_back}"] = (look_back, found)
    at = parts(split, look_back=96, horizon=horizon, where=name)
    targets = at.validation + 96, at.test + 96
    functions = list(members.values())
    weights = mix(*_moments(functions, series, targets[0], horizon))
    squared = absolute = 0.0
    for forecast, wanted in _forecasts(functions, series, targets[1], horizon):
        difference = np.tensordot(weights, forecast, 1) - wanted
        squared += np.square(difference).mean((1, 2)).sum()
        absolute += np.abs(difference).mean((1, 2)).sum()
    count = len(targets[1])
    return {
        "mse": [squared / count],
        "mae": [absolute / count],
        "weights": dict(zip(members, weights.round(4).tolist(), strict=True)),
    }


def mix(gram: np.ndarray, cross: np.ndarray, rounds: int = 20_000) -> np.ndarray:
    """Weights >= 0 of sum 1 that minimise w.gram.w - 2 w.cross, by exponentiated gradients."""
    weights = np.full(len(cross), 1 / len(cross))
    rate = 1 / np.abs(gram).max()
    for _ in range(rounds):
        gradient = gram @ weights - cross
        weights = weights * np.exp(-rate * (gradient - gradient.min()))
        weights /= weights.sum()
    return weights


def _moments(functions, series, first, horizon):
    """Mean products of the candidates' forecasts with each other and with the truth."""
    gram = np.zeros((len(functions), len(functions)))
    cross = np.zeros(len(functions))
    for forecast, wanted in _forecasts(functions, series, first, horizon):
        flat = forecast.reshape(len(functions), -1)
        gram += flat @ flat.T
        cross += flat @ wanted.reshape(-1)
    size = len(first) * horizon * series.shape[1]
    return gram / size, cross / size


def _forecasts(functions, series, first, horizon, piece=256):
    """For windows whose forecasts begin at the rows `first`: all candidates, and the truth."""
    series = np.asarray(series, np.float64)
    for i in range(0, len(first), piece):
        rows = first[i : i + piece, None]
        found = [f(series[rows - look_back + np.arange(look_back)]) for look_back, f in functions]
        yield np.stack(found), series[rows + np.arange(horizon)]
