"""Building blocks of rules: operators that fold constants and simplify adjacent nodes."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from pangu_jax.export.onnx.graph import SMALL, Graph, Node, Shape, Value

REDUCTIONS = ("ReduceSum", "ReduceMax", "ReduceMin", "ReduceProd", "ReduceMean")


def apply(g: Graph, op: str, *values: Value, dtype: Any = None, **attributes: Any) -> Value:
    """An elementwise operator; its operands broadcast."""
    shape = np.broadcast_shapes(*(v.shape for v in values))
    held = np.broadcast_shapes(*(v.held for v in values))
    full_rank = [v for v in values if len(v.held) == len(held)]
    inputs = [_scalar(g, v) if _spare(v, full_rank) else v for v in values]
    dtype = values[0].dtype if dtype is None else dtype
    return g.emit(op, inputs, shape, dtype, held, **attributes)


def _spare(value: Value, full_rank: Sequence[Value]) -> bool:
    """Whether a one-element constant can give up its rank, another operand keeping it."""
    if value.array is None or value.array.size != 1 or value.held == ():
        return False
    return any(v is not value and v.array is None for v in full_rank)


def _scalar(g: Graph, value: Value) -> Value:
    assert value.array is not None
    return g.constant(value.array.reshape(()))


def scalar(g: Graph, number: Any, like: Value) -> Value:
    """A constant number of the type of another value."""
    return g.constant(np.asarray(number, like.dtype))


def cast(g: Graph, value: Value, dtype: Any) -> Value:
    """Casts a value to another type; float to integer truncates."""
    dtype = np.dtype(dtype)
    if value.dtype == dtype:
        return value
    if value.foldable:
        return _like(g, value, value.array.astype(dtype), value.shape)
    node = g.emit("Cast", [value], value.shape, dtype, value.held, to=dtype.name)
    ints = dtype.kind == "i" and value.dtype.kind == "i"
    return dataclasses.replace(node, bounds=value.bounds if ints else None)


def full(g: Graph, value: Value) -> Value:
    """The value with its broadcasting written out."""
    if value.whole:
        return value
    if value.foldable and np.prod(value.shape) <= SMALL:
        return _like(g, value, np.broadcast_to(value.array, value.shape), value.shape)
    grown = g.emit("Expand", [value, g.ints(value.shape)], value.shape, value.dtype)
    return dataclasses.replace(grown, bounds=value.bounds)


def reshape(g: Graph, value: Value, shape: Shape) -> Value:
    """Reshapes a value."""
    shape = tuple(shape)
    if shape == value.shape:
        return value
    held = _held_after(value, shape)
    if held is None:
        value = full(g, value)
        held = shape
    return _reheld(g, value, held, shape)


def _held_after(value: Value, shape: Shape) -> Shape | None:
    """The held shape if only dimensions of 1 come and go; None if elements move between others."""
    if value.whole:
        return shape
    solid = [(s, h) for s, h in zip(value.shape, value.held, strict=True) if s != 1]
    if [s for s, _ in solid] != [s for s in shape if s != 1]:
        return None
    left = iter(h for _, h in solid)
    return tuple(1 if s == 1 else next(left) for s in shape)


def _reheld(g: Graph, value: Value, held: Shape, shape: Shape) -> Value:
    """The tensor of `value` reshaped to `held`, standing for `shape`."""
    if value.held == held:
        return dataclasses.replace(value, shape=shape)
    if value.foldable:
        return _like(g, value, value.array.reshape(held), shape)
    node = g.producer(value)
    if node is not None and node.op == "Reshape":
        source = g.value(node.inputs[0])
        if source.held == held:
            return dataclasses.replace(source, shape=shape, bounds=value.bounds)
        value = dataclasses.replace(source, bounds=value.bounds)
    elif node is not None and node.op in REDUCTIONS:
        kept = _keeping(g, node, value, held)
        if kept is not None:
            return dataclasses.replace(kept, shape=shape)
    made = g.emit("Reshape", [value, g.ints(held)], shape, value.dtype, held)
    return dataclasses.replace(made, bounds=value.bounds)


def _keeping(g: Graph, node: Node, value: Value, held: Shape) -> Value | None:
    """The same reduction with dimensions of 1 kept, if the reshape only restores them."""
    source = g.value(node.inputs[0])
    axes = reduced_axes(g, node)
    if held != tuple(1 if i in axes else s for i, s in enumerate(source.held)):
        return None
    return reduction(g, node.op, source, axes, keep=True)


def reduced_axes(g: Graph, node: Node) -> tuple[int, ...]:
    """The axes that a reduction node reduces."""
    if node.op == "ReduceSum":
        array = g.value(node.inputs[1]).array
        assert array is not None
        return tuple(int(a) for a in array)
    return node.attributes["axes"]


def reduction(g: Graph, op: str, value: Value, axes: Sequence[int], *, keep: bool) -> Value:
    """A reduction over axes of a whole value; only ReduceSum takes the axes as input."""
    axes = tuple(int(a) for a in axes)
    left = [1 if i in axes else s for i, s in enumerate(value.shape)]
    shape = tuple(s for i, s in enumerate(left) if keep or i not in axes)
    if op == "ReduceSum":
        return g.emit(op, [value, g.ints(axes)], shape, value.dtype, keepdims=int(keep))
    return g.emit(op, [value], shape, value.dtype, axes=axes, keepdims=int(keep))


def transpose(g: Graph, value: Value, order: Sequence[int]) -> Value:
    """Permutes the axes of a value."""
    order = tuple(int(i) for i in order)
    if order == tuple(range(len(order))):
        return value
    shape = tuple(value.shape[i] for i in order)
    held = tuple(value.held[i] for i in order)
    if value.foldable:
        return _like(g, value, value.array.transpose(order), shape)
    solid = [i for i in order if value.held[i] != 1]
    if solid == sorted(solid):  # only dimensions of 1 move
        return _reheld(g, value, held, shape)
    node = g.producer(value)
    if node is not None and node.op == "Transpose":
        source = g.value(node.inputs[0])
        order = tuple(node.attributes["perm"][i] for i in order)
        if order == tuple(range(len(order))):
            return dataclasses.replace(source, shape=shape, bounds=value.bounds)
        value = dataclasses.replace(source, bounds=value.bounds)
    made = g.emit("Transpose", [value], shape, value.dtype, held, perm=order)
    return dataclasses.replace(made, bounds=value.bounds)


def cut(
    g: Graph, value: Value, starts: Sequence[int], stops: Sequence[int], steps: Sequence[int]
) -> Value:
    """A strided slice with constant places; steps may be -1 (then `starts` is the last element)."""
    sizes = [len(range(a, b, c)) for a, b, c in zip(starts, stops, steps, strict=True)]
    shape = tuple(sizes)
    axes = [
        i
        for i, s in enumerate(value.held)
        if not (s == 1 and value.shape[i] > 1) and (sizes[i] != value.shape[i] or steps[i] < 0)
    ]
    held = tuple(
        sizes[i] if i in axes or h == value.shape[i] else 1 for i, h in enumerate(value.held)
    )
    if not axes:
        return dataclasses.replace(value, shape=shape)
    if value.foldable:
        spans = [slice(None)] * len(shape)
        for i in axes:
            last = None if steps[i] < 0 and stops[i] < 0 else stops[i]
            spans[i] = slice(starts[i], last, steps[i])
        return _like(g, value, value.array[tuple(spans)], shape)
    far = -(2**31)
    ends = [far if steps[i] < 0 and stops[i] < 0 else stops[i] for i in axes]
    places = [[starts[i] for i in axes], ends, axes, [steps[i] for i in axes]]
    inputs = [value, *(g.ints(place) for place in places)]
    made = g.emit("Slice", inputs, shape, value.dtype, held)
    return dataclasses.replace(made, bounds=value.bounds)


def concat(g: Graph, values: Sequence[Value], axis: int) -> Value:
    """Concatenates values along an axis."""
    values = [v for v in values if v.shape[axis]] or values[:1]
    if len(values) == 1:
        return values[0]
    values = [full(g, v) for v in values]
    shape = list(values[0].shape)
    shape[axis] = sum(v.shape[axis] for v in values)
    if all(v.foldable for v in values):
        return g.constant(np.concatenate([v.array for v in values], axis))
    return g.emit("Concat", values, tuple(shape), values[0].dtype, axis=axis)


def gather(g: Graph, value: Value, index: Value, axis: int) -> Value:
    """Rows of a whole value along an axis, at whole integer indices that are in range."""
    shape = (*value.shape[:axis], *index.shape, *value.shape[axis + 1 :])
    if value.foldable and index.foldable:
        return _like(g, value, np.take(value.array, index.array, axis), shape)
    return g.emit("Gather", [value, index], shape, value.dtype, axis=axis)


def pad(g: Graph, value: Value, low: Sequence[int], high: Sequence[int], fill: Value) -> Value:
    """A whole value with `fill` around it; negative amounts cut off."""
    starts = [max(-a, 0) for a in low]
    stops = [s - max(-b, 0) for s, b in zip(value.shape, high, strict=True)]
    value = cut(g, value, starts, stops, [1] * len(starts))
    low, high = [max(a, 0) for a in low], [max(b, 0) for b in high]
    if not any(low) and not any(high):
        return value
    shape = tuple(a + s + b for a, s, b in zip(low, value.shape, high, strict=True))
    kind = value.dtype
    if kind == np.bool_:  # no Pad for truth values everywhere
        value, fill = cast(g, value, np.int32), cast(g, fill, np.int32)
    made = g.emit("Pad", [value, g.ints([*low, *high]), fill], shape, value.dtype, mode="constant")
    return cast(g, made, kind)


def where(g: Graph, condition: Value, yes: Value, no: Value) -> Value:
    """Elements of `yes` where the condition holds, else of `no`."""
    if condition.foldable and condition.array.size:
        if condition.array.all():
            return spread(yes, condition, no)
        if not condition.array.any():
            return spread(no, condition, yes)
    if yes.dtype != np.bool_:
        made = apply(g, "Where", condition, yes, no, dtype=yes.dtype)
        joint = yes.bounds and no.bounds
        bounds = (
            (min(yes.bounds[0], no.bounds[0]), max(yes.bounds[1], no.bounds[1])) if joint else None
        )
        return dataclasses.replace(made, bounds=bounds)
    if _is(yes, True) and _is(no, False):
        return spread(condition, yes, no) if condition.held else apply(g, "And", condition, yes)
    if _is(no, False):
        return apply(g, "And", condition, yes)
    chosen = apply(g, "And", condition, yes)
    return apply(g, "Or", chosen, apply(g, "And", apply(g, "Not", condition), no))


def _is(value: Value, truth: bool) -> bool:
    return value.foldable and value.array.size > 0 and bool((value.array == truth).all())


def spread(value: Value, *others: Value) -> Value:
    """The value, standing for its broadcast with others."""
    shape = np.broadcast_shapes(value.shape, *(v.shape for v in others))
    missing = len(shape) - len(value.shape)
    if not missing:
        return dataclasses.replace(value, shape=shape)
    if value.array is not None and value.name is None:
        held = (1,) * missing + value.held
        return dataclasses.replace(value, shape=shape, held=held, array=value.array.reshape(held))
    raise AssertionError("a scalar of the graph met an array without a broadcast")


def _like(g: Graph, value: Value, array: np.ndarray, shape: Shape) -> Value:
    """A constant made from another, standing for `shape`, under the same label."""
    made = g.constant(array, label=value.label)
    return dataclasses.replace(made, shape=tuple(shape), bounds=made.bounds)
