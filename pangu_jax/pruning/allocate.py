"""How much of each layer to prune: layer ratios, and widths for a parameter or FLOP target."""

import dataclasses
import math
from collections.abc import Callable

import numpy as np

from pangu_jax.core.errors import InputError
from pangu_jax.models.decoder import DecoderConfig
from pangu_jax.nn.block import LayerConfig
from pangu_jax.pruning import axes
from pangu_jax.pruning.axes import Sizes


@dataclasses.dataclass(frozen=True)
class Target:
    """How much to keep: of the whole model, or of single axes.

    Attributes:
      params: share of the parameters.
      flops: share of a forward pass's FLOPs; give one of params and flops.
      groups: share of the KV groups of each layer.
      heads: share of the query heads of each group.
      ffn: share of the FFN channels.
      hidden: share of the residual stream's channels.
      layers: number of layers.
    """

    params: float | None = None
    flops: float | None = None
    groups: float | None = None
    heads: float | None = None
    ffn: float | None = None
    hidden: float | None = None
    layers: int | None = None

    def __post_init__(self):
        for name in ("params", "flops", "groups", "heads", "ffn", "hidden"):
            value = getattr(self, name)
            if value is not None and not 0 < value <= 1:
                raise InputError(f"target {name} must be in (0, 1], got {value:g}")
        if self.params is not None and self.flops is not None:
            raise InputError("a target takes params or flops, not both")

    def __str__(self) -> str:
        """As `parse` reads it."""
        found = ((f.name, getattr(self, f.name)) for f in dataclasses.fields(self))
        return ",".join(f"{name}={value:g}" for name, value in found if value is not None)


def parse(text: str) -> Target:
    """Reads "params=0.8", "flops=0.7", "ffn=0.5,groups=0.75,layers=24", ...

    Raises:
      InputError: an unknown name, one given twice, or no number.
    """
    names = [f.name for f in dataclasses.fields(Target)]
    found = {}
    for part in text.split(","):
        name, _, value = part.strip().partition("=")
        if name not in names:
            raise InputError(f"target {part.strip()!r} is not one of {', '.join(names)}=NUMBER")
        if name in found:
            raise InputError(f"target {name} is given twice in {text!r}")
        try:
            found[name] = int(value) if name == "layers" else float(value)
        except ValueError as error:
            raise InputError(f"target {name} must be a number, got {value!r}") from error
        if not math.isfinite(found[name]):
            raise InputError(f"target {name} must be a finite number, got {value}")
    return Target(**found)


@dataclasses.dataclass(frozen=True)
class Limits:
    """Constraints on widths.

    Attributes:
      multiple: FFN and hidden widths are multiples of it, where the model's own are; None is 16,
        which matrix units like, for widths of at least 256, and 1 below.
      max_ratio: most that is taken of one layer.
      heads_divide: whether the number of heads must divide the model width, which stock
        transformers asks of a Llama.
      equal: whether all layers get the same widths.
      length: context for which attention FLOPs are counted.
    """

    multiple: int | None = None
    max_ratio: float = 0.9
    heads_divide: bool = False
    equal: bool = True
    length: int = 128

    def __post_init__(self):
        if self.multiple is not None and self.multiple < 1:
            raise InputError(f"multiple must be at least 1, got {self.multiple}")
        if not 0 < self.max_ratio <= 1:
            raise InputError(f"max_ratio must be in (0, 1], got {self.max_ratio}")

    def step(self, *widths: int) -> int:
        """What widths that are cut from these are multiples of."""
        multiple = self.multiple or (16 if min(widths) >= 256 else 1)
        return multiple if all(width % multiple == 0 for width in widths) else 1


def layer_ratios(
    similarity: np.ndarray,
    ratio: float,
    *,
    number: int | None = None,
    alpha: float = 10.0,
    max_ratio: float = 0.9,
) -> np.ndarray:
    """SlimLLM's ratios: softmax(alpha * similarity) over the most redundant layers, float64 [L].

    Args:
      similarity: [L], mean cosine of each layer's input and output.
      ratio: mean ratio over the pruned layers.
      number: how many layers are pruned; None is all.
      alpha: how uneven.
      max_ratio: what goes beyond it in a layer is spread over the others.

    Raises:
      InputError: `ratio` exceeds `max_ratio`, so no clamping can meet it.

    Source: arXiv 2505.22689; the clamp is ours (the paper's ratios can exceed 1).
    """
    number = len(similarity) if number is None else number
    if not 1 <= number <= len(similarity):
        raise InputError(f"pruned layers must be 1 to {len(similarity)}, got {number}")
    if ratio > max_ratio:
        raise InputError(f"a mean ratio of {ratio:g} exceeds the most of a layer, {max_ratio:g}")
    chosen = np.argsort(-similarity, kind="stable")[:number]
    weight = np.exp(alpha * (similarity[chosen] - similarity[chosen].max()))
    found = ratio * number * weight / weight.sum()
    capped = np.zeros(number, bool)
    while (found > max_ratio * (1 + 1e-12)).any():
        capped |= found >= max_ratio
        found[capped] = max_ratio
        rest = ratio * number - max_ratio * capped.sum()
        found[~capped] = rest * weight[~capped] / weight[~capped].sum()
    ratios = np.zeros(len(similarity))
    ratios[chosen] = found
    return ratios


