"""Ridge regression of dropped inputs on kept ones, from second moments alone.

A projection y = x W loses the rows D of W and keeps the rows K. With S the second moments of x,

    Z = (S_KK + l I)^-1 S_KD W_D    is added to W_K,

which shrinks toward the present weights. The unknown is X with Z = X R, with a column for each
dropped input (R = W_D) or, if the outputs are fewer, for each output (R = 1). Only the rows and
columns that a product needs are gathered; their number is rounded up, so that layers of slightly
different widths share one compilation.
"""

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

_HIGH = jax.lax.Precision.HIGHEST


def split(keep: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Kept and dropped indices of bool [U], int32, padded with U to multiples of ceil(U / 16).

    U counts the inputs. Index U is no input: `rows` and `block` yield zeros there.
    """
    multiple = -(-len(keep) // 16)

    def filled(index):
        return np.pad(index, (0, -len(index) % multiple), constant_values=len(keep))

    return filled(np.flatnonzero(keep)).astype("i4"), filled(np.flatnonzero(~keep)).astype("i4")


def rows(x: jax.Array, index: np.ndarray) -> jax.Array:
    """x[index] for indices of `split`: [U, ...] to [I, ...]."""
    return jnp.take(x, index, axis=0, mode="fill", fill_value=0)


def block(x: jax.Array, index: np.ndarray, columns: np.ndarray) -> jax.Array:
    """`x[index][:, columns]` for indices of `split`: [U, U] to [I, J]."""
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
      The kernel [U, D] in the type of `spread`, with zero rows for dropped inputs, and the
      correction of the bias, [D].
    """
    kernel = kernel.astype(spread.dtype)
    lost, right = rows(kernel, dropped), block(spread, kept, dropped)
    own, there = block(spread, kept, kept), kept < len(spread)
    if len(dropped) > kernel.shape[1]:
        gained = _solved(own, there, ridge, _product(right, lost))
    else:
        gained = _product(_solved(own, there, ridge, right), lost)
    new = jnp.zeros_like(kernel).at[kept].set(rows(kernel, kept) + gained, mode="drop")
    return new, rows(mean, dropped) @ lost - rows(mean, kept) @ gained


@struct.dataclass
class HeldOut:
    """Quantities that give the error on held-out inputs for any ridge; made by `held_out`.

    Here K and C are sizes of these matrices, not KV heads and head width: K counts the kept
    inputs, with padding, and C the columns of the right sides.

    Attributes:
      own: [K, K], S_KK; padding rows are zero.
      there: bool [K], false for padding.
      right: [K, C], the right sides: a column for each dropped input, or for each output.
      inner: [K, K], held-out second moments of the kept inputs.
      cross: [K, C], those of the kept inputs with the dropped inputs or outputs of the columns.
      rest: [C, C], those of these dropped inputs or outputs.
      weight: [C, C], R R^T.
      outputs: D.
    """

    own: jax.Array
    there: jax.Array
    right: jax.Array
    inner: jax.Array
    cross: jax.Array
    rest: jax.Array
    weight: jax.Array
    outputs: int = struct.field(pytree_node=False)


@jax.jit
def held_out(
    spread: jax.Array, held: jax.Array, kernel: jax.Array, kept: np.ndarray, dropped: np.ndarray
) -> HeldOut:
    """Gathers the inputs of `held_out_error`, in the kernel's type, float32 or wider.

    Float32 suffices to distinguish ridges a decade apart, in a third of the time; the chosen one
    is solved for in the type of the moments.

    Args:
      spread: [U, U], second moments of the inputs that are fitted.
      held: [U, U], second moments of the held-out inputs, around the same mean as `spread`.
      kernel: [U, D].
      kept: of `split`.
      dropped: of `split`.
    """
    dtype = jnp.promote_types(kernel.dtype, jnp.float32)
    spread, held = spread.astype(dtype), held.astype(dtype)
    lost = rows(kernel.astype(dtype), dropped)
    right, cross = block(spread, kept, dropped), block(held, kept, dropped)
    rest = block(held, dropped, dropped)
    if len(dropped) > lost.shape[1]:
        right, cross = _product(right, lost), _product(cross, lost)
        rest = _product(lost.T, _product(rest, lost))
        weight = jnp.eye(len(rest), dtype=rest.dtype)
    else:
        weight = _product(lost, lost.T)
    own, inner = block(spread, kept, kept), block(held, kept, kept)
    there = kept < len(spread)
    return HeldOut(own, there, right, inner, cross, rest, weight, kernel.shape[1])


@jax.jit
def held_out_error(found: HeldOut, ridge: float) -> jax.Array:
    """The error of a projection refitted with a ridge, on inputs that it was not fitted to.

    Args:
      found: of `held_out`.
      ridge: as in `solve`.

    Returns:
      Scalar, mean over tokens and outputs of squares; NaN where the system has no solution.
    """
    # E |x_D W_D - x_K X R|^2 is a sum over pairs of X's columns, weighted by what R R^T says.
    x = _solved(found.own, found.there, ridge, found.right)
    both = found.rest + _product(x.T, _product(found.inner, x) - 2 * found.cross)
    return (both * found.weight).sum() / found.outputs


def _solved(own, there, ridge, right):
    """(S_KK + l I)^-1 times the right side; padding rows get the identity."""
    level = jnp.trace(own) / jnp.maximum(there.sum(), 1)
    # A trace of the level keeps the system solvable where inputs repeat one another.
    floor = 64 * jnp.finfo(own.dtype).eps
    diagonal = jnp.where(there, (ridge + floor) * level, 1.0)
    diagonal = jnp.where(diagonal > 0, diagonal, 1.0)  # nothing varies at all
    factor = jax.scipy.linalg.cho_factor(own + jnp.diag(diagonal))
    return jax.scipy.linalg.cho_solve(factor, right)


def _product(x, y):
    return jnp.matmul(x, y, precision=_HIGH)
