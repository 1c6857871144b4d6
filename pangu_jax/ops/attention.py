"""Grouped-query attention under one mask rule.

A query sees a source iff both are of the same segment, the source is no padding (segment 0), and,
where attention is causal, the source's position is not later and, in a sliding window of W, less
than W earlier. Packed documents, ragged batches, left or right padding and key-value caches are all
said through segments and positions.

| implementation | picked when |
|---|---|
| cudnn | GPU, bfloat16 or float16, head size a multiple of 8 up to 128, no soft-cap |
| cudnn_packed | the same on Hopper GPUs, causal, no window, few `Packed` documents |
| reference | everywhere else; the oracle, and the form that exports |
"""

from functools import partial

import jax
import jax.numpy as jnp
from einops import rearrange

from pangu_jax.core.config import check_choice
from pangu_jax.core.errors import InputError
from pangu_jax.core.platform import chip
from pangu_jax.ops.packed import Packed, packed_mask
from pangu_jax.ops.soft_cap import soft_cap

# Documents that a row may hold for cudnn's packed form: it keeps statistics of all tokens and heads
# for each that there could be, and takes longer the more there could be. It was timed with places
# for 4 to 64 of them at 2,048 tokens, and is faster than a mask there.
MOST_DOCUMENTS = 16

GPUS = ("gpu", "hopper")  # what `chip` calls them

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
    mask: jax.Array | Packed | None,
    causal: bool = True,
    window: int | None = None,
    scale: float | None = None,
    softcap: float | None = None,
    impl: str | None = None,
) -> jax.Array:
    """Softmax attention in which each of K key-value heads serves Q query heads.

    Args:
      query: [B, T, K, Q, C], any float type.
      key: [B, S, K, C].
      value: [B, S, K, C].
      mask: bool [B, T, S], true where the query sees the source (`visible` makes it), whatever
        `causal` and `window` say; None means one document per row without padding. `Packed` rows
        need none made of them: they are causal, and a row that does not fit gives NaN.
      causal: whether, without a mask, a query sees no later source; then T = S.
      window: how many sources, its own among them, a causal query sees without a mask; None is all.
      scale: of the products; None is C^-1/2.
      softcap: scores s become softcap * tanh(s / softcap); None leaves them.
      impl: a name of the module's table, or None to choose by platform and shape.

    Returns:
      [B, T, K, Q, C] in the type of `query`; scores and softmax are float32. A query that sees
      nothing gets a finite but meaningless value.

    Raises:
      InputError: an unknown `impl`, one that has no soft-cap or is for another platform, or packed
        rows that are not causal.

    Source: arXiv 1706.03762, section 3.2.1; windows arXiv 2310.06825, section 2; soft-caps arXiv
    2408.00118, section 2.
    """
    packed = isinstance(mask, Packed)
    if packed and not causal:
        raise InputError("attention over packed rows is causal")
    few = packed and mask.starts.shape[-1] <= MOST_DOCUMENTS
    name = choose(chip(), query, softcap, few, window) if impl is None else impl
    check_choice("impl of attention", name, IMPLEMENTATIONS)
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    if not packed or name == "cudnn_packed":
        return IMPLEMENTATIONS[name](query, key, value, mask, causal, window, scale, softcap)
    seen = packed_mask(mask)
    if window is not None:
        positions = jnp.arange(seen.shape[1])[None]
        seen &= within_window(positions, positions, window)
    out = IMPLEMENTATIONS[name](query, key, value, seen, causal, window, scale, softcap)
    return _unless_overfull(out, mask)


def choose(
    platform: str,
    query: jax.Array,
    softcap: float | None = None,
    packed: bool = False,
    window: int | None = None,
) -> str:
    """The implementation that `impl=None` picks."""
    half = query.dtype in (jnp.bfloat16, jnp.float16)
    head = query.shape[-1]
    fits = half and head % 8 == 0 and head <= 128 and softcap is None
    if not (platform in GPUS and fits):
        return "reference"
    return "cudnn_packed" if platform == "hopper" and packed and window is None else "cudnn"


def visible(
    query_segments: jax.Array,
    query_positions: jax.Array,
    source_segments: jax.Array,
    source_positions: jax.Array,
    *,
    causal: bool = True,
    window: int | None = None,
) -> jax.Array:
    """The mask rule: same segment, no padding; if causal not later, and within the window.

    Args:
      query_segments: int32 [B, T]; 0 is padding.
      query_positions: int32 [B, T].
      source_segments: int32 [B, S].
      source_positions: int32 [B, S].
      causal: whether a query sees no later source.
      window: how many positions, its own among them, a causal query looks back; None is all.

    Returns:
      bool [B, T, S].
    """
    same = query_segments[:, :, None] == source_segments[:, None, :]
    seen = same & (source_segments > 0)[:, None, :]
    return seen & within_window(query_positions, source_positions, window) if causal else seen


def within_window(
    query_positions: jax.Array, source_positions: jax.Array, window: int | None
) -> jax.Array:
    """Which sources are not later and less than `window` earlier: bool [B, T, S].

    Args:
      query_positions: int32 [B, T].
      source_positions: int32 [B, S].
      window: see `visible`.
    """
    ahead, behind = query_positions[:, :, None], source_positions[:, None, :]
    seen = behind <= ahead
    return seen if window is None else seen & (behind > ahead - window)


