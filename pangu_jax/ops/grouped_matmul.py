"""Products of rows that are sorted by expert with their experts' kernels.

| implementation | picked when |
|---|---|
| mosaic | 16-bit numbers on a Hopper GPU, both widths multiples of 16: kernels of our own |
| loop | on CPUs: block after block of rows, each with its expert's kernel alone |
| ragged_dot | on TPUs; CPUs and GPUs multiply by all experts and mask, so there it is an oracle |
| reference | never: a loop over experts, the oracle |

Rows behind the last expert's are anything in the results, and nothing reads them.
"""

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp

from pangu_jax.core.config import check_choice
from pangu_jax.core.errors import InputError

IMPLEMENTATIONS = ("mosaic", "loop", "ragged_dot", "reference")

MULTIPLE = 16  # of widths: what the kernels' layouts of shared memory ask for
ALIGNMENTS = (64, 128)  # rows of the Mosaic kernels' tiles
ROOMY = 96  # rows an expert from which tiles of 128 rows waste fewer products than time


def has_kernel(dtype: jnp.dtype, *widths: int) -> bool:
    """Whether the Mosaic kernels multiply numbers of this type and these widths."""
    return jnp.dtype(dtype).itemsize == 2 and all(width % MULTIPLE == 0 for width in widths)


def alignment(impl: str, rows: int, experts: int) -> int:
    """What every expert's rows should be filled up to a multiple of.

    Args:
      impl: a name of the module's table.
      rows: how many rows there are for all experts.
      experts: E.
    """
    if impl == "loop":
        return _block_rows(rows, experts)
    if impl != "mosaic":
        return 1
    return ALIGNMENTS[rows >= ROOMY * experts]


def _block_rows(rows: int, experts: int) -> int:
    """Rows of a block of the loop: what fills up is an eighth of the rows on average, or less."""
    most = rows / (4 * experts)
    return min(256, max(4, 2 ** int(math.log2(max(most, 1)))))


def grouped_matmul(
    lefts: Sequence[jax.Array],
    kernels: Sequence[jax.Array],
    counts: jax.Array,
    *,
    align: int = 1,
    transpose: bool = False,
    impl: str,
) -> jax.Array:
    """Every row times its expert's kernel, summed over pairs of rows and kernels.

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
    if impl == "loop":
        over = "bd,fd->bf" if transpose else "bd,df->bf"

        def add(rows, own):
            products = [_float32(over, row, kernel) for row, kernel in zip(rows, own, strict=True)]
            return (sum(products[1:], products[0]).astype(rows[0].dtype),)

        return _by_block(add, lefts, kernels, counts, align)[0]
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
    if impl == "loop":

        def units(rows, kernels):
            a, b = (_float32("bd,df->bf", rows[0], kernel) for kernel in kernels)
            values = (jax.nn.silu(a) * b, a, b)[: 3 if keep else 1]
            return tuple(value.astype(left.dtype) for value in values)

        return _by_block(units, (left,), (gate, up), counts, align)
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
    """Sums over each expert's rows of their outer products: the gradients of kernels.

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
    if impl == "loop":
        return _outer_by_block(left, rights, counts, align)
    product = _ragged_outer if impl == "ragged_dot" else _reference_outer
    return tuple(product(left, right, counts).astype(left.dtype) for right in rights)


def _by_block(function, arrays, kernels, counts, size):
    """A function of blocks of rows and their expert's kernels, for all rows.

    Args:
      function: of `size` rows of each array and one expert's kernels; gives arrays [size, F].
      arrays: [R, D] each.
      kernels: [E, ...] each.
      counts: int32 [E], multiples of `size`.
      size: rows of a block.

    Returns:
      Arrays [R, F]; zeros behind the last expert's rows.
    """
    rows = arrays[0].shape[0]
    shapes = jax.eval_shape(function, [x[:size] for x in arrays], [k[0] for k in kernels])
    start = tuple(jnp.zeros((rows, *x.shape[1:]), x.dtype) for x in shapes)

    def expert(found, inputs):
        own, begin, count = inputs

        def block(number, found):
            at = begin + number * size
            new = function(_rows(arrays, at, size), own)
            put = lambda whole, part: jax.lax.dynamic_update_slice_in_dim(whole, part, at, 0)  # noqa: E731
            return tuple(map(put, found, new))

        return jax.lax.fori_loop(0, count // size, block, found), None

    found, _ = jax.lax.scan(expert, start, (tuple(kernels), jnp.cumsum(counts) - counts, counts))
    return found


def _outer_by_block(left, rights, counts, size):
    """`grouped_outer`, block after block."""
    shapes = [(left.shape[1], right.shape[1]) for right in rights]

    def expert(carry, inputs):
        begin, count = inputs

        def block(number, totals):
            a, *others = _rows((left, *rights), begin + number * size, size)
            new = (_float32("bd,bf->df", a, b) for b in others)
            return tuple(map(jnp.add, totals, new))

        start = tuple(jnp.zeros(shape, jnp.float32) for shape in shapes)
        totals = jax.lax.fori_loop(0, count // size, block, start)
        return carry, tuple(total.astype(left.dtype) for total in totals)

    return jax.lax.scan(expert, None, (jnp.cumsum(counts) - counts, counts))[1]


def _rows(arrays, at, size):
    return [jax.lax.dynamic_slice_in_dim(x, at, size, 0) for x in arrays]


def _float32(subscripts, left, right):
    return jnp.einsum(subscripts, left, right, preferred_element_type=jnp.float32)


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
    """Bool [E, R]: which rows are of which expert."""
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
