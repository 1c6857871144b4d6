"""The transformer's layers applied to embeddings, shared by decoders and encoders.

Parameters:

    {"runs": [stacked layer trees, every leaf with a leading layers axis],
     "norm": {"scale": [D]}}          absent where the layers end with a norm of their own

A run is a maximal stretch of layers of equal configuration, so a model whose layers all differ has
runs of one layer. `apply` maps embeddings to hidden states, so that states can be fed back,
spliced or pooled without another model; `unrolled` writes the layers out one by one.
"""

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import jax
import jax.numpy as jnp
from flax import struct

from pangu_jax.core.config import check_size
from pangu_jax.core.errors import InputError
from pangu_jax.core.spec import stack
from pangu_jax.nn.attention import AttentionConfig, LayerCache
from pangu_jax.nn.block import LayerConfig, block, block_spec
from pangu_jax.nn.how import HOW, How
from pangu_jax.nn.moe import RouterStats
from pangu_jax.nn.norm import norm, norm_spec
from pangu_jax.nn.rotary import RopeConfig, rotation
from pangu_jax.nn.stack import run_lengths as _run_lengths
from pangu_jax.nn.stack import scan_layers, split
from pangu_jax.ops.attention import visible
from pangu_jax.ops.packed import Packed, pack
from pangu_jax.sharding.layout import constrain

# Far above any model; a file that says more is wrong, and would be worked on for hours.
MOST_LAYERS, MOST_EXPERTS = 10_000, 2**20


class TransformerConfig(Protocol):
    """Fields shared by the configurations of all transformers.

    Attributes:
      width: D, model width.
      layers: one configuration per layer.
      rope: rotary embedding, for layers that use it.
      norm_eps: of every norm.
    """

    @property
    def width(self) -> int: ...  # noqa: D102
    @property
    def layers(self) -> tuple[LayerConfig, ...]: ...  # noqa: D102
    @property
    def rope(self) -> RopeConfig: ...  # noqa: D102
    @property
    def norm_eps(self) -> float: ...  # noqa: D102


@struct.dataclass
class Output:
    """The result of a forward pass.

    Attributes:
      hidden: [B, T, D] after the final norm.
      router: for each run, None or the `RouterStats` stacked over its layers.
    """

    hidden: jax.Array
    router: list[RouterStats | None]


def check_layers(name: str, cfg: TransformerConfig) -> None:
    """Checks a model's layers, width and eps.

    Raises:
      InputError: names what is out of range, and the model by `name`.
    """
    check_size(f"{name} width", cfg.width)
    if not 0 < cfg.norm_eps < 1:
        raise InputError(f"{name} norm_eps must be in (0, 1), got {cfg.norm_eps}")
    if not cfg.layers:
        raise InputError(f"{name} layers must be at least one")
    check_size(f"{name} number of layers", len(cfg.layers), most=MOST_LAYERS)
    experts = sum(layer.moe.experts for layer in cfg.layers if layer.moe)
    check_size(f"{name} number of experts", experts, least=0, most=MOST_EXPERTS)
    if len({layer.norm_place == "post" for layer in cfg.layers}) > 1:
        raise InputError(f"{name} layers must all have norm_place post, or none")


def run_lengths(cfg: TransformerConfig) -> list[tuple[LayerConfig, int]]:
    """The model's runs: [(layer configuration, number of layers), ...]."""
    return _run_lengths(cfg.layers)


def spec(cfg: TransformerConfig) -> dict[str, Any]:
    """The spec tree of the layers and, unless they end with one, of the final norm."""
    # Each layer adds two branches to the residual: their sum keeps unit size at the start.
    gain = (2 * len(cfg.layers)) ** -0.5
    runs = [stack(block_spec(cfg.width, layer, gain=gain), n) for layer, n in run_lengths(cfg)]
    last = cfg.layers[-1]
    tree: dict[str, Any] = {"runs": runs}
    return tree if last.norm_place == "post" else {**tree, "norm": norm_spec(last.norm, cfg.width)}


