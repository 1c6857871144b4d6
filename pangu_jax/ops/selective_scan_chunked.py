"""The selective scan in chunks of steps, for XLA: no state outlives its chunk.

A forward pass keeps the state at the start of each chunk, a backward pass recomputes the states of
one chunk at a time, so both hold about 2 sqrt(T) states instead of T. Inside a chunk runs

| inner | is | for |
|---|---|---|
| loop | one step at a time, backward written out | CPU |
| associative | log depth | chips that are idle in small steps |

The loop is laid out for a vector unit: channels innermost, and few operations per step. Measured on
a CPU, this layout with the contraction as a product costs a fifth of [E, N] with a sum, and
unrolling steps makes it slower: each output is fused with a copy of all that precedes it.
"""

from functools import partial

import jax
import jax.numpy as jnp
from einops import rearrange

from pangu_jax.ops.linear_scan import linear_scan


def chunk_length(steps: int, inner: str) -> int:
    """Steps per chunk: about sqrt(T), where chunk starts and one chunk's states balance."""
    least, most = (16, 64) if inner == "loop" else (64, 256)
    return min(steps, max(least, min(most, int(steps**0.5))))


def chunked(
    u: jax.Array,
    d: jax.Array,
    A: jax.Array,
    B: jax.Array,
    C: jax.Array,
    state: jax.Array,
    inner: str,
    length: int | None = None,
) -> tuple[jax.Array, jax.Array]:
    """The scan with final step sizes and without the skip connection.

    Args:
      u: [B, T, E].
      d: [B, T, E], the step size.
      A: [E, N].
      B: [B, T, N].
      C: [B, T, N].
      state: [B, E, N].
      inner: "loop" or "associative".
      length: steps of a chunk; None for `chunk_length`.

    Returns:
      [B, T, E] and the state [B, E, N] after the last step, all in the type of the arguments.
    """
    steps = u.shape[1]
    length = length or chunk_length(steps, inner)
    chunks = -(-steps // length)
    missing = chunks * length - steps

    def cut(x):
        # What is filled in has step size 0 and changes nothing.
        x = jnp.pad(x, ((0, 0), (0, missing), (0, 0))) if missing else x
        return rearrange(x, "b (chunk t) ... -> chunk t b ...", t=length)

    run = _loops if inner == "loop" else _associative
    y, state = run(*(cut(x) for x in (u, d, B, C)), A.T, rearrange(state, "b e n -> b n e"))
    y = rearrange(y, "chunk t b e -> b (chunk t) e")
    return y[:, :steps], rearrange(state, "b n e -> b e n")


def _advance(A, state, u, d, B):
    """One step of [B, N, E] states: the decayed state and the new one."""
    decayed = jnp.exp(d[:, None] * A) * state
    return decayed, decayed + (d * u)[:, None] * B[..., None]


# Arrays below are cut: u, d and y [chunks, length, B, E], B and C [chunks, length, B, N]; A is
# [N, E], states are [B, N, E].


@jax.custom_vjp
def _loops(u, d, B, C, A, state):
    return _loops_forward(u, d, B, C, A, state)[0]


def _loops_forward(u, d, B, C, A, state):
    def step(state, inputs):
        u, d, B, C = inputs
        _, state = _advance(A, state, u, d, B)
        return state, jnp.einsum("bne,bn->be", state, C)

    def chunk(state, inputs):
        after, y = jax.lax.scan(step, state, inputs)
        return after, (y, state)

    last, (y, starts) = jax.lax.scan(chunk, state, (u, d, B, C))
    return (y, last), (u, d, B, C, A, starts)


def _loops_backward(saved, cotangents):
    u, d, B, C, A, starts = saved
    dy, dlast = cotangents

    def again(state, inputs):
        return _advance(A, state, *inputs)[1], state

    def step(carry, inputs):
        flow, dA = carry  # what the steps after this one want of its state
        u, d, B, C, dy, before = inputs
        decay = jnp.exp(d[:, None] * A)
        decayed = decay * before
        state = decayed + (d * u)[:, None] * B[..., None]
        wanted = flow + dy[:, None] * C[..., None]
        entered = jnp.einsum("bne,bn->be", wanted, B)
        rate = wanted * decayed
        grads = (
            entered * d,
            entered * u + (rate * A).sum(1),
            jnp.einsum("bne,be->bn", wanted, d * u),
            jnp.einsum("bne,be->bn", state, dy),
        )
        return (wanted * decay, dA + rate * d[:, None]), grads

    def chunk(carry, inputs):
        u, d, B, C, dy, start = inputs
        _, before = jax.lax.scan(again, start, (u, d, B))
        return jax.lax.scan(step, carry, (u, d, B, C, dy, before), reverse=True)

    carry = dlast, jnp.zeros_like(dlast)
    carry, grads = jax.lax.scan(chunk, carry, (u, d, B, C, dy, starts), reverse=True)
    return *grads, carry[1].sum(0), carry[0]


_loops.defvjp(_loops_forward, _loops_backward)


def _associative(u, d, B, C, A, state):
    @partial(jax.checkpoint, prevent_cse=False)
    def chunk(state, inputs):
        u, d, B, C = (rearrange(x, "t b ... -> b t ...") for x in inputs)
        decay = jnp.exp(d[:, :, None] * A)
        entry = (d * u)[:, :, None] * B[..., None]
        states = linear_scan(decay, entry, state, "associative")
        y = jnp.einsum("btne,btn->tbe", states, C, precision=jax.lax.Precision.HIGHEST)
        return states[:, -1], y

    last, y = jax.lax.scan(chunk, state, (u, d, B, C))
    return y, last
