"""Experts in sequence, for CPUs: dropless, with little padding.

Pairs of token and expert are sorted by expert. A loop gathers some of an expert's rows, multiplies
them by its kernels and adds them to their tokens at once, so no array of all pairs is as wide as
the model: such an array leaves the caches, and goes to new pages of memory at every call.

Loops have static shapes, and products of few rows spend their time on packing the kernel. So an
expert takes its rows in as few equal blocks as there can be, of the smallest of some sizes that
holds them, and there is a loop for each size, of no step for all sizes but one. `jax.lax.switch`
would copy what the blocks add to at every step.

The backward pass is written out: differentiating would keep every step's state. It keeps both
pre-activations of all pairs and gathers the rest again.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from einops import rearrange

from pangu_jax.ops.expert_sorted import Order, sort_pairs, through_swiglu

SIZES = 5  # of blocks; compiling takes longer with each
PER_MEAN = 4  # smallest blocks to an expert's mean rows; half a block per expert is wasted
MULTIPLE = 8  # of rows: what vector registers hold
MOST = 256  # rows of the smallest block; with more rows per expert, several blocks are as fast


def loop(
    x: jax.Array,
    ids: jax.Array,
    weights: jax.Array,
    gate: jax.Array,
    up: jax.Array,
    down: jax.Array,
) -> jax.Array:
    """`ops.expert_mlp` expert by expert; see there for the arguments."""
    kernels = (rearrange(kernel, "g e ... -> (g e) ...") for kernel in (gate, up, down))
    order = sort_pairs(ids, jax.lax.stop_gradient(weights), gate.shape[1])
    return _looped(x, weights, order, *kernels)


def block_sizes(rows: int, experts: int) -> tuple[int, ...]:
    """Allowed block sizes in rows: multiples of the smallest.

    Args:
      rows: how many rows there are for all experts.
      experts: E.
    """
    mean = -(-rows // (experts * PER_MEAN * MULTIPLE)) * MULTIPLE
    unit = min(max(mean, MULTIPLE), MOST)
    return tuple(n * unit for n in range(1, SIZES + 1) if n == 1 or (n - 1) * unit < rows)


def split(count: jax.Array, sizes: tuple[int, ...]) -> tuple[jax.Array, jax.Array]:
    """How many blocks an expert of `count` rows takes, and which of the `sizes` they have."""
    blocks = -(-count // sizes[-1])
    units = -(-count // (jnp.maximum(blocks, 1) * sizes[0]))
    return blocks, units * sizes[0]


@jax.custom_vjp
def _looped(x, weights, order, gate, up, down):
    del weights  # those of `order`
    return _outputs(x, order, gate, up, down)[0]


def _forward(x, weights, order, gate, up, down):
    y, a, b = _outputs_kept(x, order, gate, up, down)
    return y, (x, weights, order, gate, up, down, a, b)


def _backward(saved, dy):
    x, weights, order, gate, up, down, a, b = saved
    dx, dweight, *grads = _gradients(x, order, gate, up, down, a, b, dy)
    dweight = dweight.at[order.place].get(mode="promise_in_bounds")
    return dx, dweight.reshape(weights.shape), None, *grads


_looped.defvjp(_forward, _backward)


# Loops of so many steps as the data say would become loops over all that is mapped, which copy
# what they add to at every step; several seeds are computed one after the other instead.
@jax.custom_batching.sequential_vmap
def _outputs(x, order, gate, up, down):
    return _run_forward(x, order, gate, up, down, keep=False)


@jax.custom_batching.sequential_vmap
def _outputs_kept(x, order, gate, up, down):
    return _run_forward(x, order, gate, up, down, keep=True)


def _run_forward(x, order, gate, up, down, keep):
    """The tokens' outputs [T, D], and with `keep` both pre-activations [R and a block, F]."""

    def block(state, kernels, rows):
        y, *kept = state
        gate, up, down = kernels
        inputs = rows.of(x)
        a, b = _dot("bd,df->bf", inputs, gate), _dot("bd,df->bf", inputs, up)
        hidden = (rows.weight * jax.nn.silu(a) * b).astype(x.dtype)
        y = rows.add(y, _dot("bf,fd->bd", hidden, down))
        return y, *(rows.put(k, v) for k, v in zip(kept, (a, b), strict=False))

    sizes = block_sizes(order.token.size, gate.shape[0])
    units = jnp.zeros((order.token.size + sizes[-1], gate.shape[2]), x.dtype)
    start = jnp.zeros(x.shape, jnp.float32), *([units, units] if keep else [])
    y, *kept = _by_expert(block, sizes, start, order, x.shape[0], (gate, up, down))
    return y.astype(x.dtype), *kept


