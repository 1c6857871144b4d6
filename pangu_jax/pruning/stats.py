"""Calibration statistics, layer by layer, with one layer boundary of activations in memory.

`sweep` walks the decoder once. At each layer it accumulates the moments of the inputs of the out
projection and of the down projection, asks a visitor whether to replace that projection (units
masked by zero rows, repaired weights, a bias), and continues with the answer:

    propagate = "pruned": later layers see the activations of the layers as replaced (SlimLLM);
    propagate = "dense":  they see those of the original model (FLAP, Minitron).

Masked weights have the dense shapes, so every layer of a run uses one compilation.
"""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from pangu_jax.core.config import check_choice
from pangu_jax.core.errors import InputError
from pangu_jax.models import decoder, transformer
from pangu_jax.models.decoder import DecoderConfig
from pangu_jax.nn.block import attention_half, mlp_half
from pangu_jax.nn.how import HOW, How
from pangu_jax.nn.rotary import rotation
from pangu_jax.pruning import moments
from pangu_jax.pruning.moments import Moments

Projection = dict[str, jax.Array]


@struct.dataclass
class LayerStats:
    """Calibration statistics of one layer; all sums merge by addition.

    Attributes:
      weights: the layer's parameters, as in the checkpoint.
      heads: moments of the out projection's K * Q * C inputs, Q query heads per KV head.
      held_heads: the same over the held-out windows, or None.
      channels: moments of the down projection's F inputs.
      held_channels: the same over the held-out windows, or None.
      mlp_squares: [D], sum over tokens of the squared input of gate and up (after the norm).
      norm_absolute: [2, D], for the attention's and the mlp's norm, the sum over windows of
        (mean over tokens of |its output|)^2.
      similarity: sum over tokens of cos(layer input, layer output).
      post_rms: [2, 3], for the sandwich norms of the two branches, sums over tokens of r, r^2 and
        1/r, where r is the root mean square that the norm divides by; zeros without such norms.
      tokens: number of tokens of the sums above.
      saliency: {"heads": [K, Q], "groups": [K], "channels": [F]} of the Taylor score, or None.
    """

    weights: dict[str, Any]
    heads: Moments
    held_heads: Moments | None
    channels: Moments | None
    held_channels: Moments | None
    mlp_squares: Any
    norm_absolute: Any
    similarity: Any
    post_rms: Any
    tokens: Any
    saliency: dict[str, Any] | None = None


@struct.dataclass
class Stats:
    """Statistics of all layers.

    Attributes:
      layers: one entry per layer.
      cfg: the model.
    """

    layers: tuple[LayerStats, ...]
    cfg: DecoderConfig = struct.field(pytree_node=False)


class Visitor(Protocol):
    """Called by `sweep` at each site; None leaves the projection unchanged."""

    def heads(self, layer: int, stats: LayerStats) -> Projection | None:
        """The out projection to continue with: {"kernel": [K, Q, C, D], "bias": [D]}."""
        ...

    def channels(self, layer: int, stats: LayerStats) -> Projection | None:
        """The down projection to continue with: {"kernel": [F, D], "bias": [D]}."""
        ...


@dataclasses.dataclass(frozen=True)
class SweepConfig:
    """Settings of a calibration sweep.

    Attributes:
      batch: windows computed at once.
      held_out: share of the windows kept apart to choose the ridge, at least one batch of them
        unless it is 0.
      moments: type of the sums: float64, or float32 where memory matters more.
      offload: whether the layer boundary lies in host memory.
    """

    batch: int = 8
    held_out: float = 0.25
    moments: str = "float64"
    offload: bool = False

    def __post_init__(self):
        if self.batch < 1:
            raise InputError(f"calibration batch must be at least 1, got {self.batch}")
        if not 0 <= self.held_out < 1:
            raise InputError(f"held_out must be in [0, 1), got {self.held_out}")
        check_choice("moments", self.moments, ("float32", "float64"))


def moments_type(cfg: DecoderConfig) -> str:
    """Float64, but for layers so wide that their moments take too much, and for TPUs, float32."""
    wide = max(layer.mlp.width if layer.mlp else 0 for layer in cfg.layers)
    return "float64" if jax.default_backend() != "tpu" and wide <= 8192 else "float32"


