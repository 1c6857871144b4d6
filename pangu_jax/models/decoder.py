"""The decoder-only transformer: embeddings, layers, and next-token logits.

Parameters: those of `transformer`, and

    {"embed": {"table": [V, D]},
     "head": {"kernel": [D, V]}}          absent when tied to the embedding

`apply` returns hidden states; `logits` is separate, so that training never holds [B, T, V]. `embed`
and `head_kernel` are public because pruning, probing and layer-wise calibration walk the layers one
by one. `prefill` and `step` decode, on parameters that `transformer.by_layer` has taken apart: so a
layer's weights are read in place, where slices of stacked ones are copied with every token.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from pangu_jax.core.config import check_size
from pangu_jax.core.errors import InputError
from pangu_jax.core.spec import Normal, Spec, count
from pangu_jax.models import transformer
from pangu_jax.models.transformer import Output, final_norm
from pangu_jax.nn.attention import LayerCache
from pangu_jax.nn.block import LayerConfig
from pangu_jax.nn.how import HOW, How
from pangu_jax.nn.rotary import RopeConfig
from pangu_jax.ops.attention import within_window
from pangu_jax.ops.soft_cap import soft_cap
from pangu_jax.sharding.layout import constrain


@dataclasses.dataclass(frozen=True)
class DecoderConfig:
    """The complete description of a decoder.

    Attributes:
      vocab: V, number of token ids.
      width: D, model width.
      layers: one configuration per layer; all causal.
      rope: rotary positions.
      norm_eps: of every norm.
      tied: whether the output projection is the embedding table.
      max_length: the longest context the model was made for.
      embed_scale: factor of embeddings, in their own type (Gemma: D^1/2).
      logit_softcap: bound of the logits, by tanh; None for none (Gemma 2).
    """

    vocab: int
    width: int
    layers: tuple[LayerConfig, ...]
    rope: RopeConfig = RopeConfig()
    norm_eps: float = 1e-5
    tied: bool = False
    max_length: int = 4096
    embed_scale: float = 1.0
    logit_softcap: float | None = None

    def __post_init__(self):
        for name in ("vocab", "max_length"):
            check_size(f"decoder {name}", getattr(self, name))
        transformer.check_layers("decoder", self)
        if not all(layer.attention.causal for layer in self.layers):
            raise InputError("decoder layers must be causal")
        for name in ("embed_scale", "logit_softcap"):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise InputError(f"decoder {name} must be positive and finite, got {value}")


def spec(cfg: DecoderConfig) -> dict[str, Any]:
    """The spec tree of a decoder."""
    table = Spec((cfg.vocab, cfg.width), ("vocab", "embed"), Normal(0.02))
    tree = {"embed": {"table": table}, **transformer.spec(cfg)}
    if not cfg.tied:
        shape = (cfg.width, cfg.vocab)
        tree["head"] = {"kernel": Spec(shape, ("embed", "vocab"), Normal(0.02))}
    return tree


def apply(
    params: dict[str, Any],
    tokens: jax.Array,
    *,
    cfg: DecoderConfig,
    positions: jax.Array | None = None,
    segments: jax.Array | None = None,
    documents: int | None = None,
    key: jax.Array | None = None,
    how: How = HOW,
) -> Output:
    """The forward pass up to the final norm: `transformer.apply` on embedded tokens.

    Args:
      params: tree of `spec(cfg)`, any float type; a pruned tree with its own cfg runs the same.
      tokens: int32 [B, T].
      cfg: the model.
      positions: int32 [B, T], or None.
      segments: int32 [B, T], or None.
      documents: the most documents a row holds, or None; see `transformer.apply`.
      key: for dropout; None drops nothing.
      how: layout, implementations, type of activations, and what backward recomputes.

    Returns:
      Hidden states [B, T, D], and router statistics.
    """
    return transformer.apply(
        params,
        embed(params, tokens, cfg=cfg, how=how),
        cfg=cfg,
        positions=positions,
        segments=segments,
        documents=documents,
        key=key,
        how=how,
    )


def prefill(
    params: dict[str, Any],
    inputs: jax.Array,
    length: jax.Array,
    *,
    gap: int = 0,
    cfg: DecoderConfig,
    how: How = HOW,
) -> tuple[jax.Array, list[dict[str, jax.Array]]]:
    """Reads prompts; layers one by one.

    Args:
      params: tree of `transformer.by_layer`.
      inputs: int32 [B, T], ids, or [B, T, D], embeddings as from `embed`; right-padded with any
        valid ids or finite embeddings.
      length: int32 [B], tokens of each row, 1 to T.
      gap: positions that stay free behind each row, as steps find it so much earlier.
      cfg: the model.
      how: layout, implementations, and the type of the activations.

    Returns:
      Logits of the token after each row's last, float32 [B, V], and the caches, one per layer:
      {"key": [B, T, K, C], "value": the same}; a row's first `length` entries are its tokens'.
    """
    hidden, caches = prefill_state(params, inputs, length, gap=gap, cfg=cfg, how=how)
    return logits(params, hidden, cfg=cfg, how=how)[:, 0], caches


def prefill_state(
    params: dict[str, Any],
    inputs: jax.Array,
    length: jax.Array,
    *,
    gap: int = 0,
    cfg: DecoderConfig,
    how: How = HOW,
) -> tuple[jax.Array, list[dict[str, jax.Array]]]:
    """Like `prefill`, but returns the last token's state, [B, 1, D], in place of logits."""
    x = embed(params, inputs, cfg=cfg, how=how) if inputs.ndim == 2 else inputs
    # Rotary positions count by their differences alone: the prompt moves, steps need no gap.
    positions = jnp.broadcast_to(jnp.arange(x.shape[1], dtype=jnp.int32) - gap, x.shape[:2])
    places = []
    for layer in cfg.layers:
        heads = layer.attention
        empty = jnp.zeros((*x.shape[:2], heads.kv_heads, heads.head_dim), x.dtype)
        places.append(LayerCache(empty, empty, 0))
    # No mask: what comes after a row's end is later than all of it.
    x, places = transformer.unrolled(
        params["layers"], x, positions, lambda _: None, places, cfg=cfg, how=how
    )
    last = (length - 1)[:, None, None]
    hidden = jnp.take_along_axis(x, last, axis=1, mode="clip")
    return final_norm(params, hidden, cfg=cfg), _caches(places)


