"""Rules of gathers, slices, updates and sorting."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from pangu_jax.export.onnx.build import (
    apply,
    cast,
    concat,
    full,
    gather,
    pad,
    reshape,
    scalar,
    transpose,
    where,
)
from pangu_jax.export.onnx.elementwise import compare
from pangu_jax.export.onnx.graph import Graph, Unsupported, Value
from pangu_jax.export.onnx.reduce import bounded
from pangu_jax.export.onnx.shape import cut_axis


def clip(g: Graph, x: Value, high: int) -> Value:
    """Clamps integers to 0 to `high`, with no more operators than their known bounds need."""
    low, top = x.bounds or (-1, high + 1)
    made = x
    if low < 0:
        made = apply(g, "Max", made, scalar(g, 0, x))
    if top > high:
        made = apply(g, "Min", made, scalar(g, high, x))
    return dataclasses.replace(made, bounds=(max(low, 0), min(top, high)))


def gather_(g: Graph, eqn: Any, operand: Value, indices: Value) -> Value:
    """XLA's gather: along one axis as Gather, else on the addressed axes flattened into one.

    Indices out of range follow the mode: the nearest row, or the fill value; nothing is checked if
    the caller promised that there are none.
    """
    p = eqn.params
    numbers, sizes, mode = p["dimension_numbers"], p["slice_sizes"], str(p["mode"]).split(".")[-1]
    operand, indices = full(g, operand), full(g, indices)
    batch = indices.shape[:-1]
    starts, valid = _starts(g, operand, indices, numbers.start_index_map, sizes, mode)
    hidden = {*numbers.collapsed_slice_dims, *numbers.operand_batching_dims}
    addressed = [
        d
        for d in range(len(sizes))
        if d in starts or d in numbers.operand_batching_dims or sizes[d] != operand.shape[d]
    ]
    if len(addressed) == 1 and addressed[0] in starts and sizes[addressed[0]] == 1:
        (axis,) = addressed
        found = gather(g, operand, starts[axis], axis)  # [before, batch, after]
        order = [*range(axis, axis + len(batch)), *range(axis)]
        found = transpose(g, found, [*order, *range(len(order), len(found.shape))])
        kept = [d for d in range(len(sizes)) if d != axis]
        if axis not in hidden:  # a window of one element stays as an axis of 1
            kept = sorted([*kept, axis])
            place = len(batch) + kept.index(axis)
            found = reshape(g, found, (*found.shape[:place], 1, *found.shape[place:]))
    else:
        found, kept = _flat(g, operand, starts, addressed, batch, numbers, sizes, hidden)
    windows = sorted(kept)
    found = transpose(
        g, found, [*range(len(batch)), *(len(batch) + kept.index(d) for d in windows)]
    )
    if valid is not None:
        fill = _fill_value(p["fill_value"], operand.dtype)
        valid = reshape(g, valid, (*batch, *(1,) * len(windows)))
        found = where(g, valid, found, scalar(g, fill, found))
    offset = list(numbers.offset_dims)
    rest = [d for d in range(len(found.shape)) if d not in offset]
    places = [*rest, *offset]  # where each axis of `found` goes
    return transpose(g, found, np.argsort(places))


def _starts(g, operand, indices, index_map, sizes, mode) -> tuple[dict[int, Value], Value | None]:
    """Starts of slices by operand axis, clamped; and which were inside, for filling."""
    starts, valid = {}, None
    last = len(indices.shape) - 1
    for number, dim in enumerate(index_map):
        start = cut_axis(g, indices, last, number, number + 1)
        start = reshape(g, start, indices.shape[:-1])
        bound = operand.shape[dim] - sizes[dim]
        low, high = start.bounds or (-1, bound + 1)
        if mode == "FILL_OR_DROP" and (low < 0 or high > bound):
            above = compare(g, "GreaterOrEqual", start, scalar(g, 0, start))
            below = compare(g, "LessOrEqual", start, scalar(g, bound, start))
            inside = apply(g, "And", above, below)
            valid = inside if valid is None else apply(g, "And", valid, inside)
        if mode != "PROMISE_IN_BOUNDS":
            start = clip(g, start, bound)
        starts[dim] = full(g, start)
    return starts, valid


def _flat(g, operand, starts, addressed, batch, numbers, sizes, hidden):
    """Gather with one index into the addressed axes: [batch, windows of these, other axes]."""
    rest = [d for d in range(len(sizes)) if d not in addressed]
    table = transpose(g, operand, [*addressed, *rest])
    extents = [operand.shape[d] for d in addressed]
    table = reshape(g, table, (int(np.prod(extents)), *(operand.shape[d] for d in rest)))
    windows = [d for d in addressed if d not in hidden]
    rank = len(batch) + len(windows)
    total = None
    for place, dim in enumerate(addressed):
        stride = int(np.prod(extents[place + 1 :]))
        for part in _parts(g, dim, starts, batch, windows, numbers, sizes, rank):
            term = apply(g, "Mul", part, scalar(g, stride, part)) if stride != 1 else part
            total = term if total is None else apply(g, "Add", total, term)
    assert total is not None
    shape = (*batch, *(sizes[d] for d in windows))
    total = full(g, dataclasses.replace(total, shape=shape))
    return gather(g, table, total, 0), [*windows, *rest]


def _parts(g, dim, starts, batch, windows, numbers, sizes, rank) -> list[Value]:
    """Summands of the index along one operand axis, each of rank `rank`."""
    parts = []
    if dim in starts:
        parts.append(reshape(g, starts[dim], (*batch, *(1,) * len(windows))))
    if dim in numbers.operand_batching_dims:
        which = numbers.operand_batching_dims.index(dim)
        parts.append(_line(g, batch[numbers.start_indices_batching_dims[which]],
                           numbers.start_indices_batching_dims[which], rank))  # fmt: skip
    if dim in windows and (sizes[dim] > 1 or dim not in starts):
        parts.append(_line(g, sizes[dim], len(batch) + windows.index(dim), rank))
    return parts


def _line(g: Graph, size: int, axis: int, rank: int) -> Value:
    held = [1] * rank
    held[axis] = size
    return g.constant(np.arange(size, dtype=np.int32).reshape(held))


def _fill_value(given: Any, dtype: np.dtype) -> Any:
    if given is not None:
        return given
    if dtype.kind == "f":
        return np.nan
    if dtype == np.bool_:
        return True
    return np.iinfo(dtype).min if dtype.kind == "i" else np.iinfo(dtype).max


def dynamic_slice(g: Graph, eqn: Any, operand: Value, *starts: Value) -> Value:
    """A part at a place known only later: a lookup of rows, axis by axis."""
    made = operand
    for axis, size in enumerate(eqn.params["slice_sizes"]):
        bound = operand.shape[axis] - size
        if bound == 0:
            continue
        start = clip(g, starts[axis], bound)
        if start.foldable:
            place = int(start.array.reshape(()))
            place = min(max(place, 0), bound)
            made = cut_axis(g, made, axis, place, place + size)
            continue
        rows = apply(g, "Add", _column(g, start), g.constant(np.arange(size, dtype=start.dtype)))
        made = gather(g, full(g, made), rows, axis)
    return made


def _column(g: Graph, number: Value) -> Value:
    return reshape(g, number, (1,))


def dynamic_update_slice(
    g: Graph, eqn: Any, operand: Value, update: Value, *starts: Value
) -> Value:
    """Writes a part: between constant places by joining, else by a mask over positions."""
    if update.shape == operand.shape:
        return update
    moving = [i for i, s in enumerate(operand.shape) if s != update.shape[i]]
    if all(starts[i].foldable for i in moving):
        return _write_at(g, operand, update, moving, starts)
    rank, mask = len(operand.shape), None
    for axis in moving:
        size, extent = update.shape[axis], operand.shape[axis]
        start = clip(g, starts[axis], extent - size)
        place = apply(g, "Sub", _line(g, extent, axis, rank), reshape(g, start, (1,) * rank))
        if size == 1:
            inside = compare(g, "Equal", place, scalar(g, 0, place))
        else:
            inside = apply(g, "And", compare(g, "GreaterOrEqual", place, scalar(g, 0, place)),
                           compare(g, "Less", place, scalar(g, size, place)))  # fmt: skip
            rows = reshape(
                g, clip(g, dataclasses.replace(place, shape=place.held), size - 1), (extent,)
            )
            update = gather(g, full(g, update), rows, axis)
        mask = inside if mask is None else apply(g, "And", mask, inside)
    return dataclasses.replace(where(g, mask, update, operand), shape=operand.shape)


def _write_at(g, operand, update, moving, starts) -> Value:
    places = [0] * len(operand.shape)
    for axis in moving:
        bound = operand.shape[axis] - update.shape[axis]
        places[axis] = min(max(int(starts[axis].array.reshape(())), 0), bound)
    low = places
    high = [o - u - p for o, u, p in zip(operand.shape, update.shape, places, strict=True)]
    if operand.foldable and operand.array.size and (operand.array == operand.array.flat[0]).all():
        return pad(g, full(g, update), low, high, g.constant(operand.array.flat[0]))
    made = update
    for axis in reversed(moving):  # outwards: what surrounds the part along each axis
        start, stop = places[axis], places[axis] + update.shape[axis]
        around = operand
        for other in moving:
            if other < axis:
                end = places[other] + update.shape[other]
                around = cut_axis(g, around, other, places[other], end)
        parts = [cut_axis(g, around, axis, 0, start), made]
        parts.append(cut_axis(g, around, axis, stop, operand.shape[axis]))
        made = concat(g, parts, axis)
    return made


def top_k(g: Graph, eqn: Any, x: Value) -> Sequence[Value]:
    """The greatest k, ties by index."""
    k = eqn.params["k"]
    axis = eqn.params.get("axis", len(x.shape) - 1) % len(x.shape)
    return _best(g, x, k, axis, largest=1)


def _best(g: Graph, x: Value, k: int, axis: int, *, largest: int) -> Sequence[Value]:
    x, kind = full(g, x), x.dtype
    if kind == np.bool_:
        x = cast(g, x, np.int32)
    shape = list(x.shape)
    shape[axis] = k
    shape = tuple(shape)
    outputs = [(shape, x.dtype, shape), (shape, np.int64, shape)]
    options = {"axis": axis, "largest": largest, "sorted": 1}
    values, places = g.emit_many("TopK", [x, g.ints([k])], outputs, **options)
    return cast(g, values, kind), cast(g, bounded(places, x.shape[axis]), np.int32)


def sort(g: Graph, eqn: Any, *values: Value) -> Sequence[Value]:
    """Sorts by one key, stably: the least n of n, with the other arrays gathered in that order."""
    if eqn.params["num_keys"] != 1:
        raise Unsupported(f"{g.origin} by {eqn.params['num_keys']} keys has no operator")
    axis = eqn.params["dimension"]
    key, *others = values
    ordered, places = _best(g, key, key.shape[axis], axis, largest=0)
    picked = [
        g.emit("GatherElements", [full(g, v), places], v.shape, v.dtype, axis=axis) for v in others
    ]
    return [ordered, *picked]


RULES: dict[str, Callable] = {
    "gather": gather_,
    "dynamic_slice": dynamic_slice,
    "dynamic_update_slice": dynamic_update_slice,
    "top_k": top_k,
    "sort": sort,
}
