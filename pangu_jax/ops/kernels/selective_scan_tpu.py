"""The selective scan on TPUs.

A step of one sequence is laid out as [E / 128, 128], so eight rows of 128 channels fill a vector
register; the N states of these are N registers, and nothing crosses lanes. B and C are scalars in
their own memory. The grid walks a sequence's chunks last and in order, the state waiting in scratch
memory between them.

The backward kernel walks them from the end and recomputes the states of a chunk from the one
that the forward pass left. B's and C's gradients are summed over rows of channels at once, over
lanes for a whole chunk, over blocks by XLA.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

LANES = 128
ROWS = 8

F32 = partial(jax.ShapeDtypeStruct, dtype=jnp.float32)


def _step_size(x, softplus):
    return jnp.maximum(x, 0.0) + jnp.log1p(jnp.exp(-jnp.abs(x))) if softplus else x


def _tiled(x):
    """Reshapes the last axis into rows of lanes."""
    return x.reshape(*x.shape[:-1], -1, LANES)


def _parameters():
    return pltpu.CompilerParams(dimension_semantics=("parallel", "parallel", "arbitrary"))


def _specs(n, rows, length, time):
    """Blocks of a grid (batch, blocks of channels, chunks); `time` maps the last to a chunk."""
    return {
        "wide": pl.BlockSpec((None, length, rows, LANES), lambda b, e, i: (b, time(i), e, 0)),
        "narrow": pl.BlockSpec(
            (None, length, n), lambda b, e, i: (b, time(i), 0), memory_space=pltpu.SMEM
        ),
        "rates": pl.BlockSpec((n, rows, LANES), lambda b, e, i: (0, e, 0)),
        "row": pl.BlockSpec((rows, LANES), lambda b, e, i: (e, 0)),
        "state": pl.BlockSpec((None, n, rows, LANES), lambda b, e, i: (b, 0, e, 0)),
    }


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
    interpret: bool = False,
) -> tuple[jax.Array, jax.Array, jax.Array | None]:
    """Runs the scan; T must be a multiple of `length`, E of 128 (1024 above that); all float32.

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
      length: steps of a chunk, a multiple of 8.
      kept: None, or after how many steps to return states, too; divides `length`.
      interpret: whether to interpret the kernel, for machines without a TPU.

    Returns:
      y [B, T, E], the last state [B, N, E], and the states before every `kept` steps
      [B, T / kept, N, E] or None.
    """
    batch, steps, channels = u.shape
    n, part = A.shape[0], kept or length
    rows = min(ROWS, channels // LANES)
    specs = _specs(n, rows, length, lambda i: i)

    def body(u, dt, A, B, C, D, bias, start, y, last, *rest):
        starts, held = rest[:-1], rest[-1]

        @pl.when(pl.program_id(2) == 0)
        def _():
            held[...] = start[...]

        def step(t, states):
            x, d = u[t], _step_size(dt[t] + bias[...], softplus)
            dx, out, after = d * x, D[...] * x, []
            for i in range(n):
                h = jnp.exp(d * A[i]) * states[i] + dx * B[t, i]
                out = out + h * C[t, i]
                after.append(h)
            y[t] = out
            return tuple(after)

        states = tuple(held[i] for i in range(n))
        for s in range(length // part):
            if kept:
                for i in range(n):
                    starts[0][s, i] = states[i]
            states = jax.lax.fori_loop(s * part, (s + 1) * part, step, states)
        for i in range(n):
            held[i] = last[i] = states[i]

    shape = (channels // LANES, LANES)
    stretch = pl.BlockSpec((None, length // part, n, rows, LANES), lambda b, e, i: (b, i, 0, e, 0))
    wide, narrow, row = specs["wide"], specs["narrow"], specs["row"]
    out = pl.pallas_call(
        body,
        grid=(batch, shape[0] // rows, steps // length),
        in_specs=[wide, wide, specs["rates"], narrow, narrow, row, row, specs["state"]],
        out_specs=[wide, specs["state"]] + [stretch] * bool(kept),
        out_shape=[F32((batch, steps, *shape)), F32((batch, n, *shape))]
        + [F32((batch, steps // part, n, *shape))] * bool(kept),
        scratch_shapes=[pltpu.VMEM((n, rows, LANES), jnp.float32)],
        compiler_params=_parameters(),
        interpret=interpret,
    )(*map(_tiled, (u, dt, A)), B, C, *map(_tiled, (D, bias, state)))
    y, last, *starts = (x.reshape(*x.shape[:-2], channels) for x in out)
    return y, last, starts[0] if kept else None


def _backward_block(
    u, dt, A, B, C, D, bias, starts, dy, dlast, du, ddt, dA, dBC, dD, dbias, flow,
    before, products, *, softplus,
):  # fmt: skip
    """One chunk of one block of channels; the grid comes to a sequence's chunks last first."""
    length, n = before.shape[:2]

    @pl.when(pl.program_id(2) == 0)
    def _():
        flow[...] = dlast[...]
        dA[...] = jnp.zeros_like(dA)
        dD[...] = jnp.zeros_like(dD)
        dbias[...] = jnp.zeros_like(dbias)

    def again(t, states):
        d = _step_size(dt[t] + bias[...], softplus)
        after = []
        for i in range(n):
            before[t, i] = states[i]
            after.append(jnp.exp(d * A[i]) * states[i] + d * u[t] * B[t, i])
        return tuple(after)

    jax.lax.fori_loop(0, length, again, tuple(starts[i] for i in range(n)))

    def step(s, _):
        t = length - 1 - s
        x, raw, wants = u[t], dt[t] + bias[...], dy[t]
        d = _step_size(raw, softplus)
        dx = d * x
        entered, rate_sum = jnp.zeros_like(x), jnp.zeros_like(x)
        for i in range(n):
            decay = jnp.exp(d * A[i])
            decayed = decay * before[t, i]
            wanted = flow[i] + wants * C[t, i]
            products[t, i] = (wanted * dx).sum(0)
            products[t, n + i] = (wants * (decayed + dx * B[t, i])).sum(0)
            entered += wanted * B[t, i]
            rate = wanted * decayed
            rate_sum += rate * A[i]
            dA[i] += rate * d
            flow[i] = wanted * decay
        du[t] = entered * d + D[...] * wants
        draw = entered * x + rate_sum
        draw = draw * jax.nn.sigmoid(raw) if softplus else draw
        ddt[t] = draw
        dD[...] += wants * x
        dbias[...] += draw
        return 0

    jax.lax.fori_loop(0, length, step, 0)
    dBC[...] = products[...].sum(-1)


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
    interpret: bool = False,
) -> tuple[jax.Array, ...]:
    """Gradients of `forward`; `length` is its `kept`, the rest as there.

    Args:
      u: [B, T, E].
      dt: [B, T, E].
      A: [N, E].
      B: [B, T, N].
      C: [B, T, N].
      D: [E].
      bias: [E].
      starts: [B, T / length, N, E], the states at the start of each chunk.
      dy: [B, T, E].
      dlast: [B, N, E], of the last state.
      softplus: whether dt goes through softplus.
      length: steps of a chunk, a multiple of 8.
      interpret: whether to interpret the kernel, for machines without a TPU.

    Returns:
      The gradients of u, dt, A, B, C, D, bias and of the state before the first step.
    """
    batch, steps, channels = u.shape
    n, chunks = A.shape[0], steps // length
    rows = min(ROWS, channels // LANES)
    specs = _specs(n, rows, length, lambda i: chunks - 1 - i)

    shape = (channels // LANES, LANES)
    blocks = shape[0] // rows
    wide, narrow, row, state = (specs[name] for name in ("wide", "narrow", "row", "state"))
    start = pl.BlockSpec((None, None, n, rows, LANES), lambda b, e, i: (b, chunks - 1 - i, 0, e, 0))
    sums = pl.BlockSpec((None, None, length, 2 * n), lambda b, e, i: (e, b, chunks - 1 - i, 0))
    per_row = pl.BlockSpec((None, rows, LANES), lambda b, e, i: (b, e, 0))
    full, states, each = (F32((batch, *x, *shape)) for x in ((steps,), (n,), ()))
    du, ddt, dA, dBC, dD, dbias, dstart = pl.pallas_call(
        partial(_backward_block, softplus=softplus),
        grid=(batch, blocks, chunks),
        in_specs=[wide, wide, specs["rates"], narrow, narrow, row, row, start, wide, state],
        out_specs=[wide, wide, state, sums, per_row, per_row, state],
        out_shape=[full, full, states, F32((blocks, batch, steps, 2 * n)), each, each, states],
        scratch_shapes=[
            pltpu.VMEM((length, n, rows, LANES), jnp.float32),
            pltpu.VMEM((length, 2 * n, LANES), jnp.float32),
        ],
        compiler_params=_parameters(),
        interpret=interpret,
    )(*map(_tiled, (u, dt, A)), B, C, *map(_tiled, (D, bias, starts, dy, dlast)))
    dBC = dBC.sum(0)
    dA, dD, dbias = (x.sum(0).reshape(*x.shape[1:-2], channels) for x in (dA, dD, dbias))
    dstart = dstart.reshape(batch, n, channels)
    return (
        du.reshape(u.shape), ddt.reshape(u.shape), dA, dBC[..., :n], dBC[..., n:], dD, dbias,
        dstart,
    )  # fmt: skip
