"""Block-padded experts: dropless, static shapes, about the ideal number of FLOPs.

The pairs of a group are laid out expert by expert, each expert's stretch padded to whole blocks of
b rows. However the pairs fall, ceil(R / b) + E/G - 1 blocks hold R rows, so shapes are static and
nothing is dropped. A scan walks over the blocks, some at a time; the group axis stays in front of
every array, so that it can be split over devices.

The backward pass is written out: differentiating the scan would add a cotangent of the size of all
kernels at every step, where one expert's slice is meant, and would keep the hidden activations of
every row, which are cheap to recompute.
"""

import math
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp


class Plan(NamedTuple):
    """Where each pair's row lies, for one group or, stacked, for all.

    Attributes:
      row: int32 [R], the padded row of each pair.
      pair: int32 [B * b], the pair of each padded row; R where there is none.
      expert: int32 [B], the expert of each block.
    """

    row: jax.Array
    pair: jax.Array
    expert: jax.Array


def block_rows(rows: int, experts: int) -> int:
    """Rows of a block: the padding of `experts` stretches stays under a quarter of the rows."""
    most = rows / (4 * max(experts - 1, 1))
    return min(512, max(8, 2 ** int(math.log2(max(most, 1)))))


def blocks_per_step(platform: str, experts: int) -> int:
    """How many blocks a group computes at once: on CPU one, elsewhere enough to fill the chip."""
    return 1 if platform == "cpu" else experts


def block(
    x: jax.Array,
    ids: jax.Array,
    weights: jax.Array,
    gate: jax.Array,
    up: jax.Array,
    down: jax.Array,
) -> jax.Array:
    """`ops.expert_mlp` in blocks; see there for the arguments."""
    size = block_rows(ids.shape[0] * ids.shape[2], gate.shape[1])
    step = blocks_per_step(jax.default_backend(), gate.shape[1])
    return _block(size, step, x, ids, weights, gate, up, down)


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _block(size, step, x, ids, weights, gate, up, down):
    plan = _plans(ids, gate.shape[1], size, step)
    xs, ws = _rows(plan, x, weights, size, step)

    def forward(_, inputs):
        rows, weight, expert = inputs
        _, _, scaled = _hidden(rows, weight, _take(gate, expert), _take(up, expert))
        return None, jnp.einsum("cgbf,cgfd->cgbd", scaled, _take(down, expert))

    _, ys = jax.lax.scan(forward, None, (xs, ws, _steps(plan.expert, step)))
    return _combine(plan, ys, ids.shape).astype(x.dtype)


def _block_forward(size, step, x, ids, weights, gate, up, down):
    return _block(size, step, x, ids, weights, gate, up, down), (x, ids, weights, gate, up, down)


def _block_backward(size, step, saved, dy):
    x, ids, weights, gate, up, down = saved
    plan = _plans(ids, gate.shape[1], size, step)
    xs, ws = _rows(plan, x, weights, size, step)
    dys, _ = _rows(plan, dy, weights, size, step)
    group = jnp.arange(gate.shape[0])

    def backward(kernels, inputs):
        rows, weight, expert, dy = inputs
        g, u, d = (_take(kernel, expert) for kernel in (gate, up, down))
        (a, b), hidden, scaled = _hidden(rows, weight, g, u)
        dscaled = jnp.einsum("cgbd,cgfd->cgbf", dy, d)
        dweight = (dscaled.astype(jnp.float32) * hidden).sum(-1)
        dhidden = dscaled * weight[..., None].astype(dscaled.dtype)
        sigmoid = jax.nn.sigmoid(a)
        da = dhidden * b * (sigmoid * (1 + a * (1 - sigmoid)))
        db = dhidden * (a * sigmoid)
        dx = jnp.einsum("cgbf,cgdf->cgbd", da, g) + jnp.einsum("cgbf,cgdf->cgbd", db, u)
        # Accumulated in float32 whatever the kernels' type: many blocks may add to one expert.
        new = (
            jnp.einsum("cgbd,cgbf->cgdf", rows, da, preferred_element_type=jnp.float32),
            jnp.einsum("cgbd,cgbf->cgdf", rows, db, preferred_element_type=jnp.float32),
            jnp.einsum("cgbf,cgbd->cgfd", scaled, dy, preferred_element_type=jnp.float32),
        )
        kernels = tuple(k.at[group, expert].add(n) for k, n in zip(kernels, new, strict=True))
        return kernels, (dx, dweight)

    start = tuple(jnp.zeros(kernel.shape, jnp.float32) for kernel in (gate, up, down))
    experts = _steps(plan.expert, step)
    kernels, (dxs, dws) = jax.lax.scan(backward, start, (xs, ws, experts, dys))
    dx = _combine(plan, dxs, ids.shape).astype(x.dtype)
    dw = jnp.take_along_axis(_unstep(dws), plan.row, axis=1)  # [G, T * k]
    dw = dw.reshape(ids.shape[1], ids.shape[0], ids.shape[2]).swapaxes(0, 1)
    dgate, dup, ddown = (
        new.astype(kernel.dtype) for new, kernel in zip(kernels, (gate, up, down), strict=True)
    )
    return dx, None, dw.astype(weights.dtype), dgate, dup, ddown


