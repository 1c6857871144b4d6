"""Experts over sorted rows: the ideal number of FLOPs, no padding, nothing dropped.

Pairs of token and expert are sorted by expert, their tokens' rows are gathered, three grouped
products make the experts' outputs, and every token takes the weighted sum of its rows back by
index: no scatter. The backward pass is written out, as differentiating would scatter rows and keep
twice as many; it gathers the rows again and keeps both pre-activations.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from einops import rearrange

from pangu_jax.ops.grouped_matmul import filled_up, grouped_matmul, grouped_outer

LINES = 8  # rows come in whole lines of so many, which the kernels' copies need


class Order(NamedTuple):
    """Pairs sorted by expert: R = T G k of them, filled up to whole lines.

    What fills up is the last expert's, of any token, at a weight of 0.

    Attributes:
      token: int32 [R], the token of each row.
      place: int32 [T, G * k], the row of each pair.
      weight: float32 [R], the weight of each row.
      counts: int32 [E], rows of each expert.
    """

    token: jax.Array
    place: jax.Array
    weight: jax.Array
    counts: jax.Array


def sort_pairs(ids: jax.Array, weights: jax.Array, experts: int) -> Order:
    """Sorts the pairs of all groups.

    Args:
      ids: int32 [T, G, k], indices inside the group.
      weights: float32 [T, G, k].
      experts: E/G, experts of a group.
    """
    tokens, groups, k = ids.shape
    expert = (ids + jnp.arange(groups, dtype=ids.dtype)[:, None] * experts).reshape(-1)
    pairs, more = expert.size, -expert.size % LINES
    expert = jnp.pad(expert, (0, more), constant_values=groups * experts - 1)
    weight = jnp.pad(weights.reshape(-1).astype(jnp.float32), (0, more))
    number = jnp.arange(expert.size, dtype=jnp.int32)
    _, pair = jax.lax.sort((expert, number), num_keys=1, is_stable=True)
    place = jnp.zeros_like(number).at[pair].set(number, unique_indices=True)[:pairs]
    return Order(
        token=jnp.minimum(pair, pairs - 1) // (groups * k),
        place=place.reshape(tokens, groups * k),
        weight=_take(weight, pair),
        counts=jnp.bincount(expert, length=groups * experts).astype(jnp.int32),
    )


def sorted_experts(x, ids, weights, gate, up, down, *, impl: str):
    """`ops.expert_mlp` by grouped products; see there, and `ops.grouped_matmul` for `impl`."""
    if impl == "mosaic":
        gate, up, down = filled(gate, up, down)
    kernels = (rearrange(kernel, "g e ... -> (g e) ...") for kernel in (gate, up, down))
    order = sort_pairs(ids, jax.lax.stop_gradient(weights), gate.shape[1])
    return _sorted(impl, x, weights, order, *kernels)


def filled(gate, up, down):
    """The same experts with hidden units of zeros, as many as the kernels want."""
    more = filled_up(gate.shape[-1]) - gate.shape[-1]
    if not more:
        return gate, up, down
    none = (0, 0)
    gate, up = (jnp.pad(x, (none, none, none, (0, more))) for x in (gate, up))
    return gate, up, jnp.pad(down, (none, none, (0, more), none))


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _sorted(impl, x, weights, order, gate, up, down):
    return _forward(impl, x, weights, order, gate, up, down)[0]


def _forward(impl, x, weights, order, gate, up, down):
    rows = _take(x, order.token)
    a, b = (grouped_matmul(rows, kernel, order.counts, impl=impl) for kernel in (gate, up))
    out = grouped_matmul(jax.nn.silu(a) * b, down, order.counts, impl=impl)
    flat = rearrange(weights, "t g k -> t (g k)")
    y = _to_tokens(out, order, flat).astype(x.dtype)
    return y, (x, weights, order, gate, up, down, a, b)


def _backward(impl, saved, dy):
    x, weights, order, gate, up, down, a, b = saved
    product = partial(grouped_matmul, impl=impl, counts=order.counts, transpose=True)
    outer = partial(grouped_outer, counts=order.counts, impl=impl)
    rows, dout = _take(x, order.token), _take(dy, order.token)
    unweighted = product(dout, down)
    dweight = (unweighted.astype(jnp.float32) * (jax.nn.silu(a) * b)).sum(-1)
    scaled, da, db = _through_swiglu(a, b, order.weight[:, None], unweighted)
    # Weights are applied in float32 and rounded once, as the rows are.
    dx = _to_tokens(product(da, gate) + product(db, up), order, None).astype(x.dtype)
    grads = outer(rows, da), outer(rows, db), outer(scaled, dout)
    return dx, _take(dweight, order.place).reshape(weights.shape), None, *grads


_sorted.defvjp(_forward, _backward)


def _through_swiglu(a, b, weight, dhidden):
    """The weighted hidden units, and the gradients of both pre-activations, in a's type."""
    dtype = a.dtype
    a, b, dhidden = (v.astype(jnp.float32) for v in (a, b, dhidden))
    sigmoid = jax.nn.sigmoid(a)
    da = weight * dhidden * b * (sigmoid * (1 + a * (1 - sigmoid)))
    db = weight * dhidden * a * sigmoid
    return tuple(v.astype(dtype) for v in (weight * a * sigmoid * b, da, db))


def _to_tokens(rows, order, weights):
    """Each token's rows, [R, D] to [T, D], summed in float32; weighted unless `weights` is None."""
    own = _take(rows, order.place).astype(jnp.float32)
    return own.sum(1) if weights is None else (own * weights[..., None]).sum(1)


def _take(x, index):
    return jnp.asarray(x).at[index].get(mode="promise_in_bounds")
