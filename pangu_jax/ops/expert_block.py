"""Block-padded experts: dropless, static shapes, near the ideal number of FLOPs.

The pairs of a group are laid out expert by expert, each expert's stretch padded to whole blocks of
b rows. However the pairs fall, ceil(R / b) + E/G - 1 blocks hold R rows, so shapes are static and
nothing is dropped. A scan walks over the blocks, as many at a time as a group has experts, which
fills a chip. The group axis stays a batch axis of every array, and what is looked up by group is
looked up under `vmap`: only then does the partitioner see that a device needs its own groups'
kernels alone. Written as one two-index lookup the same code makes every device fetch every kernel
at every step.

The backward pass is written out: differentiating the scan would add a cotangent of the size of all
kernels at every step, where one expert's slice is meant, and would keep the hidden activations of
every row, which are cheap to recompute.
"""

import math
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from einops import rearrange


class Dispatch(NamedTuple):
    """Positions of every group's rows; s steps of c = E/G blocks of b rows.

    Attributes:
      row: int32 [G, R], the padded row of each pair.
      pair: int32 [s, c, G, b], the pair of each padded row; R where there is none.
      expert: int32 [s, c, G], the expert of each block.
    """

    row: jax.Array
    pair: jax.Array
    expert: jax.Array


def block_rows(rows: int, experts: int) -> int:
    """Rows per block, so that padding `experts` stretches adds less than a quarter of the rows."""
    most = rows / (4 * max(experts - 1, 1))
    return min(512, max(8, 2 ** int(math.log2(max(most, 1)))))


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
    return _blocked(size, x, ids, weights, gate, up, down)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _blocked(size, x, ids, weights, gate, up, down):
    return _forward(size, x, ids, weights, gate, up, down)[0]


def _forward(size, x, ids, weights, gate, up, down):
    dispatch = _dispatch(ids, gate.shape[1], size)
    source = _with_zero(x)

    def body(_, inputs):
        token, weight, expert = inputs
        rows = source.at[token].get(mode="promise_in_bounds")
        *_, scaled = _hidden(rows, weight, _take(gate, expert), _take(up, expert))
        return None, jnp.einsum("cgbf,cgfd->cgbd", scaled, _take(down, expert))

    _, ys = jax.lax.scan(body, None, _inputs(dispatch, weights))
    y = _combine(dispatch, ys, ids.shape[2]).astype(x.dtype)
    return y, (dispatch, x, weights, gate, up, down)


def _backward(size, saved, dy):
    del size
    dispatch, x, weights, gate, up, down = saved
    sources = _with_zero(x), _with_zero(dy)

    def body(grads, inputs):
        token, weight, expert = inputs
        rows, dy = (source.at[token].get(mode="promise_in_bounds") for source in sources)
        kernels = (_take(kernel, expert) for kernel in (gate, up, down))
        dx, dweight, new = _block_gradients(rows, weight, dy, *kernels)
        return tuple(_accumulate(g, expert, n) for g, n in zip(grads, new, strict=True)), (
            dx,
            dweight,
        )

    # In float32 whatever the kernels' type: many blocks may add to one expert.
    start = tuple(jnp.zeros(kernel.shape, jnp.float32) for kernel in (gate, up, down))
    grads, (dxs, dweights) = jax.lax.scan(body, start, _inputs(dispatch, weights))
    k = weights.shape[2]
    dx = _combine(dispatch, dxs, k).astype(x.dtype)
    dweights = rearrange(_by_pair(dispatch, dweights, k), "g t k -> t g k").astype(weights.dtype)
    grads = (g.astype(w.dtype) for g, w in zip(grads, (gate, up, down), strict=True))
    return dx, None, dweights, *grads


_blocked.defvjp(_forward, _backward)


def _hidden(rows, weight, gate, up):
    """Both pre-activations, the hidden units, and the hidden units times the routing weight."""
    a = jnp.einsum("cgbd,cgdf->cgbf", rows, gate)
    b = jnp.einsum("cgbd,cgdf->cgbf", rows, up)
    hidden = jax.nn.silu(a) * b
    return a, b, hidden, hidden * weight[..., None].astype(hidden.dtype)


