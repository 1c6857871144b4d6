"""Grouped matrix products on Hopper GPUs: jax's Mosaic kernels, with settings for each shape.

A block of 128 threads computes a tile of rows and columns; the tensor copy engine brings operands
into shared memory ahead of their use, and the tensor cores add up in float32. `SETTINGS` has what
tools/tune_grouped_matmul.py finds for a shape; there is none yet, and all shapes take `_default`.
"""

from typing import NamedTuple

import jax
from jax.custom_batching import sequential_vmap
from jax.experimental.pallas.ops.gpu.ragged_dot_mgpu import ragged_dot
from jax.experimental.pallas.ops.gpu.transposed_ragged_dot_mgpu import transposed_ragged_dot


class Tile(NamedTuple):
    """How a product is cut up.

    Attributes:
      block_m: rows of a tile of the result.
      block_n: its columns.
      block_k: what is multiplied at once.
      max_concurrent_steps: tiles of operands in shared memory.
      grid_block_n: columns of tiles that are computed one after the other, for the cache's sake.
    """

    block_m: int
    block_n: int
    block_k: int
    max_concurrent_steps: int
    grid_block_n: int


# (form, contracted size, columns) to tile, for many rows per expert.
SETTINGS: dict[tuple[str, int, int], Tile] = {}


def matmul(
    rows: jax.Array,
    kernels: jax.Array,
    counts: jax.Array,
    *,
    transpose: bool,
    tile: Tile | None = None,
) -> jax.Array:
    """`ops.grouped_matmul.grouped_matmul` of 16-bit numbers; see there."""
    if tile is None:
        columns = kernels.shape[1] if transpose else kernels.shape[2]
        form = "transposed" if transpose else "plain"
        tile = SETTINGS.get((form, rows.shape[1], columns)) or _default(columns)
        if rows.shape[0] < 96 * kernels.shape[0]:  # else most rows of a tile would be empty
            tile = tile._replace(block_m=64)

    # The kernel has no rule for batches: under vmap, as of several seeds, one follows the other.
    @sequential_vmap
    def product(rows, kernels, counts):
        options = tile._asdict()
        return ragged_dot(rows, kernels, group_sizes=counts, transpose_rhs=transpose, **options)

    return product(rows, kernels, counts)


def outer(
    left: jax.Array, right: jax.Array, counts: jax.Array, *, tile: Tile | None = None
) -> jax.Array:
    """`ops.grouped_matmul.grouped_outer` of 16-bit numbers; see there."""
    shape = left.shape[1], right.shape[1]
    tile = tile or SETTINGS.get(("outer", *shape)) or _default_outer(*shape)

    @sequential_vmap
    def product(left, right, counts):
        return transposed_ragged_dot(left, right, group_sizes=counts, **tile._asdict())

    return product(left, right, counts)


def _default(columns: int) -> Tile:
    block_n = _divisor(columns, (192, 128, 64))
    return Tile(128, block_n, 64, 5, 2 if block_n == 192 else 4)


def _default_outer(height: int, columns: int) -> Tile:
    return Tile(_divisor(height, (128, 64)), _divisor(columns, (192, 128, 64)), 64, 4, 4)


def _divisor(size: int, known: tuple[int, ...]) -> int:
    return next(n for n in known if size % n == 0)
