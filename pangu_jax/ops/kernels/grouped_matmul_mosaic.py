"""Grouped matrix products on Hopper GPUs, through Pallas' Mosaic back end.

Rows are sorted by expert, and every expert's rows begin at a multiple of a tile's rows. So a tile of
the result belongs to one expert, and nothing has to be masked. What an edge tile reads beyond an
array is zeros, and what it writes there is dropped: the copy engine does both.

A multiprocessor computes one tile after another. Of its three groups of 128 threads one fetches
operands into a ring in shared memory, as far ahead as there is room, past the end of a tile too, so
that writing a tile hides behind fetching the next. The other two multiply, each half of the tile,
add up in float32, and write through shared memory.

The pair of gate and up is one product: a multiplying group holds the same columns of both, and
applies SwiGLU to what it has in registers.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.custom_batching import sequential_vmap
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from pangu_jax.ops.kernels.interpret import interpreter

MULTIPROCESSORS = 132  # of an H100 or H200; where there are fewer, some blocks wait
MULTIPLYING = 2  # groups of threads
ROWS = 64  # that a group of threads multiplies at once
WRITTEN = 64  # columns that are written at once
DEPTH = 64  # what is summed over in a step: 128 bytes, a line of a swizzle
INT = jnp.int32


class Tile(NamedTuple):
    """How a product is cut up.

    Attributes:
      rows: of a tile of the result, 64 or 128; two groups of threads share 128 rows by rows and 64
        by columns.
      columns: of a tile, those of a pair of products counted together.
      ahead: steps whose operands are in shared memory.
      beside: neighboring columns of tiles that are computed at about the same time, for the cache.
    """

    rows: int
    columns: int = 256
    ahead: int = 4
    beside: int = 8


class _Work(NamedTuple):
    """One tile of the result.

    Attributes:
      steps: int32, how many steps its sum has.
      write: bool, whether it is written.
      fetch: (step, left, rights, barrier) starts copies into these parts of shared memory.
      target: (result, row, rows, column, columns) is where they go in a result.
    """

    steps: jax.Array
    write: jax.Array
    fetch: Callable[..., None]
    target: Callable[..., Any]


def matmul(
    lefts: Sequence[jax.Array],
    kernels: Sequence[jax.Array],
    counts: jax.Array,
    *,
    rows: int,
    transpose: bool = False,
    tile: Tile | None = None,
    interpret: bool = False,
) -> jax.Array:
    """`ops.grouped_matmul.grouped_matmul` of 16-bit numbers; see there.

    Args:
      lefts: as there.
      kernels: as there.
      counts: int32 [E], multiples of `rows`.
      rows: 64 or 128.
      transpose: as there.
      tile: how to cut it up; None chooses.
      interpret: whether to interpret the kernel, for machines without such a GPU.
    """
    tile = tile or Tile(rows)

    @sequential_vmap
    def product(lefts, kernels, owners):
        return _rows(lefts, kernels, owners, tile, transpose, None, 1, interpret)[0]

    return product(tuple(lefts), tuple(kernels), _owners(counts, lefts[0].shape[0], rows))


def swiglu(
    left: jax.Array,
    gate: jax.Array,
    up: jax.Array,
    counts: jax.Array,
    *,
    rows: int,
    keep: bool,
    tile: Tile | None = None,
    interpret: bool = False,
) -> tuple[jax.Array, ...]:
    """`ops.grouped_matmul.grouped_swiglu` of 16-bit numbers; see there, and `matmul`."""
    tile = tile or Tile(rows, beside=16)

    @sequential_vmap
    def product(left, gate, up, owners):
        results = 3 if keep else 1
        return _rows((left,), (gate, up), owners, tile, False, _swiglu, results, interpret)

    return product(left, gate, up, _owners(counts, left.shape[0], rows))


def outer(
    left: jax.Array,
    rights: Sequence[jax.Array],
    counts: jax.Array,
    *,
    tile: Tile | None = None,
    interpret: bool = False,
) -> tuple[jax.Array, ...]:
    """`ops.grouped_matmul.grouped_outer` of 16-bit numbers; see there, and `matmul`.

    `counts` are multiples of 64.
    """
    tile = tile or Tile(128)

    @sequential_vmap
    def product(left, rights, counts):
        return _outer(left, rights, counts, tile, interpret)

    return product(left, tuple(rights), counts)


def _owners(counts, rows, tile_rows):
    """Int32 [tiles of rows]: the expert of each, or -1 behind the last expert's rows."""
    ends = jnp.cumsum(counts)
    first = jnp.arange(rows // tile_rows, dtype=counts.dtype) * tile_rows
    owner = (first[:, None] >= ends).sum(1, dtype=INT)
    return jnp.where(owner < counts.size, owner, -1)


def _swiglu(a, b):
    """SwiGLU of float32 pre-activations, beside them."""
    return a / (1.0 + jnp.exp(-a)) * b, a, b


def _rows(lefts, kernels, owners, tile, transpose, finish, results, interpret):
    """Rows times kernels: a sum over pairs of both, or with `finish` one left for all kernels."""
    (total, depth), columns = lefts[0].shape, kernels[0].shape[1 if transpose else 2]
    width = tile.columns // (len(kernels) if finish else 1)
    deep, across, tiles = pl.cdiv(depth, DEPTH), pl.cdiv(columns, width), total // tile.rows

    def work(index, owners, refs):
        lefts_, kernels_ = refs[: len(lefts)], refs[len(lefts) :]
        m, n = plgpu.planar_snake(index, (tiles, across), 1, min(tile.beside, across))
        owner, own_rows, own_columns = owners[m], pl.ds(m * tile.rows, tile.rows), n * width

        def fetch_pair(step, left, kernels, left_smem, right_smems, barrier):
            at = pl.ds(step * DEPTH, DEPTH)
            plgpu.copy_gmem_to_smem(left.at[own_rows, at], left_smem, barrier)
            for kernel, smem in zip(kernels, right_smems, strict=True):
                cut = pl.ds(own_columns, width)
                part = kernel.at[owner].at[(cut, at) if transpose else (at, cut)]
                plgpu.copy_gmem_to_smem(part, smem, barrier)

        def fetch(step, *places):
            if len(lefts_) == 1:
                return fetch_pair(step, lefts_[0], kernels_, *places)
            for pair, (left, kernel) in enumerate(zip(lefts_, kernels_, strict=True)):
                pl.when(jax.lax.div(step, INT(deep)) == pair)(
                    partial(fetch_pair, step - pair * deep, left, (kernel,), *places)
                )

        def target(result, row, rows, column, columns):
            return result.at[pl.ds(m * tile.rows + row, rows), pl.ds(own_columns + column, columns)]

        steps = jnp.where(owner < 0, 0, deep * len(lefts))
        return _Work(steps, owner >= 0, fetch, target)

    call = _ring(
        work,
        units=tiles * across,
        tile=tile,
        together=len(kernels) if finish else 1,
        turned=(False, transpose),
        finish=finish,
        results=(jax.ShapeDtypeStruct((total, columns), lefts[0].dtype),) * results,
        interpret=interpret,
    )
    return call(owners, *lefts, *kernels)


def _outer(left, rights, counts, tile, interpret):
    """Sums over each expert's rows of outer products with each of `rights`."""
    experts, height, columns = counts.size, left.shape[1], rights[0].shape[1]
    width = tile.columns // len(rights)
    down, across = pl.cdiv(height, tile.rows), pl.cdiv(columns, width)
    ends = jnp.cumsum(counts)
    spans = jnp.stack([ends - counts, counts // DEPTH])  # first row and steps of each expert

    def work(index, spans, refs):
        left_, rights_ = refs[0], refs[1:]
        expert, place = jax.lax.div(index, INT(down * across)), jax.lax.rem(index, down * across)
        m, n = plgpu.planar_snake(place, (down, across), 1, min(tile.beside, across))
        first = spans[0, expert]

        def fetch(step, left_smem, right_smems, barrier):
            at = pl.ds(pl.multiple_of(first + step * DEPTH, DEPTH), DEPTH)
            part = left_.at[at, pl.ds(m * tile.rows, tile.rows)]
            plgpu.copy_gmem_to_smem(part, left_smem, barrier)
            for right, smem in zip(rights_, right_smems, strict=True):
                plgpu.copy_gmem_to_smem(right.at[at, pl.ds(n * width, width)], smem, barrier)

        def target(result, row, rows, column, columns):
            rows = pl.ds(m * tile.rows + row, rows)
            return result.at[expert, rows, pl.ds(n * width + column, columns)]

        return _Work(spans[1, expert], True, fetch, target)

    call = _ring(
        work,
        units=experts * down * across,
        tile=tile,
        together=len(rights),
        turned=(True, False),
        finish=None,
        results=(jax.ShapeDtypeStruct((experts, height, columns), left.dtype),) * len(rights),
        interpret=interpret,
    )
    return call(spans, left, *rights)


def _ring(work, *, units, tile, together, turned, finish, results, interpret):
    """The kernel: fetching, multiplying and writing, tile after tile.

    Args:
      work: (index, table, arrays) -> `_Work`, for the tile of that index.
      units: how many tiles there are.
      tile: how they are cut.
      together: products of the same left operand, summed apart.
      turned: whether the left and the right operands lie transposed in shared memory.
      finish: from these sums to what is written, None for the sums.
      results: shapes and types of the results.
      interpret: whether to interpret the kernel.

    Returns:
      A function of the table and the arrays.
    """
    dtype, width = results[0].dtype, tile.columns // together
    by_rows = tile.rows > ROWS
    own_width = width if by_rows else width // MULTIPLYING
    left_shape = (DEPTH, tile.rows) if turned[0] else (tile.rows, DEPTH)
    right_shape = (width, DEPTH) if turned[1] else (DEPTH, width)

    def body(table, *refs):
        arrays, targets = refs[: -len(results)], refs[-len(results) :]
        me = jax.lax.axis_index("group")
        row, column = (me * ROWS, 0) if by_rows else (0, me * own_width)
        loop = partial(
            plgpu.nd_loop, (units,), collective_axes="multiprocessor", init_carry=INT(0)
        )

        def slot_of(step):
            return jax.lax.rem(step, INT(tile.ahead))

        def run(left_smem, right_smem, out_smem, full, empty):
            def fetch_tile(info, carry):
                unit = work(info.index[0], table, arrays)

                def step(k, at):
                    slot = slot_of(at)
                    pl.when(at >= tile.ahead)(lambda: plgpu.barrier_wait(empty.at[slot]))
                    rights = [right_smem.at[slot, i] for i in range(together)]
                    unit.fetch(k, left_smem.at[slot], rights, full.at[slot])
                    return at + 1

                return jax.lax.fori_loop(0, unit.steps, step, carry)

            def fetch_all():
                plgpu.set_max_registers(40, action="decrease")
                at = loop()(fetch_tile)
                for back in range(1, tile.ahead + 1):  # leaves no barrier in the middle of a phase
                    pl.when(at >= back)(
                        lambda back=back: plgpu.barrier_wait(empty.at[slot_of(at - back)])
                    )

            def multiply_tile(info, carry):
                unit = work(info.index[0], table, arrays)

                def accumulate(*sums):
                    def step(k, at):
                        slot = slot_of(at)
                        plgpu.barrier_wait(full.at[slot])
                        for i, total in enumerate(sums):
                            left = _part(left_smem.at[slot], 0, row, ROWS, turned[0])
                            right = right_smem.at[slot, i]
                            right = _part(right, 1, column, own_width, turned[1])
                            plgpu.wgmma(total, left, right)
                        plgpu.wgmma_wait(together)  # those of the step before are done
                        pl.when(k > 0)(lambda: plgpu.barrier_arrive(empty.at[slot_of(at - 1)]))
                        return at + 1

                    at = jax.lax.fori_loop(0, unit.steps, step, carry)
                    values = [total[...] for total in sums]
                    pl.when(unit.steps > 0)(
                        lambda: plgpu.barrier_arrive(empty.at[slot_of(at - 1)])
                    )
                    return at, values

                sums = [plgpu.ACC((ROWS, own_width), jnp.float32)] * together
                at, values = pl.run_scoped(accumulate, *sums)
                pl.when(unit.write)(partial(write, unit, finish(*values) if finish else values))
                return at

            def write(unit, values):
                parts = [
                    (value[:, c : c + WRITTEN].astype(dtype), target, c)
                    for value, target in zip(values, targets, strict=False)
                    for c in range(0, own_width, WRITTEN)
                ]
                for number, (part, target, c) in enumerate(parts):
                    slot = number % 2
                    plgpu.wait_smem_to_gmem(1, wait_read_only=True)
                    out_smem[me, slot] = part
                    plgpu.commit_smem()
                    place = unit.target(target, row, ROWS, column + c, WRITTEN)
                    plgpu.copy_smem_to_gmem(out_smem.at[me, slot], place)

            def multiply_all():
                plgpu.set_max_registers(232, action="increase")
                loop()(multiply_tile)
                plgpu.wait_smem_to_gmem(0, wait_read_only=True)

            pl.when(me == MULTIPLYING)(fetch_all)
            pl.when(me < MULTIPLYING)(multiply_all)

        pl.run_scoped(
            run,
            left_smem=_swizzled((tile.ahead, *left_shape), dtype),
            right_smem=_swizzled((tile.ahead, together, *right_shape), dtype),
            out_smem=_swizzled((MULTIPLYING, 2, ROWS, WRITTEN), dtype),
            full=plgpu.Barrier(num_arrivals=1 + together, num_barriers=tile.ahead),
            empty=plgpu.Barrier(num_arrivals=MULTIPLYING, num_barriers=tile.ahead),
            collective_axes="group",
        )

    return plgpu.kernel(
        body,
        out_type=results,
        grid=(MULTIPROCESSORS,),
        grid_names=("multiprocessor",),
        num_threads=MULTIPLYING + 1,
        thread_name="group",
        compiler_params=plgpu.CompilerParams(
            approx_math=True,  # an exponential as one instruction
            lowering_semantics=plgpu.LoweringSemantics.Warpgroup,
        ),
        interpret=interpreter(interpret),
    )


def _part(ref, axis, start, size, turned):
    """So many rows (axis 0) or columns (axis 1) of an operand, which may lie transposed."""
    stored = 1 - axis if turned else axis
    cut = pl.ds(start, size) if isinstance(start, int) else pl.ds(pl.multiple_of(start, ROWS), size)
    ref = ref.at[:, cut] if stored else ref.at[cut]
    if not turned:
        return ref
    return ref.transpose((1, 0)) if hasattr(ref, "transpose") else plgpu.transpose_ref(ref, (1, 0))


def _swizzled(shape, dtype):
    """Shared memory laid out so that the tensor cores read it without conflicts."""
    swizzle = plgpu.find_swizzle(shape[-1] * 16)
    layout = plgpu.TilingTransform((8, swizzle // 2)), plgpu.SwizzleTransform(swizzle)
    return plgpu.SMEM(shape, dtype, transforms=layout)
