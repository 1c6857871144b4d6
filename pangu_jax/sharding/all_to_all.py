"""Expert parallelism of ordinary top-k routing: (token, expert) pairs travel to their expert.

The baseline for grouped routing. How many pairs go where is the router's choice, but shapes are
fixed, so every expert has room for a fixed number of pairs from each device: pairs that do not fit
are dropped, and free places are sent and computed all the same. To drop nothing, there must be room
for the busiest expert.

Source: arXiv 2006.16668, algorithm 1; the places are found by sorting, not by one-hot products.
"""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
from einops import rearrange, repeat


def exchange_pairs(
    x: jax.Array,
    ids: jax.Array,
    weights: jax.Array,
    kernels: Mapping[str, jax.Array],
    axis: str | tuple[str, ...],
    *,
    room: int,
) -> tuple[jax.Array, jax.Array]:
    """The weighted sum of experts for this device's tokens; to be called inside `shard_map`.

    Args:
      x: [T, D], this device's tokens.
      ids: int32 [T, k], the chosen experts of all devices.
      weights: float32 [T, k].
      kernels: this device's experts, e in number: "gate" and "up" [e, D, F], "down" [e, F, D].
      axis: the mesh axes that split the experts, in order, and the tokens.
      room: pairs that an expert takes from each device; earlier tokens take precedence.

    Returns:
      [T, D] in the type of `x`, and an int32 scalar: how many of this device's pairs were dropped.
    """
    k = ids.shape[1]
    devices = jax.lax.axis_size(axis)
    experts = devices * kernels["gate"].shape[0]
    place = _places(ids.reshape(-1), experts, room)
    once = {"unique_indices": True}  # of each other: indices past the buffer are dropped
    sent = jnp.zeros((experts * room, x.shape[1]), x.dtype)
    sent = sent.at[place].set(repeat(x, "t d -> (t k) d", k=k), mode="drop", **once)
    sent = rearrange(sent, "(p e c) d -> p e c d", p=devices, c=room)
    taken = jax.lax.all_to_all(sent, axis, 0, 0, tiled=True)
    rows = rearrange(taken, "p e c d -> e (p c) d")
    hidden = jax.nn.silu(jnp.einsum("erd,edf->erf", rows, kernels["gate"]))
    hidden = hidden * jnp.einsum("erd,edf->erf", rows, kernels["up"])
    out = jnp.einsum("erf,efd->erd", hidden, kernels["down"])
    out = rearrange(out, "e (p c) d -> p e c d", p=devices)
    back = rearrange(jax.lax.all_to_all(out, axis, 0, 0, tiled=True), "p e c d -> (p e c) d")
    own = back.at[place].get(mode="fill", fill_value=0, **once)
    own = rearrange(own.astype(jnp.float32), "(t k) d -> t k d", k=k)
    y = (own * weights[..., None]).sum(1).astype(x.dtype)
    return y, (place >= experts * room).sum(dtype=jnp.int32)


def room_needed(ids: jax.Array, experts: int) -> jax.Array:
    """The least room at which none of a device's pairs is dropped: the busiest expert's load.

    Args:
      ids: int32 [T, k], one device's.
      experts: E.
    """
    return jnp.bincount(ids.reshape(-1), length=experts).max()


def _places(expert, experts, room):
    """The row of each pair in the buffer [E * room], or a unique one past its end."""
    number = jnp.arange(expert.size, dtype=jnp.int32)
    owner, pair = jax.lax.sort((expert, number), num_keys=1, is_stable=True)
    counts = jnp.bincount(expert, length=experts)
    rank = number - (jnp.cumsum(counts) - counts).astype(jnp.int32)[owner]
    row = jnp.where(rank < room, owner * room + rank, experts * room + number)
    return jnp.zeros_like(number).at[pair].set(row, unique_indices=True)
