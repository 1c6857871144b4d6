"""The selective scan on Hopper GPUs, through Pallas' Mosaic back end.

A block of 128 threads owns 128 channels of one sequence: a thread keeps the N states of its channel
in registers and walks through time, so nothing is exchanged between threads and every input is
read once. The tensor copy engine brings chunks of steps into shared memory ahead of their use.

Bound: one exponential per channel, state and step, at a quarter of a lane per clock; for N = 16
that is close to the time of moving u, dt and y.

The backward kernel walks the chunks from the end. It recomputes a chunk's states from the state
at its start, which the forward pass left, and keeps these in shared memory alone. B's and
C's gradients sum over channels, so over threads: products of some steps are laid out as rows in
shared memory, each read back by four neighboring lanes. What is summed over blocks of channels or
over the batch is left to XLA. At N = 16 a block takes 141 KB of shared memory, so a multiprocessor
runs one at a time, four warps, and waits on latencies: about 1400 cycles per step where the
instructions would take some 500. Room for a second block is where this kernel can gain.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

LANES = 128
LOG2E = 1.4426950408889634
ROWS = 64  # of products that are summed at once
PADDING = 8  # floats after each row, so that eight rows lie in different banks


def _parameters():
    return plgpu.CompilerParams(
        approx_math=True,  # exp2 as one instruction, good to 2 units in the last place
        # Threads read what they wrote themselves; where not, commit_smem is said.
        unsafe_no_auto_barriers=True,
        lowering_semantics=plgpu.LoweringSemantics.Lane,
    )


def _interpreter(interpret):
    """The interpreter that models this chip's memories and copies; jax 0.10 hides its name."""
    if not interpret:
        return None
    if hasattr(plgpu, "InterpretGPUParams"):
        return plgpu.InterpretGPUParams()
    from jax._src.pallas.mosaic_gpu.interpret.params import InterpretGPUParams

    return InterpretGPUParams()


def _splat(x):
    return jax.lax.broadcast(x, (LANES,))


def _log1p_exp(x):
    """log(1 + exp(x)) for x <= 0, by the series of the inverse hyperbolic tangent."""
    e = jnp.exp2(x * LOG2E)
    s = e / (e + 2.0)
    s2 = s * s
    series = 1.0 / 13
    for odd in (11, 9, 7, 5, 3, 1):
        series = series * s2 + 1.0 / odd
    return 2.0 * s * series


def _step_size(x, softplus):
    return jnp.maximum(x, 0.0) + _log1p_exp(-jnp.abs(x)) if softplus else x


def _step_slope(x, softplus):
    """The derivative of the step size, the logistic function."""
    if not softplus:
        return jnp.ones_like(x)
    e = jnp.exp2(jnp.abs(x) * -LOG2E)
    return jnp.where(x >= 0.0, 1.0, e) / (1.0 + e)


