"""Grouped-query attention under one mask rule.

A query sees a source iff both are of the same segment, the source is no padding (segment 0), and
the source's position is not later. Packed documents, ragged batches, left or right padding and
key-value caches are all said through segments and positions.

| implementation | picked when |
|---|---|
| cudnn | GPU, bfloat16 or float16, head size a multiple of 8 up to 128 |
| reference | everywhere else; the oracle, and the form that exports |
"""

import jax
import jax.numpy as jnp
from einops import rearrange

from pangu_jax.core.platform import target

EXPORT = "reference"  # the form that lowers everywhere, from any machine

# What `pangu-jax backends` shows: arguments of `choose` after the platform.
EXAMPLES = {
    "bfloat16, head 128": (jax.ShapeDtypeStruct((1, 1, 1, 1, 128), jnp.bfloat16),),
    "float32, head 128": (jax.ShapeDtypeStruct((1, 1, 1, 1, 128), jnp.float32),),
}


def attention(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    *,
    mask: jax.Array | None,
    impl: str | None = None,
) -> jax.Array:
    """Softmax attention, each of K key-value heads serving Q query heads.

    Args:
      query: [B, T, K, Q, C], any float type.
      key: [B, S, K, C].
      value: [B, S, K, C].
      mask: bool [B, T, S], true where the query sees the source (`visible` makes it); None means
        plain causal attention with T = S.
      impl: "reference", "cudnn", or None to choose by platform and shape.

    Returns:
      [B, T, K, Q, C] in the type of `query`; scores and softmax are float32. A query that sees
      nothing gets a finite value of no meaning.
    """
    name = impl or choose(target(), query)
    return _IMPLEMENTATIONS[name](query, key, value, mask)


def choose(platform: str, query: jax.Array) -> str:
    """The implementation that `impl=None` picks."""
    half = query.dtype in (jnp.bfloat16, jnp.float16)
    head = query.shape[-1]
    return "cudnn" if platform == "gpu" and half and head % 8 == 0 and head <= 128 else "reference"


def visible(
    query_segments: jax.Array,
    query_positions: jax.Array,
    source_segments: jax.Array,
    source_positions: jax.Array,
) -> jax.Array:
    """The mask rule: same segment, no padding, not later.

    Args:
      query_segments: int32 [B, T]; 0 is padding.
      query_positions: int32 [B, T].
      source_segments: int32 [B, S].
      source_positions: int32 [B, S].

    Returns:
      bool [B, T, S].
    """
    same = query_segments[:, :, None] == source_segments[:, None, :]
    earlier = source_positions[:, None, :] <= query_positions[:, :, None]
    return same & earlier & (source_segments > 0)[:, None, :]


def _reference(query, key, value, mask):
    scores = jnp.einsum("btkqc,bskc->bkqts", query, key, preferred_element_type=jnp.float32)
    scores = scores * query.shape[-1] ** -0.5
    if mask is None:
        mask = jnp.tril(jnp.ones((1, query.shape[1], key.shape[1]), bool))
    # The lowest finite number, not -inf: a query that sees nothing must not make a NaN.
    scores = jnp.where(mask[:, None, None], scores, jnp.finfo(jnp.float32).min)
    weights = jax.nn.softmax(scores, axis=-1).astype(value.dtype)
    # As one product in the order of its operands, the transposition after it: said as one einsum,
    # [..., S, C] x [..., T, S] is formed and then turned, which an exported graph pays for.
    mixed = jnp.einsum("bkqts,bskc->bkqtc", weights, value)
    return rearrange(mixed, "b k q t c -> b t k q c")


def _cudnn(query, key, value, mask):
    out = jax.nn.dot_product_attention(
        rearrange(query, "b t k q c -> b t (k q) c"),
        key,
        value,
        mask=None if mask is None else mask[:, None],
        is_causal=mask is None,
        implementation="cudnn",
    )
    return rearrange(out, "b t (k q) c -> b t k q c", q=query.shape[3])


_IMPLEMENTATIONS = {"reference": _reference, "cudnn": _cudnn}
