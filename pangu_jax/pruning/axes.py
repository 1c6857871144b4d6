"""The axis registry: the dimensions of each leaf that pruning slices, read off the specs.

Slicing, counting and export all go through here, so a new leaf needs no change in this room: the
names of its axes say how it is cut.
"""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from pangu_jax.core.errors import InputError
from pangu_jax.core.spec import count, is_spec
from pangu_jax.core.tree import flatten
from pangu_jax.models import decoder
from pangu_jax.models.decoder import DecoderConfig
from pangu_jax.nn.block import LayerConfig

# What a user calls an axis, and the logical axis of the specs.
AXES = {"groups": "kv_heads", "heads": "q_per_kv", "ffn": "mlp", "hidden": "embed"}

# Kept indices by logical axis. Those of q_per_kv are [K', Q'], for each kept group.
Keep = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Sizes:
    """Widths of one layer: KV groups, query heads per group, FFN channels."""

    groups: int
    heads: int
    ffn: int


def sizes(layer: LayerConfig) -> Sizes:
    """The widths that a layer's configuration states."""
    if layer.mlp is None:
        raise InputError("a routed layer cannot be pruned")
    return Sizes(layer.attention.kv_heads, layer.attention.q_per_kv, layer.mlp.width)


def resized(layer: LayerConfig, new: Sizes) -> LayerConfig:
    """The layer's configuration at other widths."""
    attention = dataclasses.replace(layer.attention, kv_heads=new.groups, q_per_kv=new.heads)
    mlp = dataclasses.replace(layer.mlp, width=new.ffn)
    return dataclasses.replace(layer, attention=attention, mlp=mlp)


def cut(leaf: Any, axes: tuple[str | None, ...], keep: Keep) -> Any:
    """A leaf sliced to the kept indices of each of its axes.

    Args:
      leaf: any array.
      axes: the logical axis of each dimension, as its spec has it.
      keep: kept indices by logical axis; axes not named stay whole.
    """
    xp = np if isinstance(leaf, np.ndarray) else jnp
    for dimension, axis in enumerate(axes):
        if axis == "q_per_kv" and axis in keep:
            if dimension == 0 or axes[dimension - 1] != "kv_heads":
                raise InputError("the axis q_per_kv must follow kv_heads to be cut")
            index = np.asarray(keep[axis])
            index = index.reshape(
                *(1,) * (dimension - 1), *index.shape, *(1,) * (leaf.ndim - dimension - 1)
            )
            leaf = xp.take_along_axis(leaf, index, axis=dimension)
        elif axis in keep:
            leaf = xp.take(leaf, keep[axis], axis=dimension)
    return leaf


def host_view(leaf: Any) -> Any:
    """The leaf as a numpy view if that needs no copy, so that odd shapes need no compilation."""
    if isinstance(leaf, jax.core.Tracer) or not isinstance(leaf, jax.Array):
        return leaf
    on_host = jax.default_backend() == "cpu" and len(leaf.sharding.device_set) == 1
    return np.asarray(leaf) if on_host else leaf


def stack(leaves: list[Any]) -> jax.Array:
    """Stacks the layers' leaves, [...] each, to [layers, ...]."""
    if all(isinstance(leaf, np.ndarray) for leaf in leaves):
        return jnp.asarray(np.stack(leaves))
    return jnp.stack(leaves)


def leaves_along(spec: Any, axis: str) -> dict[str, tuple[int, ...]]:
    """The leaves that have a logical axis: {path: its dimensions}."""
    found = {
        path: tuple(i for i, name in enumerate(leaf.axes) if name == axis)
        for path, leaf in flatten(spec, is_leaf=is_spec).items()
    }
    return {path: dimensions for path, dimensions in found.items() if dimensions}


def parameters(cfg: DecoderConfig) -> int:
    """Number of parameters."""
    return count(decoder.spec(cfg))


def flops(cfg: DecoderConfig, length: int) -> float:
    """FLOPs per token (multiplications and additions) of a forward pass in a context of `length`.

    Two for each entry of each kernel, the output projection included, and the two products of
    causal attention, which see half the context on average.
    """
    spec = flatten(decoder.spec(cfg), is_leaf=is_spec)
    kernels = [x for name, x in spec.items() if name.endswith("kernel")]
    total = 2.0 * sum(math.prod(x.shape) for x in kernels)
    if cfg.tied:
        total += 2.0 * cfg.vocab * cfg.width
    for layer in cfg.layers:
        a = layer.attention
        total += 2.0 * length * a.kv_heads * a.q_per_kv * a.head_dim
    return total