def apply(
    params: dict[str, Any],
    x: jax.Array,
    *,
    cfg: TransformerConfig,
    positions: jax.Array | None = None,
    segments: jax.Array | None = None,
    documents: int | None = None,
    key: jax.Array | None = None,
    how: How = HOW,
) -> Output:
    """All layers and the final norm.

    A token sees the tokens of its own segment and, in causal layers, only those whose position is
    not later than its own and within the layer's window. With neither positions nor segments a row
    is one document.

    Args:
      params: tree of `spec(cfg)`, any float type; other branches are left alone.
      x: [B, T, D], embeddings, whose type the activations have.
      cfg: the model.
      positions: int32 [B, T]; None counts from 0.
      segments: int32 [B, T], the document of each token; 0 is padding, which no token attends
        to and which router statistics leave out. None is one document per row.
      documents: the most documents in a row, if every document is one stretch of tokens whose
        positions count up, as in packed rows: attention then needs no mask of [B, T, T]. A row with
        more yields NaN. None makes no promise.
      key: for dropout; None drops nothing.
      how: layout, implementations, and what backward recomputes.

    Returns:
      Hidden states [B, T, D], and router statistics.
    """
    x = constrain(x, ("batch", "length", "embed"), how.layout)
    plain = positions is None and segments is None
    if positions is None:
        positions = jnp.broadcast_to(jnp.arange(x.shape[1]), x.shape[:2])
    valid = None if segments is None else segments > 0
    if segments is None:
        segments = jnp.ones(x.shape[:2], jnp.int32)
    if not any(layer.dropout for layer in cfg.layers):
        key = None

    packed = None
    if documents is not None:  # split as queries are, which kernels over devices rely on
        axes = ("batch", None)
        packed = Packed(
            *(constrain(x, axes[: x.ndim], how.layout) for x in pack(segments, documents))
        )

    @_once_each
    def sees(causal, window):
        if packed is not None and causal:
            return packed
        return visible(segments, positions, segments, positions, causal=causal, window=window)

    turns = _once_each(lambda head_dim: rotation(positions, head_dim, cfg.rope))
    router, first = [], 0
    for index, (layer, number) in enumerate(run_lengths(cfg)):
        heads = layer.attention
        x, stats = apply_run(
            params["runs"][index],
            x,
            turns(heads.head_dim) if heads.rotary else None,
            None if plain else sees(heads.causal, heads.window),
            valid,
            layer=layer,
            eps=cfg.norm_eps,
            key=None if key is None else jax.random.fold_in(key, first),
            how=how,
        )
        router.append(stats)
        first += number
    return Output(final_norm(params, x, cfg=cfg), router)


def apply_run(
    params: dict[str, Any],
    x: jax.Array,
    rotation: tuple[jax.Array, jax.Array] | None,
    mask: jax.Array | Packed | None,
    valid: jax.Array | None = None,
    *,
    layer: LayerConfig,
    eps: float,
    key: jax.Array | None = None,
    how: How = HOW,
) -> tuple[jax.Array, RouterStats | None]:
    """One run of equal layers, with `lax.scan`.

    Args:
      params: the run's stacked parameters.
      x: [B, T, D].
      rotation: cosines and sines, float32 [B, T, C/2] each, or None.
      mask: bool [B, T, T], for packed rows; None is the layer's own mask of one document per row.
      valid: bool [B, T], false for padding, or None.
      layer: the configuration of the run's layers.
      eps: of the norms.
      key: for dropout, or None.
      how: layout, implementations, and what backward recomputes.

    Returns:
      [B, T, D], and statistics stacked over the layers (None for dense ones).
    """

    def body(x, inputs):
        weights, index = inputs
        x, _, stats = block(
            weights,
            x,
            rotation,
            mask,
            valid,
            cfg=layer,
            eps=eps,
            key=None if key is None else jax.random.fold_in(key, index),
            how=how,
        )
        return x, stats

    return scan_layers(body, x, params, policy=how.remat, unroll=how.unroll or 1)


def by_layer(params: dict[str, Any], *, donate: bool = False) -> dict[str, Any]:
    """The parameters with "layers", one tree per layer, in place of "runs".

    Args:
      params: tree of `spec(cfg)`; one that has "layers" is returned.
      donate: see `nn.stack.split`; without it the layers are held twice while `params` are.
    """
    if "layers" in params:
        return params
    rest = {name: branch for name, branch in params.items() if name != "runs"}
    return {**rest, "layers": split(params["runs"], donate=donate)}


