"""Experts over sorted rows: dropless, with the ideal number of FLOPs except for padding.

Pairs of token and expert are sorted by expert, their tokens' rows are gathered, grouped products
make the experts' outputs, and every token takes the weighted sum of its rows back by index: no
scatter. The backward pass is written out, as differentiating would scatter rows and keep twice as
many; it gathers the rows again and keeps both pre-activations.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from einops import rearrange

from pangu_jax.ops.grouped_matmul import alignment, grouped_matmul, grouped_outer, grouped_swiglu


class Order(NamedTuple):
    """Pairs sorted by expert, each expert's padded to a multiple of some number of rows.

    What fills up is of no token, and so a row of zeros at a weight of 0.

    Attributes:
      token: int32 [R], the token of each row, or T.
      place: int32 [T, G * k], the row of each pair.
      weight: float32 [R], the weight of each row.
      counts: int32 [E], rows of each expert; behind them, rows up to R are nobody's.
    """

    token: jax.Array
    place: jax.Array
    weight: jax.Array
    counts: jax.Array


def sort_pairs(ids: jax.Array, weights: jax.Array, experts: int, align: int = 1) -> Order:
    """Sorts the pairs of all groups.

    Args:
      ids: int32 [T, G, k], indices inside the group.
      weights: float32 [T, G, k].
      experts: E/G, experts of a group.
      align: what every expert's rows are filled up to a multiple of.
    """
    tokens, groups, k = ids.shape
    every = groups * experts
    expert = (ids + jnp.arange(groups, dtype=ids.dtype)[:, None] * experts).reshape(-1)
    pairs = expert.size
    # Of the experts that have rows, each is filled up by less than `align`.
    rows = (pairs + min(every, pairs) * (align - 1)) // align * align
    number = jnp.arange(pairs, dtype=jnp.int32)
    owner, pair = jax.lax.sort((expert, number), num_keys=1, is_stable=True)
    counts = jnp.bincount(expert, length=every).astype(jnp.int32)
    filled = -(-counts // align) * align
    shift = jnp.cumsum(filled - counts) - (filled - counts)  # rows filled up before each expert
    row = number + _take(shift, owner)

    def by_row(values, otherwise):
        empty = jnp.full(rows, otherwise, values.dtype)
        return empty.at[row].set(values, unique_indices=True, indices_are_sorted=True)

    return Order(
        token=by_row(pair // (groups * k), tokens),
        place=jnp.zeros_like(number).at[pair].set(row, unique_indices=True).reshape(tokens, -1),
        weight=by_row(_take(weights.reshape(-1).astype(jnp.float32), pair), 0),
        counts=filled,
    )


def sorted_experts(x, ids, weights, gate, up, down, *, impl: str):
    """`ops.expert_mlp` by grouped products; see there, and `ops.grouped_matmul` for `impl`."""
    align = alignment(impl, ids.size, gate.shape[0] * gate.shape[1])
    kernels = (rearrange(kernel, "g e ... -> (g e) ...") for kernel in (gate, up, down))
    order = sort_pairs(ids, jax.lax.stop_gradient(weights), gate.shape[1], align)
    return _sorted(impl, align, x, weights, order, *kernels)


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _sorted(impl, align, x, weights, order, gate, up, down):
    return _outputs(impl, align, x, weights, order, gate, up, down, keep=False)[0]


def _outputs(impl, align, x, weights, order, gate, up, down, keep):
    """The tokens' outputs, and with `keep` both pre-activations."""
    options = {"impl": impl, "align": align}
    rows = _of_tokens(x, order)
    hidden, *both = grouped_swiglu(rows, gate, up, order.counts, keep=keep, **options)
    out = grouped_matmul((hidden,), (down,), order.counts, **options)
    y = _to_tokens(out, order, rearrange(weights, "t g k -> t (g k)"))
    return y.astype(x.dtype), *both


def _forward(impl, align, x, weights, order, gate, up, down):
    y, a, b = _outputs(impl, align, x, weights, order, gate, up, down, keep=True)
    return y, (x, weights, order, gate, up, down, a, b)


def _backward(impl, align, saved, dy):
    x, weights, order, gate, up, down, a, b = saved
    options = {"counts": order.counts, "impl": impl, "align": align}
    rows, dout = _of_tokens(x, order), _of_tokens(dy, order)
    unweighted = grouped_matmul((dout,), (down,), transpose=True, **options)
    scaled, da, db, dweight = through_swiglu(a, b, order.weight[:, None], unweighted)
    # Weights are applied in float32 and rounded once, as the rows are.
    drows = grouped_matmul((da, db), (gate, up), transpose=True, **options)
    dx = _to_tokens(drows, order, None).astype(x.dtype)
    grads = *grouped_outer(rows, (da, db), **options), *grouped_outer(scaled, (dout,), **options)
    return dx, _take(dweight, order.place).reshape(weights.shape), None, *grads


_sorted.defvjp(_forward, _backward)


def through_swiglu(a, b, weight, dhidden):
    """The weighted hidden units and the gradients of both pre-activations, in a's type.

    Last, in float32, each row's gradient of its weight.
    """
    dtype = a.dtype
    a, b, dhidden = (v.astype(jnp.float32) for v in (a, b, dhidden))
    sigmoid = jax.nn.sigmoid(a)
    hidden = a * sigmoid * b
    da = weight * dhidden * b * (sigmoid * (1 + a * (1 - sigmoid)))
    db = weight * dhidden * a * sigmoid
    arrays = (v.astype(dtype) for v in (weight * hidden, da, db))
    return *arrays, (dhidden * hidden).sum(-1)


def _of_tokens(x, order):
    """The rows' tokens, [T, D] to [R, D]; zeros where there are none, so no inf becomes NaN."""
    return jnp.asarray(x).at[order.token].get(mode="fill", fill_value=0)


def _to_tokens(rows, order, weights):
    """Sums each token's rows, [R, D] to [T, D], in float32; weighted if `weights` is given."""
    own = _take(rows, order.place).astype(jnp.float32)
    return own.sum(1) if weights is None else (own * weights[..., None]).sum(1)


def _take(x, index):
    return jnp.asarray(x).at[index].get(mode="promise_in_bounds")