def _loop(length, step, carry, unroll, reverse=False):
    """`step(t, carry)` for every t; work independent of the carry overlaps within `unroll`."""

    def some(i, carry):
        for j in range(unroll):
            t = i * unroll + j
            carry = step(length - 1 - t if reverse else t, carry)
        return carry

    return jax.lax.fori_loop(0, length // unroll, some, carry)


def _forward_block(
    u, dt, A, B, C, D, bias, start, y, last, *starts, chunks, length, part, softplus, unroll
):
    """What a block of threads does: 128 channels of one sequence, a chunk after the other."""
    n = A.shape[0]
    b, e = jax.lax.axis_index("batch"), jax.lax.axis_index("channels")
    lanes = pl.ds(e * LANES, LANES)
    rates = [A[i, lanes] * LOG2E for i in range(n)]
    skip = D[lanes]
    shift = bias[lanes]
    states = tuple(start[b * n + i, lanes] for i in range(n))

    def chunk(index, u, dt, B, C, states):
        place = b * chunks + index[0]

        def stretch(s, states):
            if starts:
                for i in range(n):
                    starts[0][(place * (length // part) + s) * n + i, lanes] = states[i]
            return _loop(part, lambda t, h: step(s * part + t, h), states, unroll)

        def step(t, states):
            x, d = u[t, :], _step_size(dt[t, :] + shift, softplus)
            dx, out, after = d * x, skip * x, []
            for i in range(n):
                h = jnp.exp2(d * rates[i]) * states[i] + dx * _splat(B[t, i])
                out = out + h * _splat(C[t, i])
                after.append(h)
            # From registers: a warp's store is whole lines, and nobody waits for it.
            y[place * length + t, lanes] = out
            return tuple(after)

        states = jax.lax.fori_loop(0, length // part, stretch, states)
        # Nobody may still read this chunk when the next is copied over it.
        plgpu.commit_smem()
        return states

    wide = plgpu.BlockSpec((length, LANES), lambda i: (b * chunks + i, e))
    narrow = plgpu.BlockSpec((length, n), lambda i: (b * chunks + i, 0))
    states = plgpu.emit_pipeline(
        chunk,
        grid=(chunks,),
        in_specs=[wide, wide, narrow, narrow],
        max_concurrent_steps=min(3, chunks),
        init_carry=states,
    )(u, dt, B, C)
    for i in range(n):
        last[b * n + i, lanes] = states[i]


def forward(
    u: jax.Array,
    dt: jax.Array,
    A: jax.Array,
    B: jax.Array,
    C: jax.Array,
    D: jax.Array,
    bias: jax.Array,
    state: jax.Array,
    *,
    softplus: bool,
    length: int,
    kept: int | None = None,
    unroll: int = 4,
    interpret: bool = False,
) -> tuple[jax.Array, jax.Array, jax.Array | None]:
    """Runs the scan; T must be a multiple of `length`, E of 128, N of 4; all float32.

    Args:
      u: [B, T, E].
      dt: [B, T, E].
      A: [N, E].
      B: [B, T, N].
      C: [B, T, N].
      D: [E].
      bias: [E].
      state: [B, N, E].
      softplus: whether dt goes through softplus.
      length: steps of a chunk.
      kept: None, or after how many steps to return states, too; divides `length`.
      unroll: steps that the compiler may interleave; divides `kept` or `length`.
      interpret: whether to interpret the kernel, for machines without such a GPU.

    Returns:
      y [B, T, E], the last state [B, N, E], and the states before every `kept` steps
      [B, T / kept, N, E] or None.
    """
    batch, steps, channels = u.shape
    n = A.shape[0]
    part = kept or length
    f32 = partial(jax.ShapeDtypeStruct, dtype=jnp.float32)

    def body(*refs):
        sizes = {"chunks": steps // length, "length": length, "part": part}
        _forward_block(*refs, **sizes, softplus=softplus, unroll=unroll)

    out = [f32((batch * steps, channels)), f32((batch * n, channels))]
    kernel = plgpu.kernel(
        body,
        out_type=out + [f32((batch * steps // part * n, channels))] * bool(kept),
        grid=(batch, channels // LANES),
        grid_names=("batch", "channels"),
        compiler_params=_parameters(),
        interpret=_interpreter(interpret),
    )
    y, last, *starts = kernel(_flat(u), _flat(dt), A, _flat(B), _flat(C), D, bias, _flat(state))
    kept_states = starts[0].reshape(batch, -1, n, channels) if kept else None
    return y.reshape(u.shape), last.reshape(state.shape), kept_states


def _backward_block(
    u, dt, A, B, C, D, bias, starts, dy, dlast, du, ddt, dA, dBC, dD, dbias, dstart,
    kept, rows, *, chunks, length, softplus, unroll, steps_ahead, interpret,
):  # fmt: skip
    """What a block of threads does: 128 channels of one sequence, from the last chunk on."""
    n = A.shape[0]
    group = ROWS // (2 * n)  # steps whose products fill the rows
    b, e = jax.lax.axis_index("batch"), jax.lax.axis_index("channels")
    lanes = pl.ds(e * LANES, LANES)
    final = b * chunks + chunks - 1
    rates = [A[i, lanes] * LOG2E for i in range(n)]
    skip, shift = D[lanes], bias[lanes]

    def chunk(index, u, dt, dy, B, C, start, carry):
        place = (final - index[0]) * length

        def again(t, states):
            d = _step_size(dt[t, :] + shift, softplus)
            dx, after = d * u[t, :], []
            for i in range(n):
                kept[t * n + i, :] = states[i]
                after.append(jnp.exp2(d * rates[i]) * states[i] + dx * _splat(B[t, i]))
            return tuple(after)

        _loop(length, again, tuple(start[i, :] for i in range(n)), unroll)

        def step(t, row, carry):
            flow, slopes, dskip, dshift = carry
            x, raw, wants = u[t, :], dt[t, :] + shift, dy[t, :]
            d = _step_size(raw, softplus)
            dx = d * x
            entered, rate_sum = jnp.zeros_like(x), jnp.zeros_like(x)
            new_flow, new_slopes = [], []
            for i in range(n):
                decay = jnp.exp2(d * rates[i])
                decayed = decay * kept[t * n + i, :]
                enter = _splat(B[t, i])
                wanted = flow[i] + wants * _splat(C[t, i])
                rows[row + i, pl.ds(0, LANES)] = wanted * dx
                rows[row + n + i, pl.ds(0, LANES)] = wants * (decayed + dx * enter)
                entered = entered + wanted * enter
                rate = wanted * decayed
                rate_sum = rate_sum + rate * rates[i]
                new_slopes.append(slopes[i] + rate * d)
                new_flow.append(wanted * decay)
            du[place + t, lanes] = entered * d + skip * wants
            draw = (entered * x + rate_sum * (1 / LOG2E)) * _step_slope(raw, softplus)
            ddt[place + t, lanes] = draw
            return tuple(new_flow), tuple(new_slopes), dskip + wants * x, dshift + draw

        def steps_of_rows(i, carry):
            first = length - (i + 1) * group
            for j in reversed(range(group)):
                carry = step(first + j, j * 2 * n, carry)
            plgpu.commit_smem()  # a barrier: rows are read by other threads
            sums = _rows(rows, interpret).sum(1)
            dBC[e, pl.ds((place + first) * 2 * n, ROWS)] = sums
            plgpu.commit_smem()  # and written again
            return carry

        return jax.lax.fori_loop(0, length // group, steps_of_rows, carry)

    wide = plgpu.BlockSpec((length, LANES), lambda i: (final - i, e))
    narrow = plgpu.BlockSpec((length, n), lambda i: (final - i, 0))
    nothing = jnp.zeros((LANES,), jnp.float32)
    if not interpret:  # a constant has no layout yet, the sums that it starts have
        nothing = plgpu.layout_cast(nothing, plgpu.Layout.WG_STRIDED((LANES,), vec_size=1))
    flow = tuple(dlast[b * n + i, lanes] for i in range(n))
    flow, slopes, dskip, dshift = plgpu.emit_pipeline(
        chunk,
        grid=(chunks,),
        in_specs=[wide, wide, wide, narrow, narrow,
                  plgpu.BlockSpec((n, LANES), lambda i: (final - i, e))],
        max_concurrent_steps=min(steps_ahead, chunks),
        init_carry=(flow, (nothing,) * n, nothing, nothing),
    )(u, dt, dy, B, C, starts)  # fmt: skip
    for i in range(n):
        dA[b * n + i, lanes] = slopes[i]
        dstart[b * n + i, lanes] = flow[i]
    dD[b, lanes], dbias[b, lanes] = dskip, dshift


def backward(
    u: jax.Array,
    dt: jax.Array,
    A: jax.Array,
    B: jax.Array,
    C: jax.Array,
    D: jax.Array,
    bias: jax.Array,
    starts: jax.Array,
    dy: jax.Array,
    dlast: jax.Array,
    *,
    softplus: bool,
    length: int,
    unroll: int = 4,
    steps_ahead: int = 2,
    interpret: bool = False,
) -> tuple[jax.Array, ...]:
    """Gradients of `forward`; `length` is its `kept`, the rest as there.

    Args:
      u: [B, T, E].
      dt: [B, T, E].
      A: [N, E], N a power of two up to 32.
      B: [B, T, N].
      C: [B, T, N].
      D: [E].
      bias: [E].
      starts: [B, T / length, N, E], the states at the start of each chunk.
      dy: [B, T, E].
      dlast: [B, N, E], of the last state.
      softplus: whether dt goes through softplus.
      length: steps of a chunk.
      unroll: steps of the recomputation that the compiler may interleave.
      steps_ahead: chunks in shared memory at once.
      interpret: whether to interpret the kernel, for machines without such a GPU.

    Returns:
      The gradients of u, dt, A, B, C, D, bias and of the state before the first step.
    """
    batch, steps, channels = u.shape
    n, blocks = A.shape[0], channels // LANES
    f32 = partial(jax.ShapeDtypeStruct, dtype=jnp.float32)

    def body(*refs):
        sizes = {"chunks": steps // length, "length": length, "steps_ahead": steps_ahead}
        _backward_block(*refs, **sizes, softplus=softplus, unroll=unroll, interpret=interpret)

    wide, states = f32((batch * steps, channels)), f32((batch * n, channels))
    narrow, row = f32((blocks, batch * steps * 2 * n)), f32((batch, channels))
    kernel = plgpu.kernel(
        body,
        out_type=[wide, wide, states, narrow, row, row, states],
        scratch_types=[
            plgpu.SMEM((length * n, LANES), jnp.float32),
            plgpu.SMEM((ROWS, LANES + PADDING), jnp.float32),
        ],
        grid=(batch, blocks),
        grid_names=("batch", "channels"),
        compiler_params=_parameters(),
        interpret=_interpreter(interpret),
    )
    du, ddt, dA, dBC, dD, dbias, dstart = kernel(
        _flat(u), _flat(dt), A, _flat(B), _flat(C), D, bias, _flat(starts), _flat(dy), _flat(dlast)
    )
    dB, dC = jnp.moveaxis(dBC.sum(0).reshape(batch, steps, 2, n), 2, 0)
    states = (batch, n, channels)
    return (
        du.reshape(u.shape), ddt.reshape(u.shape), dA.reshape(states).sum(0), dB, dC,
        dD.sum(0), dbias.sum(0), dstart.reshape(states),
    )  # fmt: skip


def _flat(x):
    return x.reshape(-1, x.shape[-1])


def _rows(rows, interpret):
    """The products, four lanes per row: the matrix unit's layout, whose rows are cheap to sum."""
    if interpret:
        return rows[:, pl.ds(0, LANES)]
    # jax 0.10 wants an index beside the reference, 0.11 warns about one.
    index = [()] if jax.__version_info__ < (0, 11) else []
    part = rows.at[:, pl.ds(0, LANES)]
    return plgpu.load(part, *index, layout=plgpu.Layout.WGMMA, optimized=False)
