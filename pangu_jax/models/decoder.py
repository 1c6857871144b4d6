"""The decoder-only transformer: dense, routed or mixed layers, in one storage form.

Parameters:

    {"embed": {"table": [V, D]},
     "runs": [stacked layer trees, every leaf with a leading layers axis],
     "norm": {"scale": [D]},
     "head": {"kernel": [D, V]}}          absent when tied to the embedding

A run is a maximal stretch of layers of equal configuration, so a model whose layers all differ has
runs of one layer. `apply` gives hidden states; `logits` is separate, so that training never holds
[B, T, V]. `embed`, `block` and `head_kernel` are public because pruning, probing and layer-wise
calibration walk the layers one by one.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

from pangu_jax.core.config import check_size
from pangu_jax.core.errors import InputError
from pangu_jax.core.spec import Normal, Spec, count, materialise, stack
from pangu_jax.nn.attention import LayerCache
from pangu_jax.nn.attention import cache_spec as layer_cache_spec
from pangu_jax.nn.block import LayerConfig, block, block_spec
from pangu_jax.nn.moe import RouterStats
from pangu_jax.nn.norm import rms_norm, rms_norm_spec
from pangu_jax.nn.rotary import RopeConfig, rotation
from pangu_jax.nn.stack import run_lengths as _run_lengths
from pangu_jax.nn.stack import scan_layers
from pangu_jax.ops.attention import visible
from pangu_jax.sharding.layout import Layout, constrain

# Far above any model; a file that says more is wrong, and would be worked on for hours.
MOST_LAYERS, MOST_EXPERTS = 10_000, 2**20


@dataclasses.dataclass(frozen=True)
class DecoderConfig:
    """Everything that says what a decoder's parameters are and how they are used.

    Attributes:
      vocab: V, number of token ids.
      width: D, model width.
      layers: one configuration a layer.
      rope: rotary positions.
      norm_eps: of every RMSNorm.
      tied: whether the output projection is the embedding table.
      max_length: the longest context the model was made for.
    """

    vocab: int
    width: int
    layers: tuple[LayerConfig, ...]
    rope: RopeConfig = RopeConfig()
    norm_eps: float = 1e-5
    tied: bool = False
    max_length: int = 4096

    def __post_init__(self):
        for name in ("vocab", "width", "max_length"):
            check_size(f"decoder {name}", getattr(self, name))
        if not 0 < self.norm_eps < 1:
            raise InputError(f"decoder norm_eps must be in (0, 1), got {self.norm_eps}")
        if not self.layers:
            raise InputError("a decoder needs at least one layer")
        check_size("a decoder's number of layers", len(self.layers), most=MOST_LAYERS)
        experts = sum(layer.moe.experts for layer in self.layers if layer.moe)
        check_size("a decoder's number of experts", experts, least=0, most=MOST_EXPERTS)


@struct.dataclass
class Cache:
    """Keys and values of the tokens seen so far, in slots that all rows fill in step.

    Attributes:
      runs: one {"key": [L, B, S, K, C], "value": the same} a run.
      positions: int32 [B, S], position of the token in each slot.
      segments: int32 [B, S], its segment; 0 for padding and for slots not yet written.
      length: int32 scalar, number of slots written.
    """

    runs: list[dict[str, Any]]
    positions: Any
    segments: Any
    length: Any


@struct.dataclass
class Output:
    """What a forward pass gives.

    Attributes:
      hidden: [B, T, D] after the final norm.
      cache: the cache with T more slots, or None.
      router: for each run, None or the `RouterStats` stacked over its layers.
    """

    hidden: jax.Array
    cache: Cache | None
    router: list[RouterStats | None]


def run_lengths(cfg: DecoderConfig) -> list[tuple[LayerConfig, int]]:
    """The model's runs: [(layer configuration, number of layers), ...]."""
    return _run_lengths(cfg.layers)


