"""Products of rows sorted by expert with their experts' kernels.

| implementation | picked when |
|---|---|
| mosaic | 16-bit numbers on a Hopper GPU, both widths multiples of 16: kernels of our own |
| ragged_dot | on TPUs; CPUs and GPUs multiply by all experts and mask, so there it is an oracle |
| reference | never: a loop over experts, the oracle |

Rows behind the last expert's are anything in the results, and nothing reads them.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from pangu_jax.core.config import check_choice
from pangu_jax.core.errors import InputError

IMPLEMENTATIONS = ("mosaic", "ragged_dot", "reference")

MULTIPLE = 16  # of widths: what the kernels' layouts of shared memory ask for
ALIGNMENTS = (64, 128)  # rows of the Mosaic kernels' tiles
ROOMY = 96  # rows per expert from which tiles of 128 rows waste fewer products than time


def has_kernel(dtype: jnp.dtype, *widths: int) -> bool:
    """Whether the Mosaic kernels support this type and these widths."""
    return jnp.dtype(dtype).itemsize == 2 and all(width % MULTIPLE == 0 for width in widths)


def alignment(impl: str, rows: int, experts: int) -> int:
    """The number that each expert's row count should be padded to a multiple of.

    Args:
      impl: a name of the module's table.
      rows: how many rows there are for all experts.
      experts: E.
    """
    if impl != "mosaic":
        return 1
    return ALIGNMENTS[rows >= ROOMY * experts]


def grouped_matmul(
    lefts: Sequence[jax.Array],
    kernels: Sequence[jax.Array],
    counts: jax.Array,
    *,
    align: int = 1,
    transpose: bool = False,
    impl: str,
) -> jax.Array:
    """Each row times its expert's kernel, summed over pairs of rows and kernels.

    Args:
      lefts: arrays [R, D], all sorted alike: the first `counts[0]` rows are of expert 0, and so on.
      kernels: as many arrays [E, D, F], or with `transpose` [E, F, D].
      counts: int32 [E]; they sum to R or less.
      align: what `counts` are multiples of; see `alignment`.
      transpose: whether the kernels' last axis is the one to sum over.
      impl: a name of the module's table.

    Returns:
      [R, F] in the type of `lefts`, added up in float32.

    Raises:
      InputError: an unknown `impl`, or one that cannot multiply these arrays.
    """
    _check(impl, lefts[0], kernels[0].shape[1:], align)
    if impl == "mosaic":
        from pangu_jax.ops.kernels import grouped_matmul_mosaic

        return grouped_matmul_mosaic.matmul(lefts, kernels, counts, rows=align, transpose=transpose)
    kernels = [kernel.swapaxes(1, 2) if transpose else kernel for kernel in kernels]
    product = _ragged if impl == "ragged_dot" else _reference
    found = [product(a, kernel, counts) for a, kernel in zip(lefts, kernels, strict=True)]
    total = found[0] if len(found) == 1 else sum(v.astype(jnp.float32) for v in found)
    return total.astype(lefts[0].dtype)


def grouped_swiglu(
    left: jax.Array,
    gate: jax.Array,
    up: jax.Array,
    counts: jax.Array,
    *,
    align: int = 1,
    keep: bool = True,
    impl: str,
) -> tuple[jax.Array, ...]:
    """The hidden units of SwiGLU experts: silu(a) * b, of a = left @ gate and b = left @ up.

    Args:
      left: [R, D], sorted as in `grouped_matmul`.
      gate: [E, D, F].
      up: [E, D, F].
      counts: as in `grouped_matmul`.
      align: as in `grouped_matmul`.
      keep: whether a and b are wanted, too.
      impl: a name of the module's table.

    Returns:
      silu(a) * b, and with `keep` a and b: each [R, F] in the type of `left`.

    Raises:
      InputError: as in `grouped_matmul`.

    Source: arXiv 2002.05202, section 2.
    """
    _check(impl, left, gate.shape[1:], align)
    if impl == "mosaic":
        from pangu_jax.ops.kernels import grouped_matmul_mosaic

        return grouped_matmul_mosaic.swiglu(left, gate, up, counts, rows=align, keep=keep)
    product = _ragged if impl == "ragged_dot" else _reference
    a, b = product(left, gate, counts), product(left, up, counts)
    hidden = jax.nn.silu(a.astype(jnp.float32)) * b.astype(jnp.float32)
    values = (hidden, a, b)[: 3 if keep else 1]
    return tuple(value.astype(left.dtype) for value in values)


def grouped_outer(
    left: jax.Array,
    rights: Sequence[jax.Array],
    counts: jax.Array,
    *,
    align: int = 1,
    impl: str,
) -> tuple[jax.Array, ...]:
    """Sums of outer products over each expert's rows: the gradients of kernels.

    Args:
      left: [R, D], sorted as in `grouped_matmul`.
      rights: arrays [R, F], in the type of `left`.
      counts: as in `grouped_matmul`.
      align: as in `grouped_matmul`.
      impl: a name of the module's table.

    Returns:
      For each of `rights` [E, D, F] in the type of `left`, added up in float32; zeros for an expert
      without rows.

    Raises:
      InputError: as in `grouped_matmul`.
    """
    _check(impl, left, (rights[0].shape[1],), align)
    if impl == "mosaic":
        from pangu_jax.ops.kernels import grouped_matmul_mosaic

        return grouped_matmul_mosaic.outer(left, rights, counts)
    product = _ragged_outer if impl == "ragged_dot" else _reference_outer
    return tuple(product(left, right, counts).astype(left.dtype) for right in rights)


_ragged = jax.lax.ragged_dot


def _reference(left, kernels, counts):
    y = jnp.zeros((left.shape[0], kernels.shape[2]), jnp.float32)
    for kernel, own in zip(kernels, _owned(counts, left.shape[0]), strict=True):
        y = jnp.where(own[:, None], jnp.matmul(left, kernel, preferred_element_type=jnp.float32), y)
    return y


def _ragged_outer(left, right, counts):
    over_rows = jax.lax.RaggedDotDimensionNumbers((((0,), (0,)), ((), ())), [0], [])
    return jax.lax.ragged_dot_general(left, right, counts, over_rows)


def _reference_outer(left, right, counts):
    products = [
        jnp.matmul((left * own[:, None]).T, right, preferred_element_type=jnp.float32)
        for own in _owned(counts, left.shape[0])
    ]
    return jnp.stack(products)


def _owned(counts: jax.Array, rows: int) -> jax.Array:
    """Which rows belong to which expert: bool [E, R]."""
    ends = jnp.cumsum(counts)
    at = jnp.arange(rows)
    return (at >= (ends - counts)[:, None]) & (at < ends[:, None])


def _check(impl: str, left: jax.Array, widths: tuple[int, ...], align: int) -> None:
    check_choice("impl of grouped products", impl, IMPLEMENTATIONS)
    if impl != "mosaic":
        return
    if not has_kernel(left.dtype, left.shape[1], *widths):
        raise InputError(
            f"the kernels for grouped products take 16-bit numbers of widths that are multiples "
            f"of {MULTIPLE}, got {left.dtype} of widths {(left.shape[1], *widths)}"
        )
    if align not in ALIGNMENTS or left.shape[0] % align:
        raise InputError(
            f"the kernels for grouped products take rows in multiples of 64 or 128 for each "
            f"expert, got align {align} and {left.shape[0]} rows"
        )