def collect(
    params: dict[str, Any],
    windows: np.ndarray,
    *,
    cfg: DecoderConfig,
    sweep_cfg: SweepConfig = SweepConfig(),
    visitor: Visitor | None = None,
    progress: Callable[[int, int], None] | None = None,
    how: How = HOW,
) -> Stats:
    """Statistics of every layer, all kept: for models whose moments fit in memory.

    Args:
      params: tree of `decoder.spec(cfg)`.
      windows: int32 [windows, T], calibration tokens.
      cfg: a dense decoder.
      sweep_cfg: batches and types.
      visitor: replaces projections on the way (pruned propagation), None for the dense model.
      progress: called with layers done and layers in all.
      how: implementations, and the type of activations.

    Raises:
      InputError: a routed layer, no window, or a statistic that is not finite (names the layer).
    """
    found: list[LayerStats] = []
    sweep(
        params,
        windows,
        cfg=cfg,
        sweep_cfg=sweep_cfg,
        visitor=visitor,
        keep=found.append,
        progress=progress,
        how=how,
    )
    return Stats(tuple(found), cfg)


def sweep(
    params: dict[str, Any],
    windows: np.ndarray,
    *,
    cfg: DecoderConfig,
    sweep_cfg: SweepConfig = SweepConfig(),
    visitor: Visitor | None = None,
    propagate: str = "pruned",
    second_order: bool = True,
    similarity: bool = True,
    keep: Callable[[LayerStats], Any] | None = None,
    progress: Callable[[int, int], None] | None = None,
    how: How = HOW,
) -> None:
    """Walks the layers once; `collect` keeps everything, a visitor only what it needs.

    Args:
      params: tree of `decoder.spec(cfg)`.
      windows: int32 [windows, T], calibration tokens.
      cfg: a dense decoder.
      sweep_cfg: batches and types.
      visitor: asked at each site.
      propagate: "pruned" or "dense": which activations the next layer sees.
      second_order: whether to accumulate moments.
      similarity: whether to accumulate cos(layer input, layer output), which keeps a second
        boundary.
      keep: called with each layer's statistics.
      progress: called with layers done and layers in all.
      how: implementations, and the type of activations.

    Raises:
      InputError: as in `collect`.
    """
    _check(windows, cfg, propagate)
    with jax.enable_x64(True):
        batches, held = _batches(params, windows, cfg, sweep_cfg, how)
        positions = jnp.arange(windows.shape[1], dtype=jnp.int32)[None]
        index = 0
        for run, (layer, count) in enumerate(transformer.run_lengths(cfg)):
            turn = rotation(positions, layer.attention.head_dim, cfg.rope)
            static = {"cfg": layer, "eps": cfg.norm_eps, "how": how}
            walk = _Walk(params["runs"][run], turn, static, sweep_cfg, held)
            for place in range(count):
                batches, stats = walk.layer(
                    place, index, batches, visitor, propagate, second_order, similarity
                )
                if keep is not None:
                    keep(stats)
                index += 1
                if progress is not None:
                    progress(index, len(cfg.layers))


def memory(cfg: DecoderConfig, windows: np.ndarray, sweep_cfg: SweepConfig, dtype: Any) -> int:
    """Bytes a sweep needs besides the parameters: one boundary and the widest layer's moments."""
    size, item = np.dtype(dtype).itemsize, np.dtype(sweep_cfg.moments).itemsize
    boundary = windows.size * cfg.width * size * (not sweep_cfg.offload)
    widest = max(
        max(x.attention.kv_heads * x.attention.q_per_kv * x.attention.head_dim, x.mlp.width)
        for x in cfg.layers
        if x.mlp is not None
    )
    sets = 2 if sweep_cfg.held_out else 1
    batch = sweep_cfg.batch * windows.shape[1] * widest * (item + 2 * size)
    kept = _keeps_units(windows.size, widest, size, item) and not sweep_cfg.offload
    units = windows.size * widest * size * kept
    # The moments, and up to four times the largest for what a repair gathers and solves.
    return boundary + units + batch + (sets + 4) * widest * widest * item


def _keeps_units(tokens: int, units: int, size: int, item: int) -> bool:
    """Whether a projection's inputs are kept from their measurement to their use.

    Else it is computed again: then it would take more than what a repair gathers, or would have to
    be brought back from the host.
    """
    return tokens * size <= 4 * units * item


class _Seen(dict):
    """A tap that records an array, and replaces it if it has a replacement."""

    def __init__(self, **instead: jax.Array | None):
        super().__init__()
        self.instead = {place: x for place, x in instead.items() if x is not None}

    def __call__(self, place: str, x: jax.Array) -> jax.Array:
        self[place] = self.instead.get(place, x)
        return self[place]