def _block_gradients(rows, weight, dy, gate, up, down):
    """Gradients of the rows, of their weights, and of the three kernels of each block."""
    a, b, hidden, scaled = _hidden(rows, weight, gate, up)
    dscaled = jnp.einsum("cgbd,cgfd->cgbf", dy, down)
    dweight = (dscaled.astype(jnp.float32) * hidden).sum(-1)
    dhidden = dscaled * weight[..., None].astype(dscaled.dtype)
    sigmoid = jax.nn.sigmoid(a)
    da = dhidden * b * (sigmoid * (1 + a * (1 - sigmoid)))
    db = dhidden * (a * sigmoid)
    dx = jnp.einsum("cgbf,cgdf->cgbd", da, gate) + jnp.einsum("cgbf,cgdf->cgbd", db, up)
    outer = partial(jnp.einsum, preferred_element_type=jnp.float32)
    new = (
        outer("cgbd,cgbf->cgdf", rows, da),
        outer("cgbd,cgbf->cgdf", rows, db),
        outer("cgbf,cgbd->cgfd", scaled, dy),
    )
    return dx, dweight, new


@partial(jax.vmap, in_axes=(0, 1), out_axes=1)
def _take(kernel, expert):
    """Kernel [G, E/G, ...] of expert [c, G] as [c, G, ...]."""
    return kernel.at[expert].get(mode="promise_in_bounds")


@partial(jax.vmap, in_axes=(0, 1, 1))
def _accumulate(total, expert, new):
    """Total [G, E/G, ...] with new [c, G, ...] added at expert [c, G]."""
    return total.at[expert].add(new, mode="promise_in_bounds")


def _dispatch(ids, experts, size) -> Dispatch:
    """Lays out every group's pairs, in a whole number of steps."""
    pairs = rearrange(ids, "t g k -> g (t k)")
    blocks = -(-pairs.shape[1] // size) + experts - 1
    blocks = -(-blocks // experts) * experts
    row, pair, expert = jax.vmap(partial(_lay, experts=experts, size=size, blocks=blocks))(pairs)
    pair = rearrange(pair, "g (s c b) -> s c g b", c=experts, b=size)
    return Dispatch(row, pair, rearrange(expert, "g (s c) -> s c g", c=experts))


def _lay(pairs, *, experts, size, blocks):
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
    return row, pair, jnp.minimum(expert, experts - 1).astype(jnp.int32)


def _with_zero(x):
    """`x` with a row of zeros appended, which rows without a pair read."""
    return jnp.concatenate([x, jnp.zeros((1, *x.shape[1:]), x.dtype)])


def _inputs(dispatch, weights):
    """Scan inputs: token [s, c, G, b] (T for none), weight (0 for none), expert."""
    flat = jnp.pad(rearrange(weights, "t g k -> g (t k)"), ((0, 0), (0, 1)))
    weight = jax.vmap(lambda w, pair: w[pair], in_axes=(0, 2), out_axes=2)(flat, dispatch.pair)
    return dispatch.pair // weights.shape[2], weight, dispatch.expert


def _by_pair(dispatch, values, k):
    """Values [s, c, G, b, ...] of padded rows as [G, T, k, ...] of pairs."""
    _, step, _, size = dispatch.pair.shape
    where = dispatch.row // (step * size), dispatch.row // size % step, dispatch.row % size
    pick = jax.vmap(lambda v, *at: v.at[at].get(mode="promise_in_bounds"), in_axes=(2, 0, 0, 0))
    found = pick(values, *where)
    return rearrange(found, "g (t k) ... -> g t k ...", k=k)


def _combine(dispatch, ys, k):
    """Sums each token's rows in float32: [s, c, G, b, D] to [T, D]."""
    return _by_pair(dispatch, ys, k).astype(jnp.float32).sum((0, 2))
