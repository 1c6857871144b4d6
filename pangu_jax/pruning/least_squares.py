"""Ridge regression of dropped inputs on kept ones, from second moments alone.

A projection y = x W loses the rows D of W and keeps the rows K. With S the second moments of x,

    Z = (S_KK + l I)^-1 S_KD W_D    is added to W_K,

which shrinks towards the weights there are. What is solved for is X with Z = X R, a column for each
dropped input (R = W_D) or, where the outputs are fewer, for each output (R = 1). Only the rows and
columns that a product needs are gathered; their number is rounded up, so that layers of slightly
different widths share one compilation.
"""

import jax
import jax.numpy as jnp
import numpy as np

_HIGH = jax.lax.Precision.HIGHEST


def split(keep: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Kept and dropped indices of bool [U], int32, filled up with U to multiples of U / 16.

    Index U is no input: `rows` and `block` give zeros there.
    """
    multiple = -(-len(keep) // 16)

    def filled(index):
        return np.pad(index, (0, -len(index) % multiple), constant_values=len(keep))

    return filled(np.flatnonzero(keep)).astype("i4"), filled(np.flatnonzero(~keep)).astype("i4")


def rows(x: jax.Array, index: np.ndarray) -> jax.Array:
    """x[index] for indices of `split`: [U, ...] to [I, ...]."""
    return jnp.take(x, index, axis=0, mode="fill", fill_value=0)


def block(x: jax.Array, index: np.ndarray, columns: np.ndarray) -> jax.Array:
    """x[index][:, columns] for indices of `split`: [U, U] to [I, J]."""
    return rows(rows(x, index).T, columns).T


@jax.jit
def solve(
    spread: jax.Array,
    mean: jax.Array,
    kernel: jax.Array,
    kept: np.ndarray,
    dropped: np.ndarray,
    ridge: float,
) -> tuple[jax.Array, jax.Array]:
    """The refitted projection.

    Args:
      spread: [U, U], second moments of the inputs around `mean`.
      mean: [U], the inputs' mean, or zeros if there is to be no bias.
      kernel: [U, D].
      kept: of `split`.
      dropped: of `split`.
      ridge: in units of the mean variance of the kept inputs.

    Returns:
      [U, D] in the type of `spread`, with zero rows for dropped inputs, and what the bias gains,
      [D].
    """
    kernel = kernel.astype(spread.dtype)
    lost, right = rows(kernel, dropped), block(spread, kept, dropped)
    if len(dropped) > kernel.shape[1]:
        gained = _solved(spread, kept, ridge, _product(right, lost))
    else:
        gained = _product(_solved(spread, kept, ridge, right), lost)
    new = jnp.zeros_like(kernel).at[kept].set(rows(kernel, kept) + gained, mode="drop")
    return new, rows(mean, dropped) @ lost - rows(mean, kept) @ gained


@jax.jit
def held_out_errors(
    spread: jax.Array,
    held: jax.Array,
    kernel: jax.Array,
    kept: np.ndarray,
    dropped: np.ndarray,
    ridges: np.ndarray,
) -> jax.Array:
    """Errors of projections refitted with each ridge, on inputs that they were not fitted to.

    Args:
      spread: [U, U], second moments of the inputs that are fitted.
      held: [U, U], second moments of the held-out inputs, around the same mean as `spread`.
      kernel: [U, D].
      kept: of `split`.
      dropped: of `split`.
      ridges: [R].

    Returns:
      [R], mean over tokens and outputs of squares; NaN where a system has no solution.
    """
    lost = rows(kernel.astype(spread.dtype), dropped)
    right, cross = block(spread, kept, dropped), block(held, kept, dropped)
    own, inner = block(held, dropped, dropped), block(held, kept, kept)
    # E |x_D W_D - x_K X R|^2 is a sum over pairs of X's columns, weighted by what R R^T says.
    if len(dropped) > lost.shape[1]:
        right, cross = _product(right, lost), _product(cross, lost)
        own = _product(lost.T, _product(own, lost))
        weight = jnp.eye(len(own), dtype=own.dtype)
    else:
        weight = _product(lost, lost.T)

    def error(ridge):
        found = _solved(spread, kept, ridge, right)
        both = own + _product(found.T, _product(inner, found) - 2 * cross)
        return (both * weight).sum() / kernel.shape[1]

    return jax.lax.map(error, ridges)


def _solved(spread, kept, ridge, right):
    """(S_KK + l I)^-1 times the right side; rows that fill up get the identity."""
    own, there = block(spread, kept, kept), kept < len(spread)
    level = jnp.trace(own) / jnp.maximum(there.sum(), 1)
    # A trace of the level keeps the system solvable where inputs repeat one another.
    floor = 64 * jnp.finfo(spread.dtype).eps
    diagonal = jnp.where(there, (ridge + floor) * level, 1.0)
    diagonal = jnp.where(diagonal > 0, diagonal, 1.0)  # nothing varies at all
    factor = jax.scipy.linalg.cho_factor(own + jnp.diag(diagonal))
    return jax.scipy.linalg.cho_solve(factor, right)


def _product(x, y):
    return jnp.matmul(x, y, precision=_HIGH)