def unrolled(
    layers: Sequence[Any],
    x: jax.Array,
    positions: jax.Array,
    sees: Callable[[AttentionConfig], jax.Array | None],
    caches: Sequence[LayerCache | None],
    *,
    cfg: TransformerConfig,
    note: Callable[[jax.Array], None] = lambda state: None,
    how: How = HOW,
) -> tuple[jax.Array, list[LayerCache | None]]:
    """The layers written out one by one, each with its own parameters and cache.

    Args:
      layers: a tree of `nn.block.block_spec` per layer.
      x: [B, T, D], embeddings.
      positions: int32 [B, T].
      sees: the mask of layers of an attention, bool [B, T, S] or None; see `block`.
      caches: one per layer, None for layers without.
      cfg: the model.
      note: called with the output of each layer, [B, T, D].
      how: implementations.

    Returns:
      [B, T, D] before the final norm, and the caches.
    """
    turns = _once_each(lambda head_dim: rotation(positions, head_dim, cfg.rope))
    found = []
    for weights, layer, cache in zip(layers, cfg.layers, caches, strict=True):
        heads = layer.attention
        turn = turns(heads.head_dim) if heads.rotary else None
        x, cache, _ = block(
            weights, x, turn, sees(heads), cfg=layer, eps=cfg.norm_eps, cache=cache, how=how
        )
        found.append(cache)
        note(x)
    return x, found


def with_caches(
    runs: Sequence[Any],
    x: jax.Array,
    positions: jax.Array,
    sees: Callable[[AttentionConfig], jax.Array | None],
    caches: Sequence[tuple[jax.Array, jax.Array]],
    start: jax.Array | int,
    *,
    cfg: TransformerConfig,
    note: Callable[[jax.Array], None] | None = None,
    how: How = HOW,
) -> tuple[jax.Array, list[tuple[jax.Array, jax.Array]]]:
    """Like `unrolled`, with a loop over the layers of each run: it compiles much faster.

    Args:
      runs: stacked trees, as `spec(cfg)` has them.
      x: [B, T, D], embeddings.
      positions: int32 [B, T].
      sees: the mask of layers of an attention, bool [B, T, S] or None; see `block`.
      caches: keys and values of each run, [L, B, S, K, C].
      start: the first slot of the caches to write.
      cfg: the model.
      note: called with the output of each layer, [B, T, D].
      how: implementations.

    Returns:
      [B, T, D] before the final norm, and the caches.
    """
    turns = _once_each(lambda head_dim: rotation(positions, head_dim, cfg.rope))
    found = []
    for weights, (layer, _), cache in zip(runs, run_lengths(cfg), caches, strict=True):
        heads = layer.attention
        turn, mask = turns(heads.head_dim) if heads.rotary else None, sees(heads)

        def body(x, inputs, layer=layer, turn=turn, mask=mask):
            (own, rows), _ = inputs
            x, rows, _ = block(
                own,
                x,
                turn,
                mask,
                cfg=layer,
                eps=cfg.norm_eps,
                cache=LayerCache(*rows, jnp.int32(start)),
                how=how,
            )
            assert rows is not None
            return x, (None if note is None else x, (rows.key, rows.value))

        x, (states, cache) = scan_layers(body, x, (weights, cache), unroll=how.unroll or 1)
        if note is not None:
            for state in states:
                note(state)
        found.append(cache)
    return x, found


def final_norm(params: dict[str, Any], x: jax.Array, *, cfg: TransformerConfig) -> jax.Array:
    """The norm after the layers, unless they end with their own: [..., D] to [..., D]."""
    if "norm" not in params:
        return x
    return norm(params["norm"], x, kind=cfg.layers[-1].norm, eps=cfg.norm_eps)


def _once_each(function: Callable) -> Callable:
    """A function that computes its array once for each of its arguments, within one trace."""
    found: dict[Any, Any] = {}

    def look_up(*arguments):
        if arguments not in found:
            found[arguments] = function(*arguments)
        return found[arguments]

    return look_up