@jax.custom_batching.sequential_vmap
def _gradients(x, order, gate, up, down, a, b, dy):
    """Gradients of the tokens, of each row's weight [R and a block], and of the kernels."""

    def block(state, kernels, rows):
        dx, dweight, *grads = state
        expert, gate, up, down = kernels
        inputs, dout = rows.of(x), rows.of(dy)
        unweighted = _dot("bd,fd->bf", dout, down)
        scaled, da, db, new = through_swiglu(rows.cut(a), rows.cut(b), rows.weight, unweighted)
        drows = _dot("bf,df->bd", da, gate) + _dot("bf,df->bd", db, up)
        outer = partial(_dot, "bd,bf->df")
        products = outer(inputs, da), outer(inputs, db), outer(scaled, dout)
        # Added in place; a sum of one expert, stacked by the scan, would be moved twice more.
        grads = (g.at[expert].add(p) for g, p in zip(grads, products, strict=True))
        return rows.add(dx, drows), rows.put(dweight, new), *grads

    kernels = gate, up, down
    sizes = block_sizes(order.token.size, gate.shape[0])
    shapes = x.shape, (order.token.size + sizes[-1],), *(k.shape for k in kernels)
    start = tuple(jnp.zeros(shape, jnp.float32) for shape in shapes)
    given = jnp.arange(gate.shape[0]), *kernels
    dx, dweight, *grads = _by_expert(block, sizes, start, order, x.shape[0], given)
    grads = (g.astype(k.dtype) for g, k in zip(grads, kernels, strict=True))
    return dx.astype(x.dtype), dweight, *grads


class _Rows(NamedTuple):
    """A block of b rows.

    Attributes:
      at: the first row's number.
      own: bool [b], whether a row is the expert's; the others are no token's.
      token: int32 [b], the token of each row, or T.
      weight: float32 [b, 1].
    """

    at: jax.Array
    own: jax.Array
    token: jax.Array
    weight: jax.Array

    def cut(self, whole):
        """The block of an array of rows; zeros for other experts' rows."""
        return jnp.where(self.own[:, None], _slice(whole, self.at, self.own.size), 0)

    def put(self, whole, part):
        """The array with the block written; later blocks must be written after it."""
        part = part.astype(whole.dtype)
        return jax.lax.dynamic_update_slice_in_dim(whole, part, self.at, 0)

    def of(self, x):
        """The rows' tokens; zeros where there are none, so that no inf becomes NaN."""
        return x.at[self.token].get(mode="fill", fill_value=0)

    def add(self, total, part):
        """The tokens' sums [T, D] plus the block's rows."""
        return total.at[self.token].add(part, mode="drop")


def _rows(order: Order, tokens: int, at: jax.Array, left: jax.Array, size: int) -> _Rows:
    """`size` rows from row `at`, of which the first `left` are the expert's."""
    own = jnp.arange(size) < left
    token = jnp.where(own, _slice(order.token, at, size), tokens)
    return _Rows(at, own, token, _slice(order.weight, at, size)[:, None])


def _by_expert(block, sizes, start, order, tokens, kernels):
    """The state after all blocks of all experts.

    Args:
      block: a function of the state, one expert's `kernels` and `_Rows`; gives the next state.
      sizes: those of blocks.
      start: the state before.
      order: the sorted pairs.
      tokens: T.
      kernels: [E, ...] each.
    """
    more = (0, sizes[-1])  # the last block may reach over the end
    padded = order._replace(token=jnp.pad(order.token, more), weight=jnp.pad(order.weight, more))

    def expert(state, inputs):
        own, begin, count = inputs
        blocks, chosen = split(count, sizes)
        for size in sizes:

            def step(number, state, size=size):
                done = number * size
                return block(state, own, _rows(padded, tokens, begin + done, count - done, size))

            state = jax.lax.fori_loop(0, jnp.where(chosen == size, blocks, 0), step, state)
        return state, None

    begins = jnp.cumsum(order.counts) - order.counts
    return jax.lax.scan(expert, start, (kernels, begins, order.counts))[0]


def _slice(whole, at, size):
    return jax.lax.dynamic_slice_in_dim(whole, at, size, 0)


def _dot(subscripts, left, right):
    return jnp.einsum(subscripts, left, right, preferred_element_type=jnp.float32)
