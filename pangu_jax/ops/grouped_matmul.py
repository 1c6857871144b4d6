"""Products of rows that are sorted by expert with their experts' kernels.

| implementation | picked when |
|---|---|
| mosaic | 16-bit numbers on a Hopper GPU, both widths multiples of 64: jax's kernels |
| ragged_dot | on TPUs; CPUs and GPUs multiply by all experts and mask, so there it is an oracle |
| reference | never: a loop over experts, the oracle |
"""

import jax
import jax.numpy as jnp

from pangu_jax.core.config import check_choice
from pangu_jax.core.errors import InputError

IMPLEMENTATIONS = ("mosaic", "ragged_dot", "reference")

MULTIPLE = 64  # of widths: what a tensor core reads from a row of shared memory at once


def has_kernel(dtype: jnp.dtype, *widths: int) -> bool:
    """Whether the Mosaic kernels multiply numbers of this type and these widths."""
    return jnp.dtype(dtype).itemsize == 2 and all(width % MULTIPLE == 0 for width in widths)


def filled_up(width: int) -> int:
    """The next width that the Mosaic kernels take."""
    return -(-width // MULTIPLE) * MULTIPLE


def grouped_matmul(
    rows: jax.Array,
    kernels: jax.Array,
    counts: jax.Array,
    *,
    transpose: bool = False,
    impl: str,
) -> jax.Array:
    """Every row times its expert's kernel.

    Args:
      rows: [R, D], the first `counts[0]` rows are of expert 0, and so on.
      kernels: [E, D, F], or with `transpose` [E, F, D].
      counts: int32 [E]; they sum to R.
      transpose: whether the kernels' last axis is the one to sum over.
      impl: a name of the module's table.

    Returns:
      [R, F] in the type of `rows`, added up in float32.

    Raises:
      InputError: an unknown `impl`, or one that cannot multiply these arrays.
    """
    _check(impl, rows, kernels.shape[1:])
    if impl == "mosaic":
        from pangu_jax.ops.kernels import grouped_matmul_mosaic

        return grouped_matmul_mosaic.matmul(rows, kernels, counts, transpose=transpose)
    kernels = kernels.swapaxes(1, 2) if transpose else kernels
    if impl == "ragged_dot":
        return jax.lax.ragged_dot(rows, kernels, counts)
    y = jnp.zeros((rows.shape[0], kernels.shape[2]), jnp.float32)
    for kernel, own in zip(kernels, _owned(counts, rows.shape[0]), strict=True):
        y = jnp.where(own[:, None], jnp.matmul(rows, kernel, preferred_element_type=jnp.float32), y)
    return y.astype(rows.dtype)


def grouped_outer(left: jax.Array, right: jax.Array, counts: jax.Array, *, impl: str) -> jax.Array:
    """The sum over each expert's rows of their outer products: the gradient of kernels.

    Args:
      left: [R, D], sorted as in `grouped_matmul`.
      right: [R, F], in the type of `left`.
      counts: int32 [E]; they sum to R.
      impl: a name of the module's table.

    Returns:
      [E, D, F] in the type of `left`, added up in float32; zeros for an expert without rows.

    Raises:
      InputError: an unknown `impl`, or one that cannot multiply these arrays.
    """
    _check(impl, left, right.shape[1:])
    if impl == "mosaic":
        from pangu_jax.ops.kernels import grouped_matmul_mosaic

        return grouped_matmul_mosaic.outer(left, right, counts)
    if impl == "ragged_dot":
        over_rows = jax.lax.RaggedDotDimensionNumbers((((0,), (0,)), ((), ())), [0], [])
        return jax.lax.ragged_dot_general(left, right, counts, over_rows)
    products = [
        jnp.matmul((left * own[:, None]).T, right, preferred_element_type=jnp.float32)
        for own in _owned(counts, left.shape[0])
    ]
    return jnp.stack(products).astype(left.dtype)


def _owned(counts: jax.Array, rows: int) -> jax.Array:
    """Bool [E, R]: which rows are of which expert."""
    ends = jnp.cumsum(counts)
    at = jnp.arange(rows)
    return (at >= (ends - counts)[:, None]) & (at < ends[:, None])


def _check(impl: str, rows: jax.Array, widths: tuple[int, ...]) -> None:
    check_choice("impl of grouped_matmul", impl, IMPLEMENTATIONS)
    if impl == "mosaic" and not has_kernel(rows.dtype, rows.shape[1], *widths):
        raise InputError(
            f"the kernels for grouped products take 16-bit numbers of widths that are multiples "
            f"of {MULTIPLE}, got {rows.dtype} of widths {(rows.shape[1], *widths)}"
        )
