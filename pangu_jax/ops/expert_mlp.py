"""The experts' part of a routed layer: every chosen pair is computed, none is dropped.

| implementation | FLOPs | picked when |
|---|---|---|
| gather | 1x | very few pairs: read just the chosen kernels |
| dense | E / (G k) x | few tokens: every expert is read once anyway; loop-free, the export form |
| ragged | 1x | more tokens, on TPU: sort, then `jax.lax.ragged_dot` |
| block | about 1.1-1.3x | more tokens, elsewhere: pad each expert's rows to whole blocks |
| reference | E / (G k) x | never: a loop over experts, the oracle |

`jax.lax.ragged_dot` lowers to a masked dense product on CPU and GPU, so it is for TPU alone. The
limits are in `LIMITS`.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from pangu_jax.ops.expert_block import block


class Limits(NamedTuple):
    """Up to how many pairs a group gather is picked, and up to how many tokens dense is."""

    gather_pairs: int | None  # None: fewer pairs than the group has experts
    dense_tokens: int


# On GPU and TPU about peak FLOP/s over bytes/s in bfloat16: until then reading the kernels is what
# takes the time, and multiplying by experts that were not chosen is free. On CPU the block form
# wins from two pairs on, by measurement (tools/bench/expert_mlp.py).
LIMITS = {"gpu": Limits(None, 256), "tpu": Limits(None, 256), "cpu": Limits(1, 0)}


def expert_mlp(
    x: jax.Array,
    ids: jax.Array,
    weights: jax.Array,
    gate: jax.Array,
    up: jax.Array,
    down: jax.Array,
    *,
    impl: str | None = None,
) -> jax.Array:
    """Weighted sum, for each token, of the SwiGLU experts it was sent to.

    Args:
      x: [T, D].
      ids: int32 [T, G, k], indices inside the group.
      weights: float32 [T, G, k].
      gate: [G, E/G, D, F].
      up: [G, E/G, D, F].
      down: [G, E/G, F, D].
      impl: a name of the module's table, or None to choose by platform and shape.

    Returns:
      [T, D] in the type of `x`: sum over g, k of weights * down(silu(gate(x)) * up(x)).
    """
    name = impl or choose(jax.default_backend(), x.shape[0], ids.shape[2], gate.shape[1])
    return _IMPLEMENTATIONS[name](x, ids, weights, gate, up, down)


def choose(platform: str, tokens: int, k: int, experts: int) -> str:
    """The implementation that `impl=None` picks.

    Args:
      platform: "cpu", "gpu" or "tpu".
      tokens: T.
      k: experts chosen in each group.
      experts: E/G, experts in each group.
    """
    limits = LIMITS.get(platform, LIMITS["gpu"])
    pairs = experts - 1 if limits.gather_pairs is None else limits.gather_pairs
    if tokens * k <= pairs:
        return "gather"
    if tokens <= limits.dense_tokens:
        return "dense"
    return "ragged" if platform == "tpu" else "block"


def _reference(x, ids, weights, gate, up, down):
    groups, size = gate.shape[:2]
    y = jnp.zeros(x.shape, jnp.float32)
    for g in range(groups):
        for e in range(size):
            weight = jnp.where(ids[:, g] == e, weights[:, g], 0.0).sum(-1, keepdims=True)
            hidden = jax.nn.silu(x @ gate[g, e]) * (x @ up[g, e])
            y = y + weight * (hidden @ down[g, e]).astype(jnp.float32)
    return y.astype(x.dtype)


def _dense(x, ids, weights, gate, up, down):
    chosen = jax.nn.one_hot(ids, gate.shape[1], dtype=weights.dtype)
    weight = jnp.einsum("tgke,tgk->tge", chosen, weights).astype(x.dtype)
    hidden = jax.nn.silu(jnp.einsum("td,gedf->tgef", x, gate))
    hidden = hidden * jnp.einsum("td,gedf->tgef", x, up) * weight[..., None]
    return jnp.einsum("tgef,gefd->td", hidden, down)


def _gather(x, ids, weights, gate, up, down):
    group = jnp.arange(gate.shape[0])[:, None]
    pick = lambda kernel: kernel[group, ids]  # noqa: E731  [T, G, k, ...]
    hidden = jax.nn.silu(jnp.einsum("td,tgkdf->tgkf", x, pick(gate)))
    hidden = hidden * jnp.einsum("td,tgkdf->tgkf", x, pick(up))
    hidden = hidden * weights[..., None].astype(x.dtype)
    return jnp.einsum("tgkf,tgkfd->td", hidden, pick(down))


def _ragged(x, ids, weights, gate, up, down):
    groups, size = gate.shape[:2]
    pairs = (ids + jnp.arange(groups)[:, None] * size).reshape(-1)
    order = jnp.argsort(pairs, stable=True)
    counts = jnp.bincount(pairs, length=groups * size)
    token = order // (groups * ids.shape[2])
    kernels = (w.reshape(groups * size, *w.shape[2:]) for w in (gate, up, down))
    gate, up, down = kernels
    rows = x[token]
    hidden = jax.nn.silu(jax.lax.ragged_dot(rows, gate, counts))
    hidden = hidden * jax.lax.ragged_dot(rows, up, counts)
    hidden = hidden * weights.reshape(-1)[order, None].astype(x.dtype)
    out = jax.lax.ragged_dot(hidden, down, counts)
    return jnp.zeros(x.shape, jnp.float32).at[token].add(out).astype(x.dtype)


_IMPLEMENTATIONS = {
    "reference": _reference,
    "gather": _gather,
    "dense": _dense,
    "ragged": _ragged,
    "block": block,
}