def spec(cfg: DecoderConfig) -> dict[str, Any]:
    """The spec tree of a decoder."""
    # Each layer adds two branches to the residual: their sum keeps unit size at the start.
    gain = (2 * len(cfg.layers)) ** -0.5
    table = Spec((cfg.vocab, cfg.width), ("vocab", "embed"), Normal(0.02))
    tree = {
        "embed": {"table": table},
        "runs": [
            stack(block_spec(cfg.width, layer, gain=gain), n) for layer, n in run_lengths(cfg)
        ],
        "norm": rms_norm_spec(cfg.width),
    }
    if not cfg.tied:
        shape = (cfg.width, cfg.vocab)
        tree["head"] = {"kernel": Spec(shape, ("embed", "vocab"), Normal(0.02))}
    return tree


def cache_spec(cfg: DecoderConfig, batch: int, length: int, dtype: Any = jnp.float32) -> Cache:
    """The spec tree of a cache of `length` slots for `batch` rows."""
    slots = Spec((batch, length), ("batch", "length"), dtype=jnp.int32)
    runs = [
        layer_cache_spec(layer.attention, n, batch, length, dtype) for layer, n in run_lengths(cfg)
    ]
    return Cache(runs, slots, slots, Spec((), (), dtype=jnp.int32))


def init_cache(cfg: DecoderConfig, batch: int, length: int, dtype: Any = jnp.float32) -> Cache:
    """An empty cache of `length` slots for `batch` rows."""
    return materialise(cache_spec(cfg, batch, length, dtype), key=jax.random.key(0))


def apply(
    params: dict[str, Any],
    tokens: jax.Array,
    *,
    cfg: DecoderConfig,
    positions: jax.Array | None = None,
    segments: jax.Array | None = None,
    cache: Cache | None = None,
    dtype: Any = None,
    remat: str | None = None,
    layout: Layout | None = None,
    impl: dict[str, str] | None = None,
) -> Output:
    """The forward pass up to the final norm.

    A token sees the tokens of its own segment whose position is not later than its own. With
    neither positions nor segments that is plain causal attention over the T tokens.

    Args:
      params: tree of `spec(cfg)`, any float type; a pruned tree with its own cfg runs the same.
      tokens: int32 [B, T].
      cfg: the model.
      positions: int32 [B, T]; None counts from 0, or from `cache.length` with a cache.
      segments: int32 [B, T], the document of each token; 0 is padding, which nobody attends to
        and which router statistics leave out. None is one document a row.
      cache: earlier tokens; T slots are written at `cache.length`, which must not exceed the
        cache's length less T (slots are clamped, not checked, under jit).
      dtype: type of the activations; None takes the embedding table's.
      remat: what backward recomputes: None (nothing), "full" or "dots".
      layout: how activations are split, or None.
      impl: {operator: implementation} for "attention" and "expert_mlp"; None chooses.

    Returns:
      Hidden states [B, T, D], the new cache, and router statistics.
    """
    x = constrain(embed(params, tokens, dtype=dtype), ("batch", "length", "embed"), layout)
    plain = positions is None and segments is None and cache is None
    start = 0 if cache is None else cache.length
    if positions is None:
        positions = jnp.broadcast_to(start + jnp.arange(tokens.shape[1]), tokens.shape)
    valid = None if segments is None else segments > 0
    if segments is None:
        segments = jnp.ones(tokens.shape, jnp.int32)
    if cache is not None:
        cache = _enter(cache, positions, segments)
    source = Cache([], positions, segments, None) if cache is None else cache
    mask = None if plain else visible(segments, positions, source.segments, source.positions)

    runs, router = [], []
    for index, (layer, _) in enumerate(run_lengths(cfg)):
        x, run, stats = apply_run(
            params["runs"][index],
            x,
            rotation(positions, layer.attention.head_dim, cfg.rope),
            mask,
            valid,
            layer=layer,
            eps=cfg.norm_eps,
            cache=None if cache is None else cache.runs[index],
            start=start,
            remat=remat,
            layout=layout,
            impl=impl,
        )
        runs.append(run)
        router.append(stats)
    if cache is not None:
        cache = cache.replace(runs=runs, length=start + tokens.shape[1])
    return Output(rms_norm(params["norm"], x, eps=cfg.norm_eps), cache, router)


