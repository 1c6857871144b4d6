"""Grouped matrix products on Hopper GPUs, through Pallas' Mosaic back end.

Rows are sorted by expert, and every expert's rows begin at a multiple of a tile's rows. So a tile
of the result belongs to one expert, and nothing has to be masked. What an edge tile reads beyond an
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

MULTIPROCESSORS = 132  # of an H100 or H200, where the device does not say
MULTIPLYING = 2  # groups of threads
ROWS = 64  # that a group of threads multiplies at once
WRITTEN = 64  # columns that are written at once
DEPTH = 64  # what is summed over in a step
LINES = 64, 32, 16  # numbers in a row of a swizzle, of which all widths are multiples
INT = jnp.int32


class Tile(NamedTuple):
    """Tile sizes of a product.

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
) -> jax.Array:
    """`ops.grouped_matmul.grouped_matmul` for 16-bit types; see there.

    Args:
      lefts: as there.
      kernels: as there.
      counts: int32 [E], multiples of `rows`.
      rows: 64 or 128.
      transpose: as there.
      tile: how to cut it up; None chooses.
    """
    tile = tile or Tile(rows)

    @sequential_vmap
    def product(lefts, kernels, owners):
        return _rows(lefts, kernels, owners, tile, transpose, None, 1)[0]

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
) -> tuple[jax.Array, ...]:
    """`ops.grouped_matmul.grouped_swiglu` for 16-bit types; see there, and `matmul`."""
    tile = tile or Tile(rows, beside=16)

    @sequential_vmap
    def product(left, gate, up, owners):
        results = 3 if keep else 1
        return _rows((left,), (gate, up), owners, tile, False, _swiglu, results)

    return product(left, gate, up, _owners(counts, left.shape[0], rows))


def outer(
    left: jax.Array,
    rights: Sequence[jax.Array],
    counts: jax.Array,
    *,
    tile: Tile | None = None,
) -> tuple[jax.Array, ...]:
    """`ops.grouped_matmul.grouped_outer` for 16-bit types; see there, and `matmul`.

    `counts` are multiples of 64.
    """
    tile = tile or Tile(128)

    @sequential_vmap
    def product(left, rights, counts):
        return _outer(left, rights, counts, tile)

    return product(left, tuple(rights), counts)


