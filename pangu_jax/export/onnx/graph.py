"""The graph being written: values, nodes, constants; no onnx needed here.

A value that jax broadcasts is not written out: it keeps the shape it has in the graph (`held`, each
dimension the logical one or 1) beside the logical one, since ONNX operators broadcast themselves.
Equal nodes are made once, and nodes that nothing reads are dropped at the end.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from pangu_jax.core.errors import InputError

Shape = tuple[int, ...]

# Operators that only move data exist for every type; arithmetic only for these four, which every
# runtime has kernels for.
COMPUTED = ("float32", "int32", "int64", "bool")
MOVING = frozenset(
    ("Cast", "Concat", "Expand", "Gather", "Identity", "Reshape", "Slice", "Split", "Transpose")
)
SMALL = 4096  # elements that a constant may be blown up to; more is left to the graph


class Unsupported(InputError):
    """A function cannot be written as ONNX; the message names the primitive and its source line."""


@dataclasses.dataclass(frozen=True, eq=False)
class Value:
    """An array in the graph.

    Attributes:
      shape: its shape in jax.
      dtype: its type.
      held: its shape in the graph: of the same rank, each dimension as in `shape` or 1.
      name: of the tensor in the graph; None for a constant that no node has used yet.
      array: a constant's elements, of shape `held`.
      label: name of a constant; for parameters their path.
      shared: whether a constant is a large parameter that is used in more than one form, so that
        folding would store it twice.
      bounds: least and greatest integer it can hold, if known.
    """

    shape: Shape
    dtype: np.dtype
    held: Shape
    name: str | None = None
    array: np.ndarray | None = None
    label: str | None = None
    shared: bool = False
    bounds: tuple[int, int] | None = None

    @property
    def foldable(self) -> bool:
        """Whether its elements are known and may be used in constant folding."""
        return self.array is not None and not self.shared

    @property
    def whole(self) -> bool:
        """Whether the graph holds it in the shape that jax sees."""
        return self.held == self.shape


@dataclasses.dataclass(frozen=True)
class Node:
    """One operator.

    Attributes:
      op: ONNX operator.
      inputs: names; "" for an optional input left out.
      outputs: names.
      attributes: ints, floats, strings or tuples of ints.
      origin: primitive and source line it came from.
    """

    op: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: dict[str, Any]
    origin: str


class Graph:
    """Collects nodes and constants; `origin` is recorded in new nodes as their source."""

    def __init__(self, results: Sequence[str] = ()):
        """Starts an empty graph with results of these names."""
        self.nodes: list[Node] = []
        self.constants: dict[str, np.ndarray] = {}
        self.origin = ""
        self._seen: dict[Any, tuple[str, ...]] = {}
        self._names: dict[str, int] = {}
        self._taken = set(results)
        self._known: dict[Any, str] = {}
        self._producer: dict[str, Node] = {}
        self._values: dict[str, Value] = {}

    def input(self, name: str, shape: Shape, dtype: Any) -> Value:
        """A new input of the graph."""
        name = self._fresh(name)
        value = Value(tuple(shape), np.dtype(dtype), tuple(shape), name)
        self._values[name] = value
        return value

    def constant(self, array: Any, *, label: str | None = None, shared: bool = False) -> Value:
        """A constant, stored once some node reads it."""
        array = np.asarray(array)
        bounds = None
        if array.dtype.kind == "i" and array.size and array.size <= SMALL:
            bounds = (int(array.min()), int(array.max()))
        return Value(
            array.shape, array.dtype, array.shape, None, array, label, shared, bounds=bounds
        )

    def ints(self, values: Sequence[int]) -> Value:
        """A constant int64 vector, which is how shapes and axes are passed."""
        return self.constant(np.asarray(values, np.int64))

    def emit(
        self,
        op: str,
        inputs: Sequence[Value | None],
        shape: Shape,
        dtype: Any,
        held: Shape | None = None,
        **attributes: Any,
    ) -> Value:
        """Adds a node with one output, or finds an existing equal one."""
        kept = tuple(shape) if held is None else tuple(held)
        return self.emit_many(op, inputs, [(shape, dtype, kept)], **attributes)[0]

    def emit_many(
        self,
        op: str,
        inputs: Sequence[Value | None],
        outputs: Sequence[tuple[Shape, Any, Shape]],
        **attributes: Any,
    ) -> list[Value]:
        """Adds a node; each output is its shape, type and held shape."""
        for dtype in [*(o[1] for o in outputs), *(v.dtype for v in inputs if v is not None)]:
            self._check_type(op, np.dtype(dtype))
        names = tuple("" if v is None else self.ref(v) for v in inputs)
        key = (op, names, tuple(sorted(attributes.items())), len(outputs))
        if key not in self._seen:
            made = tuple(self._fresh(op) for _ in outputs)
            node = Node(op, names, made, attributes, self.origin)
            self.nodes.append(node)
            self._seen[key] = made
            for name, (_, dtype, held) in zip(made, outputs, strict=True):
                self._producer[name] = node
                self._values[name] = Value(tuple(held), np.dtype(dtype), tuple(held), name)
        found = self._seen[key]
        return [
            Value(tuple(s), np.dtype(t), tuple(h), name)
            for name, (s, t, h) in zip(found, outputs, strict=True)
        ]

    def ref(self, value: Value) -> str:
        """The value's name, storing it first if it is a new constant."""
        if value.name is not None:
            return value.name
        array = value.array
        assert array is not None
        key: tuple = (array.dtype.str, array.shape)
        if array.nbytes <= 4096:
            key += (array.tobytes(),)
        else:
            key += (array.__array_interface__["data"][0], array.strides)
        if key not in self._known:
            self._known[key] = name = self._fresh(value.label or "const")
            self.constants[name] = array
            self._values[name] = dataclasses.replace(value, shape=value.held, name=name)
        return self._known[key]

    def producer(self, value: Value) -> Node | None:
        """The node that produces it, or None for inputs and constants."""
        return self._producer.get(value.name or "")

    def value(self, name: str) -> Value:
        """The tensor of that name, as the graph holds it."""
        return self._values[name]

    def finish(self, results: Sequence[tuple[str, Value]]) -> None:
        """Names the results, each made by a node of its own, and drops what none of them needs."""
        for name, value in results:
            source = self.ref(value)
            self.nodes.append(Node("Identity", (source,), (name,), {}, "result"))
            self._values[name] = dataclasses.replace(value, name=name, array=None, shape=value.held)
        self._rename([name for name, _ in results])
        self._sweep([name for name, _ in results])

    def _rename(self, results: Sequence[str]) -> None:
        """Lets a node write a result directly if a copy is its only use."""
        made = {out: i for i, node in enumerate(self.nodes) for out in node.outputs}
        alias: dict[str, str] = {}
        for node in self.nodes[-len(results) :] if results else []:
            source = node.inputs[0]
            if source in made and source not in alias and source not in results:
                alias[source] = node.outputs[0]
        kept = []
        for node in self.nodes:
            if node.op == "Identity" and alias.get(node.inputs[0]) == node.outputs[0]:
                continue
            swap = lambda names: tuple(alias.get(n, n) for n in names)  # noqa: E731
            kept.append(
                dataclasses.replace(node, inputs=swap(node.inputs), outputs=swap(node.outputs))
            )
        self.nodes = kept

    def _sweep(self, results: Sequence[str]) -> None:
        needed, kept = set(results), []
        for node in reversed(self.nodes):
            if needed.intersection(node.outputs):
                kept.append(node)
                needed.update(node.inputs)
        self.nodes = kept[::-1]
        self.constants = {n: a for n, a in self.constants.items() if n in needed}

    def _fresh(self, stem: str) -> str:
        name, number = stem, self._names.get(stem, 0)
        while name in self._taken:
            number += 1
            name = f"{stem}_{number}"
        self._names[stem] = number
        self._taken.add(name)
        return name

    def _check_type(self, op: str, dtype: np.dtype) -> None:
        if op not in MOVING and dtype.name not in COMPUTED:
            raise Unsupported(
                f"{self.origin} computes in {dtype.name}, which is exported for none but "
                f"{', '.join(COMPUTED)}: export the model in float32"
            )
