"""Beyond the paper: what forecasts best among simple things, chosen on validation data alone.

Candidates are closed-form linear maps of several look-backs and repeating the last value. They are
mixed with weights that are at least 0 and sum to 1, found by least squares on the validation
windows; the test windows are measured once, with what validation chose. As every candidate is
linear in the rows before the forecast, so is the mixture: one matrix.

Whether to mix at all is chosen by two-fold cross-validation: the weights found on either half of
the validation windows are measured on the other half. Where they do not beat the linear map of 96
steps there, that map is taken alone.
"""

import numpy as np

from pangu_jax.data import ltsf
from pangu_jax.data.windows import parts, split_rows
from pangu_jax.eval.forecast import fit_linear, lag_products

LOOK_BACKS = (96, 192, 336, 512, 720)
LONGEST = max(LOOK_BACKS)
PLAIN = "linear 96"  # what the mixture has to beat


def tuned_cell(name: str, series: np.ndarray, horizon: int) -> dict:
    """Fits all candidates, mixes them by validation, and measures the mixture on the test part."""
    split = split_rows(len(series), ltsf.benchmark(name).rule)
    candidates = {"repeat": repeat_map(horizon)}
    for look_back in LOOK_BACKS:
        at = parts(split, look_back=look_back, horizon=horizon, where=name)
        found = fit_linear(series, at.train, look_back=look_back, horizon=horizon)
        candidates[f"linear {look_back}"] = linear_map(found.kernel)
    at = parts(split, look_back=LONGEST, horizon=horizon, where=name)
    maps = np.stack(list(candidates.values()))
    middle = len(at.validation) // 2
    halves = [
        _agreement(maps, series, part, horizon)
        for part in (at.validation[:middle], at.validation[middle:])
    ]
    weights, gain = choose(*halves, plain=list(candidates).index(PLAIN))
    mse, mae = _errors(np.tensordot(weights, maps, 1), series, at.test, horizon)
    return {
        "mse": [mse],
        "mae": [mae],
        "weights": dict(zip(candidates, weights.round(4).tolist(), strict=True)),
        "cross_validated_gain": gain / (len(at.validation) * horizon * series.shape[1]),
    }


def repeat_map(horizon: int) -> np.ndarray:
    """Repeating the last value as a matrix [LONGEST, H]."""
    found = np.zeros((LONGEST, horizon))
    found[-1] = 1
    return found


def linear_map(kernel: np.ndarray) -> np.ndarray:
    """A kernel [T, H] on windows less their mean, plus that mean, as a matrix [LONGEST, H]."""
    found = np.zeros((LONGEST, kernel.shape[1]))
    found[-len(kernel) :] = kernel - kernel.mean(0) + 1 / len(kernel)
    return found


def choose(
    first: tuple[np.ndarray, np.ndarray], second: tuple[np.ndarray, np.ndarray], *, plain: int
) -> tuple[np.ndarray, float]:
    """Weights of all candidates, or the plain one alone where mixing does not pay.

    Args:
      first: of the first half of the validation windows, sums of the products of the candidates'
        forecasts with each other, [n, n], and with the truth, [n].
      second: of the second half.
      plain: index of the candidate that the mixture has to beat.

    Returns:
      Weights [n], and how much less squared error the mixture has than the plain candidate,
      summed over both halves, each measured with the weights of the other.
    """
    alone, gain = np.eye(len(first[1]))[plain], 0.0
    for fitted, (gram, cross) in ((first, second), (second, first)):
        one, both = ((w @ gram - 2 * cross) @ w for w in (alone, mix(*fitted)))
        gain += one - both
    if gain <= 0:
        return alone, float(gain)
    return mix(*(x + y for x, y in zip(first, second, strict=True))), float(gain)


def mix(gram: np.ndarray, cross: np.ndarray, rounds: int = 20_000) -> np.ndarray:
    """Weights >= 0 of sum 1 that minimize w.gram.w - 2 w.cross, by exponentiated gradients."""
    weights = np.full(len(cross), 1 / len(cross))
    rate = 1 / np.abs(gram).max()
    for _ in range(rounds):
        gradient = gram @ weights - cross
        weights = weights * np.exp(-rate * (gradient - gradient.min()))
        weights /= weights.sum()
    return weights


def _agreement(maps, series, starts, horizon):
    """Sums of the products of the candidates' forecasts with each other and with the truth."""
    sums = lag_products(series, starts, LONGEST, horizon)
    seen, truth = sums[:, :LONGEST], sums[:, LONGEST:]
    gram = np.einsum("ith,jth->ij", maps, np.einsum("ts,jsh->jth", seen, maps, optimize=True))
    return gram, np.einsum("ith,th->i", maps, truth)


def _errors(matrix, series, starts, horizon, piece=128):
    """MSE and MAE of one map over all windows, products in float32, sums in float64."""
    matrix, series = matrix.T.astype(np.float32), np.asarray(series, np.float32)
    squared = absolute = 0.0
    for first in range(0, len(starts), piece):
        rows = starts[first : first + piece, None] + np.arange(LONGEST + horizon)
        both = series[rows]
        difference = np.matmul(matrix, both[:, :LONGEST]) - both[:, LONGEST:]
        squared += np.square(difference).mean((1, 2), dtype=np.float64).sum()
        absolute += np.abs(difference).mean((1, 2), dtype=np.float64).sum()
    return squared / len(starts), absolute / len(starts)