def _owners(counts, rows, tile_rows):
    """Int32 [row tiles]: the expert of each, or -1 past the last expert's rows."""
    ends = jnp.cumsum(counts)
    first = jnp.arange(rows // tile_rows, dtype=counts.dtype) * tile_rows
    owner = (first[:, None] >= ends).sum(1, dtype=INT)
    return jnp.where(owner < counts.size, owner, -1)


def _line(*widths):
    return next(line for line in LINES if all(width % line == 0 for width in widths))


def _swiglu(a, b):
    """SwiGLU of float32 pre-activations, returned along with them."""
    return a / (1.0 + jnp.exp(-a)) * b, a, b


def _rows(lefts, kernels, owners, tile, transpose, finish, results):
    """Rows times kernels: a sum over pairs of both, or with `finish` one left for all kernels."""
    (total, depth), columns = lefts[0].shape, kernels[0].shape[1 if transpose else 2]
    width = tile.columns // (len(kernels) if finish else 1)
    deep, across, tiles = pl.cdiv(depth, DEPTH), pl.cdiv(columns, width), total // tile.rows

    def work(index, table, arrays):
        lefts_, kernels_ = arrays[: len(lefts)], arrays[len(lefts) :]
        m, n = plgpu.planar_snake(index, (tiles, across), 1, min(tile.beside, across))
        owner, own_rows, own_columns = table[m], pl.ds(m * tile.rows, tile.rows), n * width

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

    plan = _Plan(
        units=tiles * across,
        tile=tile,
        line=_line(depth, columns),
        together=len(kernels) if finish else 1,
        turned=(False, transpose),
        finish=finish,
        results=(jax.ShapeDtypeStruct((total, columns), lefts[0].dtype),) * results,
    )
    return _run(plan, work)(owners, *lefts, *kernels)


def _outer(left, rights, counts, tile):
    """Sums over each expert's rows of outer products with each of `rights`."""
    experts, height, columns = counts.size, left.shape[1], rights[0].shape[1]
    width = tile.columns // len(rights)
    down, across = pl.cdiv(height, tile.rows), pl.cdiv(columns, width)
    ends = jnp.cumsum(counts)
    spans = jnp.stack([ends - counts, counts // DEPTH])  # first row and steps of each expert

    def work(index, table, arrays):
        left_, *rights_ = arrays
        expert, place = jax.lax.div(index, INT(down * across)), jax.lax.rem(index, down * across)
        m, n = plgpu.planar_snake(place, (down, across), 1, min(tile.beside, across))
        first = table[0, expert]

        def fetch(step, left_smem, right_smems, barrier):
            at = pl.ds(pl.multiple_of(first + step * DEPTH, DEPTH), DEPTH)
            part = left_.at[at, pl.ds(m * tile.rows, tile.rows)]
            plgpu.copy_gmem_to_smem(part, left_smem, barrier)
            for right, smem in zip(rights_, right_smems, strict=True):
                plgpu.copy_gmem_to_smem(right.at[at, pl.ds(n * width, width)], smem, barrier)

        def target(result, row, rows, column, columns):
            rows = pl.ds(m * tile.rows + row, rows)
            return result.at[expert, rows, pl.ds(n * width + column, columns)]

        return _Work(table[1, expert], True, fetch, target)

    plan = _Plan(
        units=experts * down * across,
        tile=tile,
        line=_line(height, columns),
        together=len(rights),
        turned=(True, False),
        finish=None,
        results=(jax.ShapeDtypeStruct((experts, height, columns), left.dtype),) * len(rights),
    )
    return _run(plan, work)(spans, left, *rights)


class _Plan(NamedTuple):
    """Static description of a kernel.

    Attributes:
      units: how many tiles there are.
      tile: how they are cut.
      line: numbers in a row of a swizzle.
      together: products of the same left operand, summed apart.
      turned: whether the left and the right operands lie transposed in shared memory.
      finish: from these sums to what is written, None for the sums.
      results: shapes and types of the results.
    """

    units: int
    tile: Tile
    line: int
    together: int
    turned: tuple[bool, bool]
    finish: Callable[..., Sequence[jax.Array]] | None
    results: tuple[jax.ShapeDtypeStruct, ...]

    @property
    def width(self) -> int:
        """Columns of a tile of one product."""
        return self.tile.columns // self.together

    @property
    def own_width(self) -> int:
        """Columns of a tile that one thread group multiplies."""
        return self.width if self.tile.rows > ROWS else self.width // MULTIPLYING

    def memory(self) -> dict[str, Any]:
        """Shared memory: the ring of operands with its barriers, and a write buffer."""
        ahead, rows, dtype = self.tile.ahead, self.tile.rows, self.results[0].dtype
        left = (DEPTH, rows) if self.turned[0] else (rows, DEPTH)
        right = (self.width, DEPTH) if self.turned[1] else (DEPTH, self.width)
        # Laid out so that the tensor cores read it without conflicts.
        layout = plgpu.TilingTransform((8, self.line)), plgpu.SwizzleTransform(2 * self.line)
        return {
            "left": plgpu.SMEM((ahead, *left), dtype, transforms=layout),
            "right": plgpu.SMEM((ahead, self.together, *right), dtype, transforms=layout),
            "out": plgpu.SMEM((MULTIPLYING, 2, ROWS, WRITTEN), dtype, transforms=layout),
            "full": plgpu.Barrier(num_arrivals=1 + self.together, num_barriers=ahead),
            "empty": plgpu.Barrier(num_arrivals=MULTIPLYING, num_barriers=ahead),
        }

    def each_tile(self, body: Callable[[Any, jax.Array], jax.Array]) -> jax.Array:
        """`at = body(index, at)` for this multiprocessor's tiles; `at` counts steps over all."""
        loop = plgpu.nd_loop(
            (self.units,), collective_axes="multiprocessor", init_carry=jnp.int32(0)
        )
        return loop(lambda info, carry: body(info.index[0], carry))

    def slot(self, at: jax.Array) -> jax.Array:
        """The ring slot of a step."""
        return jax.lax.rem(at, INT(self.tile.ahead))


def _run(plan: _Plan, work: Callable[..., _Work]) -> Callable[..., Any]:
    """The kernel as a function of a table and the arrays.

    Args:
      plan: what it is made of.
      work: (index, table, arrays) gives the tile of that index.
    """

    def body(table, *refs):
        arrays, targets = refs[: -len(plan.results)], refs[-len(plan.results) :]
        me = jax.lax.axis_index("group")
        unit = partial(work, table=table, arrays=arrays)

        def run(**memory):
            pl.when(me == MULTIPLYING)(partial(_fetch_all, plan, unit, memory))
            pl.when(me < MULTIPLYING)(partial(_multiply_all, plan, unit, memory, targets, me))

        pl.run_scoped(run, **plan.memory(), collective_axes="group")

    return plgpu.kernel(
        body,
        out_type=plan.results,
        grid=(_multiprocessors(),),
        grid_names=("multiprocessor",),
        num_threads=MULTIPLYING + 1,
        thread_name="group",
        compiler_params=plgpu.CompilerParams(
            approx_math=True,  # an exponential as one instruction
            lowering_semantics=plgpu.LoweringSemantics.Warpgroup,
        ),
    )


def _multiprocessors() -> int:
    device = jax.devices()[0]
    return device.core_count if device.platform == "gpu" else MULTIPROCESSORS


def _fetch_all(plan, work, memory):
    """The work of the fetching group."""
    plgpu.set_max_registers(40, action="decrease")
    ahead, full, empty = plan.tile.ahead, memory["full"], memory["empty"]

    def fetch_tile(index, carry):
        unit = work(index)

        def step(k, at):
            slot = plan.slot(at)
            pl.when(at >= ahead)(lambda: plgpu.barrier_wait(empty.at[slot]))
            rights = [memory["right"].at[slot, i] for i in range(plan.together)]
            unit.fetch(k, memory["left"].at[slot], rights, full.at[slot])
            return at + 1

        return jax.lax.fori_loop(0, unit.steps, step, carry)

    at = plan.each_tile(fetch_tile)
    for back in range(1, ahead + 1):  # leaves no barrier in the middle of a phase
        slot = plan.slot(at - back)
        pl.when(at >= back)(partial(lambda slot: plgpu.barrier_wait(empty.at[slot]), slot))


def _multiply_all(plan, work, memory, targets, me):
    """The work of each multiplying group."""
    plgpu.set_max_registers(232, action="increase")
    by_rows = plan.tile.rows > ROWS
    corner = (me * ROWS, 0) if by_rows else (0, me * plan.own_width)

    def multiply_tile(index, carry):
        unit = work(index)
        total = plgpu.ACC((ROWS, plan.own_width), jnp.float32)  # pyright: ignore[reportPrivateImportUsage]
        sums = [total] * plan.together
        add = partial(_add_up, plan, memory, corner, unit.steps, carry)
        at, values = pl.run_scoped(add, *sums)
        values = plan.finish(*values) if plan.finish else values
        pl.when(unit.write)(partial(_write, memory["out"].at[me], unit, values, targets, corner))
        return at

    plan.each_tile(multiply_tile)
    plgpu.wait_smem_to_gmem(0, wait_read_only=True)


def _add_up(plan, memory, corner, steps, first, *sums):
    """The sums of one tile, and the index of the next tile's first step."""

    def give_back(at):
        plgpu.barrier_arrive(memory["empty"].at[plan.slot(at)])

    def step(k, at):
        slot = plan.slot(at)
        plgpu.barrier_wait(memory["full"].at[slot])
        for i, total in enumerate(sums):
            left = _part(memory["left"].at[slot], 0, corner[0], ROWS, plan.turned[0])
            right = memory["right"].at[slot, i]
            right = _part(right, 1, corner[1], plan.own_width, plan.turned[1])
            plgpu.wgmma(total, left, right)
        plgpu.wgmma_wait(plan.together)  # those of the step before are done
        pl.when(k > 0)(lambda: give_back(at - 1))
        return at + 1

    at = jax.lax.fori_loop(0, steps, step, first)
    values = [total[...] for total in sums]
    pl.when(steps > 0)(lambda: give_back(at - 1))
    return at, values


def _write(memory, unit, values, targets, corner):
    """Writes a group's part of a tile, some columns at a time by turns from two places."""
    parts = [
        (value[:, c : c + WRITTEN].astype(target.dtype), target, c)
        for value, target in zip(values, targets, strict=False)
        for c in range(0, value.shape[1], WRITTEN)
    ]
    for number, (part, target, c) in enumerate(parts):
        # The copy before last has been read; before an odd number of parts, the last one, too, as
        # the tile before ended with the place that this one begins with.
        all_read = number == 0 and len(parts) % 2 == 1
        plgpu.wait_smem_to_gmem(0 if all_read else 1, wait_read_only=True)
        memory[number % 2] = part
        plgpu.commit_smem()
        place = unit.target(target, corner[0], ROWS, corner[1] + c, WRITTEN)
        plgpu.copy_smem_to_gmem(memory.at[number % 2], place)


def _part(ref, axis, start, size, turned):
    """So many rows (axis 0) or columns (axis 1) of an operand, which may lie transposed."""
    stored = 1 - axis if turned else axis
    cut = pl.ds(start, size) if isinstance(start, int) else pl.ds(pl.multiple_of(start, ROWS), size)
    ref = ref.at[:, cut] if stored else ref.at[cut]
    if not turned:
        return ref
    return ref.transpose((1, 0)) if hasattr(ref, "transpose") else plgpu.transpose_ref(ref, (1, 0))