def shrink(
    cfg: DecoderConfig,
    target: Target,
    *,
    prunable_axes: tuple[str, ...],
    limits: Limits = Limits(),
    shape: Callable[[float], np.ndarray] | None = None,
    kept: list[int] | None = None,
    biased: bool = False,
) -> DecoderConfig:
    """The largest configuration of these layers that meets the target.

    Axes that the target names take their share; the `prunable_axes` share one ratio, found by
    bisection; FFN channels then fill what is left, one at a time.

    Args:
      cfg: the original model.
      target: what is to be left.
      prunable_axes: axes that a params or flops target may cut: groups, ffn, hidden.
      limits: what widths may be.
      shape: ratio to the ratios of the kept layers; None is the same for all.
      kept: numbers of the layers that stay, None for all.
      biased: whether a repair will give the out and down projections biases, which count too.

    Raises:
      InputError: the target cannot be met; says what the smallest possible is.
    """
    layers = cfg.layers if kept is None else tuple(cfg.layers[i] for i in kept)
    layers = tuple(_biased(layer) for layer in layers) if biased else layers
    base = dataclasses.replace(cfg, layers=layers)
    prunable_axes = tuple(name for name in prunable_axes if getattr(target, name) is None)
    make = _Maker(base, target, prunable_axes, limits, shape or (lambda r: np.full(len(layers), r)))
    share = target.params if target.params is not None else target.flops
    if share is None:
        return make(0.0)
    cost = axes.parameters if target.params is not None else _flops(limits.length)
    goal = share * cost(cfg)
    low, high = 0.0, limits.max_ratio
    if cost(make(low)) <= goal:
        return make(low)
    smallest = cost(make(high))
    if smallest > goal:
        name = "params" if target.params is not None else "flops"
        raise InputError(
            f"the target {name}={share:g} cannot be met by cutting "
            f"{', '.join(prunable_axes) or 'nothing'}: at most {limits.max_ratio:g} of a layer "
            f"goes, which leaves {smallest / cost(cfg):.3f}"
        )
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if cost(make(middle)) > goal else (low, middle)
    return _fill(make(high), base, goal, cost, limits) if "ffn" in prunable_axes else make(high)


def _biased(layer: LayerConfig) -> LayerConfig:
    return dataclasses.replace(
        layer,
        attention=dataclasses.replace(layer.attention, out_bias=True),
        mlp=dataclasses.replace(layer.mlp, out_bias=True),
    )


class _Maker:
    """Configurations by ratio."""

    def __init__(self, base, target, prunable_axes, limits, shape):
        self.base, self.target, self.prunable_axes = base, target, prunable_axes
        self.limits, self.shape = limits, shape

    def __call__(self, ratio: float) -> DecoderConfig:
        ratios = np.minimum(self.shape(ratio), self.limits.max_ratio)
        width = self._width(ratio)
        layers = tuple(
            axes.resized(layer, self._sizes(axes.sizes(layer), float(r), width))
            for layer, r in zip(self.base.layers, ratios, strict=True)
        )
        return dataclasses.replace(self.base, width=width, layers=layers)

    def _share(self, name: str, ratio: float) -> float:
        fixed = getattr(self.target, name)
        if fixed is not None:
            return fixed
        return 1.0 - ratio if name in self.prunable_axes else 1.0

    def _width(self, ratio: float) -> int:
        step = self.limits.step(self.base.width)
        first = axes.sizes(self.base.layers[0])
        if self.limits.heads_divide and self._share("hidden", ratio) < 1:
            # The original number of heads: every group count that divides it divides the width too.
            step = math.lcm(step, first.groups * first.heads)
        return _multiple(self._share("hidden", ratio) * self.base.width, step, self.base.width)

    def _sizes(self, size: Sizes, ratio: float, width: int) -> Sizes:
        heads = max(1, round(self._share("heads", ratio) * size.heads))
        wanted = self._share("groups", ratio) * size.groups
        allowed = [
            g
            for g in range(1, size.groups + 1)
            if not self.limits.heads_divide or width % (g * heads) == 0 or g == size.groups
        ]
        # The nearest allowed one; of two equally near, the larger.
        groups = min(reversed(allowed), key=lambda g: abs(g - wanted))
        ffn = _multiple(self._share("ffn", ratio) * size.ffn, self.limits.step(size.ffn), size.ffn)
        return Sizes(groups, heads, ffn)


def _fill(found, base, goal, cost, limits) -> DecoderConfig:
    """Gives FFN channels back while the goal allows it: to all layers, or one after the other."""
    whole = [axes.sizes(layer).ffn for layer in base.layers]
    now = [axes.sizes(layer).ffn for layer in found.layers]
    step = limits.step(*whole)
    rows = [list(range(len(whole)))] if limits.equal else [[i] for i in range(len(whole))]

    def at(widths):
        layers = (
            axes.resized(layer, dataclasses.replace(axes.sizes(layer), ffn=width))
            for layer, width in zip(found.layers, widths, strict=True)
        )
        return dataclasses.replace(found, layers=tuple(layers))

    room, start = goal - cost(found), cost(found)
    # A channel of a layer costs the same however many there are.
    each = [cost(at([w + (i in row) for i, w in enumerate(now)])) - start for row in rows]
    grew = True
    while grew:
        grew = False
        for row, one in zip(rows, each, strict=True):
            if one * step <= room and all(now[i] + step <= whole[i] for i in row):
                now = [w + step * (i in row) for i, w in enumerate(now)]
                room, grew = room - one * step, True
    return at(now)


def _flops(length: int) -> Callable[[DecoderConfig], float]:
    return lambda cfg: axes.flops(cfg, length)


def _multiple(wanted: float, step: int, most: int) -> int:
    return int(min(most, max(step, step * round(wanted / step))))
