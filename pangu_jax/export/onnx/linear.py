"""Rules of products: dot_general as one MatMul, convolutions as Conv."""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from pangu_jax.export.onnx.build import cast, full, pad, reshape, scalar, transpose
from pangu_jax.export.onnx.graph import Graph, Unsupported, Value
from pangu_jax.export.onnx.shape import dilate


class _Axes(NamedTuple):
    """Axes of one operand: batch, contracted, and free in the order wanted of the result."""

    batch: list[int]
    contracted: list[int]
    free: list[int]

    def reordered(self, batch: Sequence[int], free: Sequence[int]) -> "_Axes":
        """The same axes with batch and free ones in another order."""
        return _Axes([self.batch[i] for i in batch], self.contracted, [self.free[i] for i in free])


def dot_general(
    g: Graph, eqn: Any, lhs: Value, rhs: Value, *, after: Sequence[int] | None = None
) -> Value:
    """Batch, free and contracted axes in MatMul's order, each group in one axis.

    Args:
      g: the graph.
      eqn: the equation.
      lhs: left operand.
      rhs: right operand.
      after: the transpose that follows, if `absorbs` says that the product can do without it; then
        the transposed result is returned.
    """
    (lc, rc), (lb, rb) = eqn.params["dimension_numbers"]
    kind = eqn.outvars[0].aval.dtype
    lhs, rhs = full(g, cast(g, lhs, kind)), full(g, cast(g, rhs, kind))
    left = _Axes(list(lb), list(lc), [i for i in range(len(lhs.shape)) if i not in (*lb, *lc)])
    right = _Axes(list(rb), list(rc), [i for i in range(len(rhs.shape)) if i not in (*rb, *rc)])
    order = _absorbed(list(after), len(lb), len(left.free)) if after is not None else None
    if order is not None:
        batch, first, second, swapped = order
        left = left.reordered(batch, first)
        right = right.reordered(batch, second)
        if swapped:
            lhs, rhs, left, right = rhs, lhs, right, left
    return _matmul(g, lhs, left, rhs, right)


def absorbs(eqn: Any, after: Sequence[int]) -> bool:
    """Whether MatMul can produce a product's result already transposed."""
    (contracted, _), (batch, _) = eqn.params["dimension_numbers"]
    free = len(eqn.invars[0].aval.shape) - len(contracted) - len(batch)
    return _absorbed(list(after), len(batch), free) is not None


def _absorbed(after: list[int], batch: int, first: int) -> tuple | None:
    """The order of batch, left and right axes that makes the transpose unneeded, if there is one.

    Also whether the right operand's free axes come first then.
    """
    head, tail = after[:batch], after[batch:]
    if any(i >= batch for i in head):
        return None
    left = [i - batch for i in tail if i < batch + first]
    right = [i - batch - first for i in tail if i >= batch + first]
    ordered = [*(i + batch for i in left), *(i + batch + first for i in right)]
    if tail == ordered:
        return head, left, right, False
    if tail == ordered[first:] + ordered[:first]:
        return head, left, right, True
    return None


def _matmul(g: Graph, lhs: Value, left: _Axes, rhs: Value, right: _Axes) -> Value:
    sizes = lambda value, axes: [value.shape[i] for i in axes]  # noqa: E731
    batch, depth = sizes(lhs, left.batch), math.prod(sizes(lhs, left.contracted))
    rows, columns = sizes(lhs, left.free), sizes(rhs, right.free)
    merged = [math.prod(rows)] if batch or not rows else rows  # a matrix serves all rows at once
    lhs = transpose(g, lhs, [*left.batch, *left.free, *left.contracted])
    lhs = reshape(g, lhs, (*batch, *merged, depth))
    rhs = transpose(g, rhs, [*right.batch, *right.contracted, *right.free])
    rhs = reshape(g, rhs, (*batch, depth, math.prod(columns)))
    shape = (*batch, *merged, math.prod(columns))
    made = g.emit("MatMul", [lhs, rhs], shape, lhs.dtype)
    return reshape(g, made, (*batch, *rows, *columns))


def conv(g: Graph, eqn: Any, lhs: Value, rhs: Value) -> Value:
    """Convolution with channels first, as in Conv; dilated inputs get zeros between elements."""
    p = eqn.params
    numbers = p["dimension_numbers"]
    if p["batch_group_count"] != 1:
        raise Unsupported(f"{g.origin} with batch groups has no operator")
    if not 1 <= len(lhs.shape) - 2 <= 3 or lhs.dtype != np.float32:
        raise Unsupported(
            f"{g.origin} over {len(lhs.shape) - 2} axes of {lhs.dtype} has no operator"
        )
    x = transpose(g, full(g, lhs), numbers.lhs_spec)
    w = transpose(g, full(g, rhs), numbers.rhs_spec)
    zero = scalar(g, 0, x)
    x = dilate(g, x, [1, 1, *p["lhs_dilation"]], zero)
    low, high = ([pair[i] for pair in p["padding"]] for i in (0, 1))
    if min(*low, *high, 0) < 0:
        x = pad(g, x, [0, 0, *low], [0, 0, *high], zero)
        low, high = [0] * len(low), [0] * len(high)
    sizes = eqn.outvars[0].aval.shape
    shape = tuple(sizes[i] for i in numbers.out_spec)
    made = g.emit(
        "Conv", [x, w], shape, x.dtype,
        kernel_shape=w.shape[2:], strides=tuple(p["window_strides"]),
        dilations=tuple(p["rhs_dilation"]), pads=(*low, *high), group=p["feature_group_count"],
    )  # fmt: skip
    return transpose(g, made, np.argsort(numbers.out_spec))


RULES: dict[str, Callable] = {"dot_general": dot_general, "conv_general_dilated": conv}