def apply_run(
    params: dict[str, Any],
    x: jax.Array,
    rotation: tuple[jax.Array, jax.Array],
    mask: jax.Array | None,
    valid: jax.Array | None = None,
    *,
    layer: LayerConfig,
    eps: float,
    cache: dict[str, Any] | None = None,
    start: Any = 0,
    remat: str | None = None,
    layout: Layout | None = None,
    impl: dict[str, str] | None = None,
) -> tuple[jax.Array, dict[str, Any] | None, RouterStats | None]:
    """One run of equal layers, with `lax.scan`.

    Args:
      params: the run's stacked parameters.
      x: [B, T, D].
      rotation: cosines and sines, float32 [B, T, C/2] each.
      mask: bool [B, T, S] or None for causal.
      valid: bool [B, T], false for padding, or None.
      layer: the configuration of the run's layers.
      eps: of the norms.
      cache: the run's keys and values [L, B, S, K, C], or None.
      start: first slot to write in the cache.
      remat: what backward recomputes.
      layout: how activations are split, or None.
      impl: {operator: implementation}.

    Returns:
      [B, T, D], the run's cache, and statistics stacked over the layers (None for dense ones).
    """

    def body(carry, inputs):
        x, cache = carry
        weights, index = inputs
        slot = None if cache is None else LayerCache(cache["key"], cache["value"], index, start)
        x, slot, stats = block(
            weights,
            x,
            rotation,
            mask,
            valid,
            cfg=layer,
            eps=eps,
            cache=slot,
            layout=layout,
            impl=impl,
        )
        return (x, None if slot is None else {"key": slot.key, "value": slot.value}), stats

    (x, cache), stats = scan_layers(body, (x, cache), params, policy=remat)
    return x, cache, stats


def embed(params: dict[str, Any], tokens: jax.Array, *, dtype: Any = None) -> jax.Array:
    """Rows of the embedding table: int32 [B, T] to [B, T, D]; an id outside it gives NaN."""
    with jax.named_scope("embed"):
        rows = jnp.take(params["embed"]["table"], tokens, axis=0)
    return rows if dtype is None else rows.astype(dtype)


def head_kernel(params: dict[str, Any]) -> jax.Array:
    """The output projection [D, V]: the head's kernel, or the table where they are tied."""
    return params["head"]["kernel"] if "head" in params else params["embed"]["table"].T


def logits(params: dict[str, Any], hidden: jax.Array, *, layout: Layout | None = None) -> jax.Array:
    """Scores of the next token: [..., D] to float32 [..., V]."""
    kernel = head_kernel(params).astype(hidden.dtype)
    scores = jnp.dot(hidden, kernel, preferred_element_type=jnp.float32)
    axes = (*("batch", "length")[: hidden.ndim - 1], "vocab")
    return constrain(scores, axes, layout)


def count_active(cfg: DecoderConfig) -> int:
    """Parameters that one token uses: all but the routed experts it is not sent to."""
    idle = 0
    for layer in cfg.layers:
        if layer.moe is not None:
            unused = layer.moe.experts - layer.moe.groups * layer.moe.top_k
            idle += unused * 3 * cfg.width * layer.moe.width
    return count(spec(cfg)) - idle


def _enter(cache: Cache, positions: jax.Array, segments: jax.Array) -> Cache:
    at = (0, cache.length)
    return cache.replace(
        positions=jax.lax.dynamic_update_slice(cache.positions, positions, at),
        segments=jax.lax.dynamic_update_slice(cache.segments, segments, at),
    )
