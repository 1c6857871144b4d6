"""Closed-form repair of a projection after some of its inputs were pruned.

The projection y = x W + b loses the inputs outside a set K. The rest is fitted to y over the
calibration tokens, from the moments of x alone:

| method | new weights | new bias | inputs needed |
|---|---|---|---|
| none | W_K | b | |
| bias | W_K | b + the mean of what was dropped | mean |
| scale | A_j W_K[:, j], A_j least squares without intercept | b | second moments |
| affine | A_j W_K[:, j], A_j = cov(yhat_j, y_j) / var(yhat_j) | likewise | covariance |
| ridge | W_K + (S_KK + l I)^-1 S_KD W_D | b + mean of what is left over | covariance |
| ridge-no-bias | the same with second moments | b | second moments |

`affine` is SlimLLM's (arXiv 2505.22689): a fit per output dimension, not the least squares over
all inputs. `ridge` is ours: it shrinks toward the present weights, so a large ridge gives `bias`
and a small one the least squares. The ridge is chosen by the error on held-out windows,
from the middle of `RIDGES` downhill. `bias` is what FLAP (arXiv 2312.11983) does.
"""

import dataclasses
from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from pangu_jax.core.config import check_choice
from pangu_jax.core.errors import InputError
from pangu_jax.pruning import least_squares, moments
from pangu_jax.pruning.moments import Moments

METHODS = ("none", "bias", "scale", "affine", "ridge", "ridge-no-bias")
# Those that change the bias of the projection, or make one.
BIASED = ("bias", "affine", "ridge")
# Those that solve a system.
RIDGE = ("ridge", "ridge-no-bias")
# In units of the mean variance of the kept inputs; begun with is the middle one.
RIDGES = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)

_HIGH = jax.lax.Precision.HIGHEST


@dataclasses.dataclass(frozen=True)
class SiteReport:
    """Errors of one projection, mean over tokens and output dimensions of squares.

    Attributes:
      cut: with the inputs dropped and nothing repaired.
      repaired: after the repair.
      output: variance of the projection's output, for comparison.
      ridge: the ridge used, or None.
      held_out: error on held-out windows after the repair fitted without them, or None.
    """

    cut: float
    repaired: float
    output: float
    ridge: float | None = None
    held_out: float | None = None


def check_method(method: str) -> str:
    """Returns the name of a known repair.

    Raises:
      InputError: the name is unknown.
    """
    check_choice("repair", method, METHODS)
    return method


def fit(
    sums: Moments,
    held: Moments | None,
    kernel: jax.Array,
    bias: jax.Array | None,
    keep: Any,
    *,
    method: str,
    ridge: float | None = None,
    donate: bool = False,
) -> tuple[jax.Array, jax.Array | None, SiteReport]:
    """The repaired projection, with zero rows for the dropped inputs.

    Args:
      sums: moments of the U inputs.
      held: moments over held-out windows, used to choose the ridge and then added; or None.
      kernel: [U, D].
      bias: [D] or None.
      keep: bool [U].
      method: one of `METHODS`.
      ridge: in units of the mean variance of the kept inputs; None chooses among `RIDGES` on the
        held-out moments, or takes the middle one without them.
      donate: donates `sums`, which saves memory.

    Returns:
      The kernel [U, D] in its own type, the bias (None if there is none), and the errors.

    Raises:
      InputError: an unknown method, or a result that is not finite.
    """
    check_method(method)
    keep = np.asarray(keep, bool)
    with jax.enable_x64(True):
        kept, dropped = least_squares.split(keep)
        solves, chosen = method in RIDGE and not keep.all(), ridge is None
        held_out = None
        if solves:
            ridge, held_out = _choose_ridge(sums, held, kernel, kept, dropped, method, ridge)
        else:
            ridge = None
        both = moments.merge(sums, held, donate=donate)
        if ridge is not None:
            least = ridge
            levels = (least, *(r for r in RIDGES if chosen and r > least))
            new, shift, ridge = _solve(both, kernel, kept, dropped, method, levels)
        else:
            new, shift = _refit(both, kernel, jnp.asarray(keep), method=method)
        errors = _errors(both, kernel, dropped, new, shift)
        new = _cast(new, kernel)
        if bias is not None or (method in BIASED and not keep.all()):
            bias = _cast(shift, kernel, bias)
    cut, done, output = (float(e) for e in errors)
    if not np.isfinite(done):
        raise InputError(f"the {method} repair is not finite; try another or a larger ridge")
    return new, bias, SiteReport(cut, done, output, ridge, held_out)


