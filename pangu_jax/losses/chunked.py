"""Sums over tokens in chunks, so that vocabulary-wide arrays are never whole in memory."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from einops import rearrange

LOGITS = 2**22  # 16 MB of float32


def tokens_at_once(chunk: int | None, vocab: int) -> int:
    """`chunk`; if that is None, so many tokens that they have `LOGITS` logits, at least 1,024.

    A small vocabulary's logits fit into memory many more at a time, and a GPU takes as long for few
    as for many.
    """
    return max(LOGITS // vocab, 1024) if chunk is None else chunk


def chunked_sum(
    function: Callable[..., jax.Array], *arrays: jax.Array, chunk: int = 1024
) -> jax.Array:
    """Sum of `function` over chunks of tokens, each recomputed in the backward pass.

    Args:
      function: parts [N, ...] of the arrays to a float32 scalar, a sum over tokens. The last part
        is filled up with zeros, which must add nothing: one of the arrays has the tokens' weights.
      *arrays: [B, T, ...] each.
      chunk: N, tokens at a time; fewer if there are not so many.

    Returns:
      float32 scalar.
    """

    @jax.checkpoint
    def step(total, parts):
        return total + function(*parts), None

    total, _ = jax.lax.scan(step, jnp.float32(0), cut_tokens(*arrays, chunk=chunk))
    return total


def cut_tokens(*arrays: jax.Array, chunk: int) -> tuple[jax.Array, ...]:
    """Cuts all tokens of [B, T, ...] into chunks, the last padded with zeros: [chunks, N, ...].

    Args:
      *arrays: [B, T, ...] each.
      chunk: N, tokens at a time; fewer if there are not so many.
    """
    tokens = arrays[0].shape[0] * arrays[0].shape[1]
    chunk = min(chunk, tokens)
    room = -tokens % chunk

    def cut(x):
        x = rearrange(x, "b t ... -> (b t) ...")
        x = jnp.pad(x, [(0, room)] + [(0, 0)] * (x.ndim - 1))
        return rearrange(x, "(chunk t) ... -> chunk t ...", t=chunk)

    return tuple(map(cut, arrays))


def join_tokens(x: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """The inverse of `cut_tokens`: [chunks, N, ...] to [B, T, ...], where (B, T) is the shape."""
    x = rearrange(x, "chunk t ... -> (chunk t) ...")[: shape[0] * shape[1]]
    return x.reshape(*shape, *x.shape[1:])
