"""Rules of reductions and of running sums."""

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np

from pangu_jax.export.onnx.build import (
    apply,
    cast,
    concat,
    full,
    pad,
    reduction,
    reshape,
    scalar,
    transpose,
)
from pangu_jax.export.onnx.graph import Graph, Unsupported, Value
from pangu_jax.export.onnx.shape import cut_axis, rev


def _reduce(op: str) -> Callable:
    def rule(g: Graph, eqn: Any, x: Value) -> Value:
        axes = eqn.params["axes"]
        if not axes:
            return x
        kind = x.dtype
        x = full(g, x)
        if kind == np.bool_:
            x = cast(g, x, np.int32)
        return cast(g, reduction(g, op, x, axes, keep=False), kind)

    return rule


def _arg(op: str) -> Callable:
    def rule(g: Graph, eqn: Any, x: Value) -> Value:
        (axis,) = eqn.params["axes"]
        x = full(g, x)
        if x.dtype == np.bool_:
            x = cast(g, x, np.int32)
        shape = (*x.shape[:axis], *x.shape[axis + 1 :])
        found = g.emit(op, [x], shape, np.int64, axis=axis, keepdims=0, select_last_index=0)
        return cast(g, bounded(found, x.shape[axis]), eqn.params["index_dtype"])

    return rule


def bounded(index: Value, size: int) -> Value:
    """An index that is known to lie inside an axis of `size`."""
    return dataclasses.replace(index, bounds=(0, size - 1))


def cumsum(g: Graph, eqn: Any, x: Value) -> Value:
    """Running sum."""
    axis = g.constant(np.int64(eqn.params["axis"]))
    backward = int(eqn.params["reverse"])
    x = full(g, x)
    return g.emit("CumSum", [x, axis], x.shape, x.dtype, reverse=backward)


def _running(op: str) -> Callable:
    """Running products and extremes, in log2 steps of combining with what lies 1, 2, 4... back."""

    def rule(g: Graph, eqn: Any, x: Value) -> Value:
        axis, x = eqn.params["axis"], full(g, x)
        flip = _Flip(axis)
        if eqn.params["reverse"]:
            x = rev(g, flip, x)
        step, size = 1, x.shape[axis]
        while step < size:
            head = cut_axis(g, x, axis, 0, step)
            tail = cut_axis(g, x, axis, step, size)
            earlier = cut_axis(g, x, axis, 0, size - step)
            x = concat(g, [head, apply(g, op, tail, earlier)], axis)
            step *= 2
        return rev(g, flip, x) if eqn.params["reverse"] else x

    return rule


def _pool(op: str, neutral: float) -> Callable:
    """A window moved over up to three axes; the others are taken as channels."""

    def rule(g: Graph, eqn: Any, x: Value) -> Value:
        p, x = eqn.params, full(g, x)
        window, strides = p["window_dimensions"], p["window_strides"]
        moved = [
            i for i, (w, s) in enumerate(zip(window, strides, strict=True)) if (w, s) != (1, 1)
        ]
        plain = (*p["base_dilation"], *p["window_dilation"])
        if any(d != 1 for d in plain) or len(moved) > 3 or x.dtype != np.float32:
            raise Unsupported(
                f"{g.origin} with dilation, or over more than 3 axes, has no operator"
            )
        moved = moved or [len(window) - 1]
        low, high = zip(*p["padding"], strict=True)
        x = pad(g, x, low, high, scalar(g, neutral, x))
        rest = [i for i in range(len(window)) if i not in moved]
        order = [*rest, *moved]
        sizes = eqn.outvars[0].aval.shape
        x = transpose(g, x, order)
        space = tuple(x.shape[len(rest) :])
        x = reshape(g, x, (1, int(np.prod([x.shape[i] for i in range(len(rest))])), *space))
        kernel = tuple(window[i] for i in moved)
        shape = (1, x.shape[1], *(sizes[i] for i in moved))
        made = g.emit(op, [x], shape, x.dtype, kernel_shape=kernel,
                      strides=tuple(strides[i] for i in moved))  # fmt: skip
        if op == "AveragePool":
            made = apply(g, "Mul", made, scalar(g, int(np.prod(kernel)), made))
        made = reshape(g, made, tuple(sizes[i] for i in order))
        return transpose(g, made, np.argsort(order))

    return rule


class _Flip:
    """A stand-in for an equation, with the parameters that `rev` reads."""

    def __init__(self, axis: int):
        self.params = {"dimensions": (axis,)}


RULES: dict[str, Callable] = {
    "reduce_sum": _reduce("ReduceSum"),
    "reduce_max": _reduce("ReduceMax"),
    "reduce_min": _reduce("ReduceMin"),
    "reduce_prod": _reduce("ReduceProd"),
    "reduce_and": _reduce("ReduceMin"),
    "reduce_or": _reduce("ReduceMax"),
    "reduce_window_max": _pool("MaxPool", -np.inf),
    "reduce_window_sum": _pool("AveragePool", 0),
    "argmax": _arg("ArgMax"),
    "argmin": _arg("ArgMin"),
    "cumsum": cumsum,
    "cumprod": _running("Mul"),
    "cummax": _running("Max"),
    "cummin": _running("Min"),
}
