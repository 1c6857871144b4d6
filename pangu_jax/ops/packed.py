"""Document boundaries of packed rows, which attention needs in place of a mask."""

from typing import NamedTuple

import jax
import jax.numpy as jnp


class Packed(NamedTuple):
    """Rows of whole documents, end to end; a document is a stretch of tokens of one segment.

    A token sees its own document up to itself. Padding, segment 0, is a document like others that
    nobody else sees.

    Attributes:
      segments: int32 [B, T].
      starts: int32 [B, M], the first token of each document; -1 behind a row's last.
      lengths: int32 [B, M], its tokens; -1 behind a row's last.
      fits: bool [B], false for a row of more than M documents.
    """

    segments: jax.Array
    starts: jax.Array
    lengths: jax.Array
    fits: jax.Array


def pack(segments: jax.Array, most: int) -> Packed:
    """Finds the documents of rows that hold at most a given number each.

    Args:
      segments: int32 [B, T].
      most: M, which is known where the rows are made.
    """
    length = segments.shape[1]
    at = jnp.arange(length, dtype=jnp.int32)
    starts = jnp.sort(jnp.where(_first(segments), at, length), axis=1)
    starts = jnp.pad(starts, [(0, 0), (0, max(most + 1 - length, 0))], constant_values=length)
    lengths = jnp.diff(starts[:, : most + 1], axis=1)
    fits, starts = starts[:, most] == length, starts[:, :most]
    none = starts == length
    return Packed(segments, jnp.where(none, -1, starts), jnp.where(none, -1, lengths), fits)


def packed_mask(packed: Packed) -> jax.Array:
    """The equivalent mask, bool [B, T, T], for any number of documents."""
    at = jnp.arange(packed.segments.shape[1])
    document = jnp.cumsum(_first(packed.segments), axis=1)
    same = document[:, :, None] == document[:, None, :]
    return same & (at[None, :] <= at[:, None])


def _first(segments):
    """Whether a token is its document's first: bool [B, T]."""
    at = jnp.arange(segments.shape[1])
    return (at == 0) | (segments != jnp.roll(segments, 1, axis=1))