_block.defvjp(_block_forward, _block_backward)


def _hidden(rows, weight, gate, up):
    """Pre-activations, hidden units, and hidden units times the routing weight."""
    a = jnp.einsum("cgbd,cgdf->cgbf", rows, gate)
    b = jnp.einsum("cgbd,cgdf->cgbf", rows, up)
    hidden = jax.nn.silu(a) * b
    return (a, b), hidden, hidden * weight[..., None].astype(hidden.dtype)


def _take(kernel, expert):
    """Kernel [G, E/G, ...] at expert [c, G] as [c, G, ...]."""
    return kernel[jnp.arange(kernel.shape[0]), expert]


def _plans(ids, experts, size, step) -> Plan:
    """A plan for each group, its blocks rounded up to whole steps."""
    pairs = ids.swapaxes(0, 1).reshape(ids.shape[1], -1)  # [G, T * k]
    blocks = -(-pairs.shape[1] // size) + experts - 1
    blocks = -(-blocks // step) * step
    return jax.vmap(partial(_plan, experts=experts, size=size, blocks=blocks))(pairs)


def _plan(pairs, *, experts, size, blocks) -> Plan:
    rows = pairs.shape[0]
    counts = jnp.bincount(pairs, length=experts)
    needed = -(-counts // size)
    ends = jnp.cumsum(needed)
    order = jnp.argsort(pairs, stable=True)
    # rank inside the expert = place in sorted order less where the expert's stretch starts
    rank = jnp.zeros(rows, jnp.int32).at[order].set(jnp.arange(rows, dtype=jnp.int32))
    rank = rank - (jnp.cumsum(counts) - counts)[pairs]
    row = (ends - needed)[pairs] * size + rank
    pair = jnp.full(blocks * size, rows, jnp.int32).at[row].set(jnp.arange(rows, dtype=jnp.int32))
    expert = jnp.searchsorted(ends, jnp.arange(blocks), side="right")
    return Plan(row, pair, jnp.minimum(expert, experts - 1).astype(jnp.int32))


def _rows(plan, x, weights, size, step):
    """Rows [steps, c, G, b, D] of `x` and weights [steps, c, G, b]; zero where there is no pair."""
    k = weights.shape[2]
    flat = weights.swapaxes(0, 1).reshape(weights.shape[1], -1)
    ws = jax.vmap(lambda w, pair: w.at[pair].get(mode="fill", fill_value=0))(flat, plan.pair)
    xs = x.at[plan.pair // k].get(mode="fill", fill_value=0)  # no pair: row T, out of bounds
    xs = xs.reshape(xs.shape[0], -1, size, xs.shape[-1])
    return _steps(xs, step), _steps(ws.reshape(ws.shape[0], -1, size), step)


def _steps(x, step):
    """[G, B, ...] to [steps, c, G, ...]."""
    x = x.swapaxes(0, 1)
    return x.reshape(-1, step, *x.shape[1:])


def _unstep(x):
    """[steps, c, G, b, ...] to [G, B * b, ...]."""
    x = x.reshape(-1, *x.shape[2:]).swapaxes(0, 1)
    return x.reshape(x.shape[0], -1, *x.shape[3:])


def _combine(plan, ys, shape):
    """Each token's rows, summed in float32: [steps, c, G, b, D] to [T, D]."""
    tokens, groups, k = shape
    rows = jnp.take_along_axis(_unstep(ys), plan.row[..., None], axis=1)
    rows = rows.reshape(groups, tokens, k, -1)
    return rows.astype(jnp.float32).sum((0, 2))