def _reference(query, key, value, mask, causal, window, scale, softcap):
    scores = jnp.einsum("btkqc,bskc->bkqts", query, key, preferred_element_type=jnp.float32)
    scores = soft_cap(scores * scale, softcap)
    if mask is None and causal:
        positions = (jnp.arange(x.shape[1])[None] for x in (query, key))
        mask = within_window(*positions, window)
    if mask is not None:
        # The lowest finite number, not -inf: a query that sees nothing must not make a NaN.
        scores = jnp.where(mask[:, None, None], scores, jnp.finfo(jnp.float32).min)
    weights = jax.nn.softmax(scores, axis=-1).astype(value.dtype)
    # As one product in the order of its operands, the transposition after it: said as one einsum,
    # [..., S, C] x [..., T, S] is formed and then turned, which an exported graph pays for.
    mixed = jnp.einsum("bkqts,bskc->bkqtc", weights, value)
    return rearrange(mixed, "b k q t c -> b t k q c")


def _cudnn(query, key, value, mask, causal, window, scale, softcap):
    if softcap is not None:
        raise InputError("attention by cudnn has no soft-cap; reference has")
    given = (query, key, value, None if mask is None else mask[:, None])
    how = (mask is None and causal, window, scale)
    if any(_spare(query.shape[1], key.shape[1], mask)):
        return _of_any_length(*how, *given)
    return _by_cudnn(*how, *given)


def _spare(queries, sources, mask=None):
    """Invisible queries and sources without which there are no gradients by cuDNN, or wrong ones.

    JAX refuses odd lengths. And under a mask, where sources, made even, end in the midst of cuDNN's
    tile of 128, at 64, Hopper's kernel takes the rest of the tile for sources of score 0: their
    weight exp(0 - lse) overflows in a row whose visible scores are all below -88, or that sees
    nothing, and the query's gradient is NaN (github.com/pytorch/pytorch/issues/196678).
    """
    midst = mask is not None and sources % 128 in (63, 64)
    return queries % 2, -sources % 128 if midst else sources % 2


def _check_platform(name):
    if (platform := chip()) not in GPUS:
        raise InputError(
            f"attention by {name} is computed on NVIDIA GPUs, this is for {platform}: leave impl "
            "out, or take reference"
        )


def _by_cudnn(causal, window, scale, query, key, value, mask):
    _check_platform("cudnn")
    out = jax.nn.dot_product_attention(
        rearrange(query, "b t k q c -> b t (k q) c"),
        key,
        value,
        mask=mask,
        scale=scale,
        is_causal=causal,
        local_window_size=(window - 1, 0) if causal and window else None,
        implementation="cudnn",
    )
    return rearrange(out, "b t (k q) c -> b t k q c", q=query.shape[3])


@partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def _of_any_length(causal, window, scale, query, key, value, mask):
    """Pads with invisible tokens, where there are gradients, to lengths that cuDNN can take."""
    return _by_cudnn(causal, window, scale, query, key, value, mask)


def _padded_forward(causal, window, scale, query, key, value, mask):
    lengths = query.shape[1], key.shape[1]
    if mask is None and not causal:
        mask = jnp.ones((query.shape[0], 1, *lengths), bool)
    queries, sources = _spare(*lengths, mask)
    if mask is not None:
        mask = jnp.pad(mask, ((0, 0), (0, 0), (0, queries), (0, sources)))

    def padded(query, key, value):
        arrays = _longer(query, queries), _longer(key, sources), _longer(value, sources)
        return _by_cudnn(causal, window, scale, *arrays, mask)[:, : lengths[0]]

    return jax.vjp(padded, query, key, value)


def _padded_backward(causal, window, scale, pull, dout):
    del causal, window, scale
    return *pull(dout), None


_of_any_length.defvjp(_padded_forward, _padded_backward)


def _longer(x, more):
    """Pads the second dimension with this many zeros at the end."""
    return jnp.pad(x, [(0, 0), (0, more)] + [(0, 0)] * (x.ndim - 2))


def _cudnn_packed(query, key, value, mask, causal, window, scale, softcap):
    if not isinstance(mask, Packed) or not causal or window is not None or softcap is not None:
        raise InputError(
            "attention by cudnn_packed takes causal packed rows, without window or soft-cap"
        )
    _check_platform("cudnn_packed")
    # jax.nn.dot_product_attention hands no offsets down to it.
    from jax._src.cudnn.fused_attention_stablehlo import MaskType, dot_product_attention

    offsets = jnp.pad(mask.starts, [(0, 0), (0, 1)], constant_values=-1)
    length, flat = query.shape[1], rearrange(query, "b t k q c -> b t (k q) c")
    out = dot_product_attention(
        *[_longer(x, length % 2) for x in (flat, key, value)],  # JAX refuses odd lengths
        q_seqlen=mask.lengths,
        kv_seqlen=mask.lengths,
        q_offsets=offsets,
        kv_offsets=offsets,
        scale=scale,
        mask_type=MaskType.PADDING_CAUSAL,
    )
    out = rearrange(out[:, :length], "b t (k q) c -> b t k q c", q=query.shape[3])
    return _unless_overfull(out, mask)


def _unless_overfull(out, packed):
    """NaN where a row holds more documents than declared, which cuDNN would leave out."""
    return jnp.where(packed.fits[:, None, None, None, None], out, jnp.nan)


IMPLEMENTATIONS = {"reference": _reference, "cudnn": _cudnn, "cudnn_packed": _cudnn_packed}