def step(
    params: dict[str, Any],
    token: jax.Array,
    position: jax.Array,
    caches: Sequence[dict[str, jax.Array]],
    *,
    cfg: DecoderConfig,
    how: How = HOW,
) -> tuple[jax.Array, list[dict[str, jax.Array]]]:
    """Reads one more token of every row, each row at its own position; layers one by one.

    Token i of a row is in slot i of its caches. A token sees no later slot, so leftovers of other
    texts in later slots do not matter, as long as they are finite.

    Args:
      params: tree of `transformer.by_layer`.
      token: int32 [B], ids, or [B, D], embeddings as from `embed`.
      position: int32 [B], tokens of each row so far: the slot to write.
      caches: {"key": [B, S, K, C], "value": the same}, one per layer.
      cfg: the model.
      how: layout, implementations, and the type of the activations.

    Returns:
      Logits of the next token, float32 [B, V], and the caches with the new rows.
    """
    x = token[:, None]
    x = embed(params, x, cfg=cfg, how=how) if token.ndim == 1 else x
    hidden, caches = step_state(params, x, position, caches, cfg=cfg, how=how)
    return logits(params, hidden, cfg=cfg, how=how)[:, 0], caches


def step_state(
    params: dict[str, Any],
    x: jax.Array,
    position: jax.Array,
    caches: Sequence[dict[str, jax.Array]],
    *,
    cfg: DecoderConfig,
    how: How = HOW,
) -> tuple[jax.Array, list[dict[str, jax.Array]]]:
    """Like `step`, but from embeddings x [B, 1, D] to states [B, 1, D], not logits."""
    places = [LayerCache(c["key"], c["value"], position) for c in caches]
    at = position[:, None]
    slots = jnp.arange(caches[0]["key"].shape[1], dtype=jnp.int32)[None]
    x, places = transformer.unrolled(
        params["layers"],
        x,
        at,
        lambda heads: within_window(at, slots, heads.window),
        places,
        cfg=cfg,
        how=how,
    )
    return final_norm(params, x, cfg=cfg), _caches(places)


def _caches(places) -> list[dict[str, jax.Array]]:
    return [{"key": place.key, "value": place.value} for place in places]


def embed(
    params: dict[str, Any], tokens: jax.Array, *, cfg: DecoderConfig, how: How = HOW
) -> jax.Array:
    """Embeds tokens: int32 [B, T] to [B, T, D]; an id outside the vocabulary yields NaN."""
    with jax.named_scope("embed"):
        rows = jnp.take(params["embed"]["table"], tokens, axis=0)
        rows = rows if how.dtype is None else rows.astype(how.dtype)
        return rows if cfg.embed_scale == 1 else rows * jnp.asarray(cfg.embed_scale, rows.dtype)


def head_kernel(params: dict[str, Any]) -> jax.Array:
    """The output projection [D, V]: the head's kernel, or the embedding table if tied."""
    return params["head"]["kernel"] if "head" in params else params["embed"]["table"].T


def logits(
    params: dict[str, Any], hidden: jax.Array, *, cfg: DecoderConfig, how: How = HOW
) -> jax.Array:
    """Logits of the next token: [..., D] to float32 [..., V]."""
    kernel = head_kernel(params).astype(hidden.dtype)
    scores = jnp.dot(hidden, kernel, preferred_element_type=jnp.float32)
    scores = soft_cap(scores, cfg.logit_softcap)
    axes = (*("batch", "length")[: hidden.ndim - 1], "vocab")
    return constrain(scores, axes, how.layout)


def count_active(cfg: DecoderConfig) -> int:
    """Parameters that one token uses: all but the routed experts it is not sent to."""
    idle = 0
    for layer in cfg.layers:
        if layer.moe is not None:
            unused = layer.moe.experts - layer.moe.groups * layer.moe.top_k
            idle += unused * 3 * cfg.width * layer.moe.width
    return count(spec(cfg)) - idle


def cache_bytes(cfg: DecoderConfig, item: int = 2) -> int:
    """Bytes of keys and values that one token adds to the cache, of `item` bytes per number."""
    return sum(2 * item * x.attention.kv_heads * x.attention.head_dim for x in cfg.layers)
