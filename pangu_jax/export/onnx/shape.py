"""Rules of primitives that move elements; each folds where its input is constant."""

import dataclasses
import itertools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from pangu_jax.export.onnx.build import concat, cut, full, pad, reshape, transpose
from pangu_jax.export.onnx.graph import Graph, Value


def broadcast_in_dim(g: Graph, eqn: Any, x: Value, *sizes: Value) -> Value:
    """Only the rank changes in the graph; operators broadcast what is of size 1."""
    shape, places = eqn.params["shape"], eqn.params["broadcast_dimensions"]
    middle = [1] * len(shape)
    for dim, place in enumerate(places):
        middle[place] = x.shape[dim]
    return dataclasses.replace(reshape(g, x, tuple(middle)), shape=tuple(shape))


def reshape_(g: Graph, eqn: Any, x: Value) -> Value:
    """Reshapes."""
    return reshape(g, x, eqn.outvars[0].aval.shape)


def transpose_(g: Graph, eqn: Any, x: Value) -> Value:
    """Permutes axes."""
    return transpose(g, x, eqn.params["permutation"])


def concatenate(g: Graph, eqn: Any, *values: Value) -> Value:
    """Concatenates along an axis."""
    return concat(g, values, eqn.params["dimension"])


def stack(g: Graph, eqn: Any, *values: Value) -> Value:
    """Stacks along a new axis."""
    axis = next(v for k, v in eqn.params.items() if k in ("axis", "dimension"))
    rows = [reshape(g, full(g, v), (*v.shape[:axis], 1, *v.shape[axis:])) for v in values]
    return concat(g, rows, axis)


def slice_(g: Graph, eqn: Any, x: Value) -> Value:
    """A slice with constant bounds."""
    steps = eqn.params["strides"] or (1,) * len(x.shape)
    return cut(g, x, eqn.params["start_indices"], eqn.params["limit_indices"], steps)


def cut_axis(g: Graph, x: Value, axis: int, start: int, stop: int) -> Value:
    """A slice of one axis."""
    starts, stops = [0] * len(x.shape), list(x.shape)
    starts[axis], stops[axis] = start, stop
    return cut(g, x, starts, stops, [1] * len(starts))


def split(g: Graph, eqn: Any, x: Value) -> Sequence[Value]:
    """Consecutive parts of an axis."""
    axis, sizes = eqn.params["axis"], eqn.params["sizes"]
    places = np.cumsum([0, *sizes])
    if x.foldable or x.held[axis] != x.shape[axis] or len(sizes) == 1:
        pairs = itertools.pairwise(places)
        return [cut_axis(g, x, axis, int(a), int(b)) for a, b in pairs]
    outputs = []
    for size in sizes:
        shape, held = list(x.shape), list(x.held)
        shape[axis] = held[axis] = size
        outputs.append((tuple(shape), x.dtype, tuple(held)))
    return g.emit_many("Split", [x, g.ints(sizes)], outputs, axis=axis)


def rev(g: Graph, eqn: Any, x: Value) -> Value:
    """Axes backward."""
    back = [i in eqn.params["dimensions"] and s > 1 for i, s in enumerate(x.shape)]
    starts = [s - 1 if b else 0 for b, s in zip(back, x.shape, strict=True)]
    stops = [-1 if b else s for b, s in zip(back, x.shape, strict=True)]
    return cut(g, x, starts, stops, [-1 if b else 1 for b in back])


def pad_(g: Graph, eqn: Any, x: Value, fill: Value) -> Value:
    """Pads with `fill` around and, for interior padding, between the elements."""
    config = eqn.params["padding_config"]
    x = dilate(g, full(g, x), [c[2] + 1 for c in config], fill)
    return pad(g, x, [c[0] for c in config], [c[1] for c in config], fill)


def dilate(g: Graph, x: Value, factors: Sequence[int], fill: Value) -> Value:
    """Whole `x` with factor - 1 fills between neighbors, by padding an extra axis."""
    for axis, factor in enumerate(factors):
        if factor == 1 or x.shape[axis] < 2:
            continue
        before, size, after = x.shape[:axis], x.shape[axis], x.shape[axis + 1 :]
        wide = reshape(g, x, (*before, size, 1, *after))
        high = [0] * len(wide.shape)
        high[axis + 1] = factor - 1
        wide = pad(g, wide, [0] * len(high), high, fill)
        flat = reshape(g, wide, (*before, size * factor, *after))
        x = cut_axis(g, flat, axis, 0, (size - 1) * factor + 1)
    return x


def iota(g: Graph, eqn: Any, *sizes: Value) -> Value:
    """Numbers along one axis, broadcast over the others."""
    shape, axis = eqn.params["shape"], eqn.params["dimension"]
    held = [1] * len(shape)
    held[axis] = shape[axis]
    row = np.arange(shape[axis]).astype(eqn.params["dtype"]).reshape(held)
    return dataclasses.replace(g.constant(row), shape=tuple(shape))


def _same(g: Graph, eqn: Any, *values: Value) -> Sequence[Value]:
    return values


RULES: dict[str, Callable] = {
    "broadcast_in_dim": broadcast_in_dim,
    "reshape": reshape_,
    "squeeze": reshape_,
    "expand_dims": reshape_,
    "transpose": transpose_,
    "concatenate": concatenate,
    "stack": stack,
    "slice": slice_,
    "split": split,
    "rev": rev,
    "pad": pad_,
    "iota": iota,
    "optimization_barrier": _same,
    "sharding_constraint": _same,
    "mesh_cast": _same,
    "device_put": _same,
}