class _Walk:
    """One run's layers; its jitted functions are shared by all of them."""

    def __init__(self, weights, turn, static, sweep_cfg, held):
        self.weights, self.turn, self.held, self.static = weights, turn, held, static
        self.dtype, self.offload = jnp.dtype(sweep_cfg.moments), sweep_cfg.offload
        self.width = weights["mlp"]["down"]["kernel"].shape[-1]
        self.store = np.asarray if sweep_cfg.offload else lambda x: x
        # Sums start on the parameters' devices; otherwise each function compiles twice.
        devices = jax.tree.leaves(weights)[0].devices()
        self.home = next(iter(devices)) if len(devices) == 1 else None

    def _zeros(self, *shape):
        return jnp.zeros(shape, self.dtype, device=self.home)

    def layer(self, place, index, batches, visitor, propagate, second_order, similarity):
        """The next boundary, and the layer's statistics; `batches` is overwritten."""
        at = jnp.int32(place)
        weights = _weights(self.weights, at) if second_order else None
        heads, held_heads, absolute, units = self._heads(at, batches, second_order)
        empty = self._zeros(self.width)
        tokens = sum(x.shape[0] * x.shape[1] for x in batches)
        stats = LayerStats(
            weights=weights,
            heads=heads,
            held_heads=held_heads,
            channels=None,
            held_channels=None,
            mlp_squares=empty,
            norm_absolute=jnp.stack([absolute, empty]),
            similarity=self._zeros(),
            post_rms=self._zeros(2, 3),
            tokens=jnp.asarray(tokens, self.dtype),
        )
        out = visitor.heads(index, stats) if visitor is not None else None
        goes_on = out if propagate == "pruned" else None
        before = list(batches) if similarity else [None] * len(batches)
        rms = self._zeros(3)
        for i, x in enumerate(batches):
            y, r = _attention(self.weights, at, goes_on, x, units[i], self.turn, **self.static)
            batches[i], units[i] = self.store(y), None
            rms += r
        channels, held_channels, squares, absolute, units = self._channels(
            at, batches, second_order
        )
        stats = stats.replace(
            channels=channels,
            held_channels=held_channels,
            mlp_squares=squares,
            norm_absolute=stats.norm_absolute.at[1].set(absolute),
            post_rms=stats.post_rms.at[0].set(rms),
        )
        down = visitor.channels(index, stats) if visitor is not None else None
        goes_on = down if propagate == "pruned" else None
        rms, cosine = self._zeros(3), self._zeros()
        for i, x in enumerate(batches):
            y, r, s = _mlp(self.weights, at, goes_on, before[i], x, units[i], **self.static)
            batches[i], before[i], units[i] = self.store(y), None, None
            rms, cosine = rms + r, cosine + s
        _check_finite(batches, index)
        return batches, stats.replace(similarity=cosine, post_rms=stats.post_rms.at[1].set(rms))

    def _heads(self, at, batches, second_order):
        out = self.weights["attention"]["out"]["kernel"].shape
        number = out[1] * out[2] * out[3]
        found = self._empty(number, second_order)
        absolute, units = self._zeros(self.width), self._none(batches)
        if second_order:
            keep = self._keeps(batches, number)
            for i, (x, held) in enumerate(zip(batches, self.held, strict=True)):
                found[held], absolute, units[i] = _observe_heads(
                    self.weights, at, x, self.turn, found[held], absolute, keep=keep, **self.static,
                )  # fmt: skip
        return (*found, absolute, units)

    def _channels(self, at, middle, second_order):
        number = self.weights["mlp"]["down"]["kernel"].shape[1]
        found = self._empty(number, second_order)
        squares = absolute = self._zeros(self.width)
        units = self._none(middle)
        if second_order:
            keep = self._keeps(middle, number)
            for i, (x, held) in enumerate(zip(middle, self.held, strict=True)):
                found[held], squares, absolute, units[i] = _observe_channels(
                    self.weights, at, x, found[held], squares, absolute, keep=keep, **self.static,
                )  # fmt: skip
        return (*found, squares, absolute, units)

    def _keeps(self, batches, units):
        tokens = sum(x.shape[0] * x.shape[1] for x in batches)
        fits = _keeps_units(tokens, units, batches[0].dtype.itemsize, self.dtype.itemsize)
        return fits and not self.offload

    @staticmethod
    def _none(batches):
        return [None] * len(batches)

    def _empty(self, units, second_order):
        """Moments of the fitted and of the held-out windows, or None."""
        return [
            moments.zeros(units, self.dtype, self.home)
            if second_order and part in self.held
            else None
            for part in (False, True)
        ]


def _layer(run, at):
    return jax.tree.map(lambda x: jax.lax.dynamic_index_in_dim(x, at, keepdims=False), run)


@jax.jit
def _weights(run, at):
    return _layer(run, at)


_STATIC = ("cfg", "eps", "how")


@partial(jax.jit, static_argnames=("keep", *_STATIC))
def _observe_heads(run, at, x, turn, found, absolute, *, keep, **static):
    seen = _Seen()
    attention_half(_layer(run, at), x, turn, None, tap=seen, **static)
    units = seen["attention/out"]
    absolute = absolute + _absolute(seen["attention"], absolute.dtype)
    return moments.add(found, units), absolute, units if keep else None


