"""The expert MLPs of a routed layer: dropless; every chosen (token, expert) pair is computed.

| implementation | FLOPs | picked when |
|---|---|---|
| gather | 1x | very few pairs: read just the chosen kernels |
| dense | E / (G k) x | few tokens: every expert is read once anyway; loop-free, the export form |
| grouped | 1x, half a tile of rows per expert | 16-bit, on Hopper GPUs, widths multiples of 16 |
| ragged | 1x | more tokens, on TPU: sort, then `jax.lax.ragged_dot` |
| loop | about 1.1x | more tokens, on CPU: expert by expert, in blocks about as large as its rows |
| block | about 1.1-1.3x | more tokens, on other GPUs: pad each expert's rows to whole blocks |
| reference | E / (G k) x | never: a loop over experts, the oracle |

`jax.lax.ragged_dot` lowers to a masked dense product on CPU and GPU, so it is for TPU alone. The
limits are in `LIMITS`.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from einops import rearrange

from pangu_jax.core.config import check_choice
from pangu_jax.core.errors import InputError
from pangu_jax.core.platform import chip as platform
from pangu_jax.ops.expert_block import block
from pangu_jax.ops.expert_loop import loop
from pangu_jax.ops.expert_sorted import sorted_experts
from pangu_jax.ops.grouped_matmul import has_kernel


class Limits(NamedTuple):
    """Sizes at which one implementation takes over from another.

    Attributes:
      gather: gather is picked below this many pairs for each expert of a group, T k / (E/G).
      dense: from there, dense is picked up to this many tokens.
    """

    gather: float
    dense: int


# GPU and TPU: about peak FLOP/s over bytes/s in bfloat16. Until then reading the kernels is what
# takes the time, and multiplying by experts that were not chosen is free. CPU: measured with
# tools/bench/expert_mlp.py; gather copies what it looks up, and dense never wins for long.
LIMITS = {"gpu": Limits(1.0, 256), "tpu": Limits(1.0, 256), "cpu": Limits(0.3, 0)}

EXPORT = "dense"  # loop-free, static operators only
# Every form that is picked for another machine is plain XLA.
LOWERS_ANYWHERE = True

# What `pangu-jax backends` shows: tokens, experts chosen and experts of each group.
EXAMPLES = {
    "1 token, 8 experts per group": (1, 1, 8),
    "64 tokens, 8 experts per group": (64, 1, 8),
    "4096 tokens, 8 experts per group": (4096, 1, 8),
}


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
    """For each token, the weighted sum of the SwiGLU experts it was routed to.

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

    Raises:
      InputError: an unknown `impl`, or arrays whose shapes do not fit together.
    """
    _check(x, ids, weights, gate, up, down, impl)
    if impl is None:
        alike = all(kernel.dtype == x.dtype for kernel in (gate, up, down))
        fits = x.shape[0] > 0 and alike and has_kernel(x.dtype, *gate.shape[2:])
        name = choose(platform(), x.shape[0], ids.shape[2], gate.shape[1], fits)
    else:
        name = impl if x.shape[0] else "reference"  # there is nothing to sort
    return IMPLEMENTATIONS[name](x, ids, weights, gate, up, down).astype(x.dtype)


def choose(platform: str, tokens: int, k: int, experts: int, fits: bool = True) -> str:
    """The implementation that `impl=None` picks.

    Args:
      platform: "cpu", "gpu", "hopper" or "tpu".
      tokens: T.
      k: experts chosen in each group.
      experts: E/G, experts in each group.
      fits: whether the kernels for grouped products take arrays of this type and these widths.
    """
    if platform == "hopper" and fits:
        return "grouped"
    limits = LIMITS.get(platform, LIMITS["gpu"])
    if tokens * k < limits.gather * experts:
        return "gather"
    if tokens <= limits.dense:
        return "dense"
    return {"cpu": "loop", "tpu": "ragged"}.get(platform, "block")


def _check(x, ids, weights, gate, up, down, impl):
    if impl is not None:
        check_choice("impl of expert_mlp", impl, IMPLEMENTATIONS)
    groups, size, _, hidden = gate.shape
    into = (groups, size, x.shape[1], hidden)
    pairs = (x.shape[0], groups, *ids.shape[2:])
    wanted = {"gate": (gate, into), "up": (up, into), "ids": (ids, pairs),
              "down": (down, (groups, size, hidden, x.shape[1])),
              "weights": (weights, pairs)}  # fmt: skip
    for name, (array, shape) in wanted.items():
        if array.shape != shape:
            raise InputError(f"{name} is {array.shape}; it must be {shape} beside x {x.shape}")


def _reference(x, ids, weights, gate, up, down):
    groups, size = gate.shape[:2]
    y = jnp.zeros(x.shape, jnp.float32)
    for g in range(groups):
        for e in range(size):
            weight = jnp.where(ids[:, g] == e, weights[:, g], 0.0).sum(-1, keepdims=True)
            hidden = jax.nn.silu(x @ gate[g, e]) * (x @ up[g, e])
            y = y + weight * (hidden @ down[g, e]).astype(jnp.float32)
    return y


def _dense(x, ids, weights, gate, up, down):
    chosen = jax.nn.one_hot(ids, gate.shape[1], dtype=weights.dtype)
    weight = jnp.einsum("tgke,tgk->tge", chosen, weights).astype(x.dtype)
    hidden = jax.nn.silu(jnp.einsum("td,gedf->tgef", x, gate))
    hidden = hidden * jnp.einsum("td,gedf->tgef", x, up) * weight[..., None]
    return jnp.einsum("tgef,gefd->td", hidden, down)


def _gather(x, ids, weights, gate, up, down):
    # Under vmap, so that a device that holds some groups looks up in those alone.
    pick = jax.vmap(lambda kernel, chosen: kernel[chosen], in_axes=(0, 1))  # [G, T, k, ...]
    hidden = jax.nn.silu(jnp.einsum("td,gtkdf->gtkf", x, pick(gate, ids)))
    hidden = hidden * jnp.einsum("td,gtkdf->gtkf", x, pick(up, ids))
    hidden = hidden * rearrange(weights, "t g k -> g t k 1").astype(x.dtype)
    return jnp.einsum("gtkf,gtkfd->td", hidden, pick(down, ids))


IMPLEMENTATIONS = {
    "reference": _reference,
    "gather": _gather,
    "dense": _dense,
    "ragged": partial(sorted_experts, impl="ragged_dot"),
    "grouped": partial(sorted_experts, impl="mosaic"),
    "loop": loop,
    "block": block,
}