@jax.jit
def _cast(x, like, more=None):
    """`x` plus `more` in the type of `like`."""
    return (x if more is None else x + more.astype(x.dtype)).astype(like.dtype)


def _choose_ridge(sums, held, kernel, kept, dropped, method, ridge):
    choices = RIDGES if ridge is None else (ridge,)
    if held is None:
        return choices[len(choices) // 2], None
    spread, mean = _spread(sums, method=method)
    found = least_squares.held_out(spread, _second_around(held, mean), kernel, kept, dropped)
    del spread  # as large as the sums, and gathered from

    @cache
    def error(place: int) -> float:
        return float(
            jnp.nan_to_num(least_squares.held_out_error(found, choices[place]), nan=np.inf)
        )

    # The error falls to a minimum and then rises, so it is followed down without trying all.
    best = len(choices) // 2
    for step in (1, -1):
        while 0 <= best + step < len(choices) and error(best + step) < error(best):
            best += step
    return choices[best], error(best)


def _solve(both, kernel, kept, dropped, method, levels):
    """The refit with the first of the ridges that has a solution, and that ridge.

    In float32, the fitted windows and the held-out ones together may be singular for a ridge that
    either of them was not.
    """
    spread, mean = _spread(both, method=method)
    for level in levels:
        new, shift = least_squares.solve(spread, mean, kernel, kept, dropped, float(level))
        if bool(jnp.isfinite(new).all()):
            break
    return new, shift, level


@partial(jax.jit, static_argnames="method")
def _spread(sums, *, method):
    """Second moments [U, U] that the ridge fits, and the mean [U] they are taken around.

    That is the inputs' own mean, for which the bias compensates, or zero without a bias.
    """
    if _free(method):
        return moments.second(sums), jnp.zeros_like(sums.total)
    return moments.covariance(sums), moments.mean(sums)


@jax.jit
def _second_around(sums, mean):
    apart = moments.mean(sums) - mean
    return moments.covariance(sums) + apart[:, None] * apart[None, :]


@partial(jax.jit, static_argnames="method")
def _refit(sums, kernel, keep, *, method):
    """New kernel [U, D] of repairs that solve no system, and the correction of the bias [D]."""
    kernel = kernel.astype(sums.outer.dtype)
    kept = jnp.where(keep[:, None], kernel, 0)
    mean = moments.mean(sums)
    zero = jnp.zeros(kernel.shape[1], kernel.dtype)
    if method == "bias":
        return kept, mean @ (kernel - kept)
    if method not in ("scale", "affine"):
        return kept, zero
    spread = moments.second(sums) if _free(method) else moments.covariance(sums)
    new = kept * _factor(spread, kernel, kept)
    return new, zero if _free(method) else mean @ (kernel - new)


def _free(method: str) -> bool:
    return method in ("scale", "ridge-no-bias")


def _factor(spread, kernel, kept):
    """A_j; 1 for an output that does not vary with the kept inputs."""
    moved = jnp.matmul(spread, kept, precision=_HIGH)
    variance = (kept * moved).sum(0)
    whole = (kernel * jnp.matmul(spread, kernel, precision=_HIGH)).sum(0)
    live = variance > 1e-12 * whole
    return jnp.where(live, (kernel * moved).sum(0) / jnp.where(live, variance, 1), 1)


@jax.jit
def _errors(sums, kernel, dropped, new, shift):
    """Mean squared error when cut, when repaired, and the output's variance."""
    # Errors are for reading: the products are in the kernel's type, float32 or wider.
    dtype = jnp.promote_types(kernel.dtype, jnp.float32)
    cov, mean = moments.covariance(sums).astype(dtype), moments.mean(sums).astype(dtype)
    kernel, new, shift = kernel.astype(dtype), new.astype(dtype), shift.astype(dtype)

    def energy(cov, kernel):
        return (kernel * jnp.matmul(cov, kernel, precision=_HIGH)).sum(0)

    lost, rest = least_squares.rows(kernel, dropped), kernel - new
    cut = energy(least_squares.block(cov, dropped, dropped), lost)
    cut = cut + (least_squares.rows(mean, dropped) @ lost) ** 2
    repaired = energy(cov, rest) + (mean @ rest - shift) ** 2
    return cut.mean(), repaired.mean(), energy(cov, kernel).mean()