@partial(jax.jit, static_argnames=("keep", *_STATIC))
def _observe_channels(run, at, x, found, squares, absolute, *, keep, **static):
    seen = _Seen()
    mlp_half(_layer(run, at), x, tap=seen, **static)
    read, units = seen["mlp"], seen["mlp/down"]
    squares = squares + (read.astype(squares.dtype) ** 2).sum((0, 1))
    absolute = absolute + _absolute(read, absolute.dtype)
    return moments.add(found, units), squares, absolute, units if keep else None


def _absolute(x, dtype):
    return (jnp.abs(x.astype(dtype)).mean(1) ** 2).sum(0)


@partial(jax.jit, static_argnames=_STATIC)
def _attention(run, at, out, x, units, turn, **static):
    weights = _layer(run, at)
    if out is not None:
        weights["attention"] = {**weights["attention"], "out": out}
    seen = _Seen(**{"attention/out": units})
    after, _ = attention_half(weights, x, turn, None, tap=seen, **static)
    return after, _divisors(seen.get("attention_post_norm"), static["eps"])


@partial(jax.jit, static_argnames=_STATIC)
def _mlp(run, at, down, before, x, units, **static):
    weights = _layer(run, at)
    if down is not None:
        weights["mlp"] = {**weights["mlp"], "down": down}
    seen = _Seen(**{"mlp/down": units})
    after, _ = mlp_half(weights, x, tap=seen, **static)
    rms = _divisors(seen.get("mlp_post_norm"), static["eps"])
    if before is None:
        return after, rms, jnp.float32(0)
    a, b = before.astype(jnp.float32), after.astype(jnp.float32)
    norms = jnp.linalg.norm(a, axis=-1) * jnp.linalg.norm(b, axis=-1)
    return after, rms, ((a * b).sum(-1) / jnp.maximum(norms, 1e-30)).sum()


def _divisors(read, eps):
    """Sums of r, r^2 and 1/r, where r is what an RMS norm divides by; zeros without a norm."""
    if read is None:
        return jnp.zeros(3, jnp.float32)
    r = jnp.sqrt((read.astype(jnp.float32) ** 2).mean(-1) + eps)
    return jnp.stack([r.sum(), (r * r).sum(), (1 / r).sum()])


def _batches(params, windows, model: DecoderConfig, cfg: SweepConfig, how: How):
    """Embedded batches and, for each, whether it is held out."""
    size = min(cfg.batch, max(1, -(-len(windows) // 4)))
    parts = [windows[i : i + size] for i in range(0, len(windows), size)]
    held = [False] * len(parts)
    if cfg.held_out and len(parts) > 1:
        number = min(max(1, round(cfg.held_out * len(parts))), len(parts) - 1)
        for i in range(number):  # spread over the text, the last batch among them
            held[-1 - i * (len(parts) // number)] = True
    tokens = (jnp.asarray(part, jnp.int32) for part in parts)
    embedded = [decoder.embed(params, part, cfg=model, how=how) for part in tokens]
    return [np.asarray(x) for x in embedded] if cfg.offload else embedded, held


def _check(windows: np.ndarray, cfg: DecoderConfig, propagate: str) -> None:
    for i, layer in enumerate(cfg.layers):
        if layer.mlp is None:
            raise InputError(f"layer {i} is routed; only dense layers can be pruned")
        if not layer.mlp.gated or layer.norm != "rms" or layer.norm_place == "post":
            raise InputError(
                f"layer {i} is not gated, or not normalized by RMS before its branches; only "
                "layers of Llama's kind can be pruned"
            )
    if propagate not in ("pruned", "dense"):
        raise InputError(f"propagate must be pruned or dense, got {propagate!r}")
    if windows.ndim != 2 or not windows.size:
        raise InputError(f"calibration needs windows [N, T], got shape {windows.shape}")
    if windows.min() < 0 or windows.max() >= cfg.vocab:
        raise InputError(
            f"calibration ids go from {windows.min()} to {windows.max()}, "
            f"the model's vocabulary from 0 to {cfg.vocab - 1}: is it another tokenizer's text?"
        )


def _check_finite(batches: list[jax.Array], index: int) -> None:
    if not all([_finite(x) for x in batches]):
        raise InputError(
            f"the activations of layer {index} are not finite: the checkpoint's weights hold NaN "
            "or infinity, or overflow in this type of activations"
        )


@jax.jit
def _finite(x: jax.Array) -> jax.Array:
    return jnp.isfinite(x).all()
