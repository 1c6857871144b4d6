"""From a graph to an ONNX file: opset 17, IR 8, weights inside or in a file that graphs share."""

import dataclasses
import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

import pangu_jax
from pangu_jax.core.errors import InputError
from pangu_jax.core.extras import check_extra
from pangu_jax.core.files import atomic_write
from pangu_jax.core.tree import flatten
from pangu_jax.export.onnx.build import full
from pangu_jax.export.onnx.graph import Graph, Node, Value
from pangu_jax.export.onnx.lower import lower

OPSET = 17
IR = 8
INLINE = 1024  # bytes; smaller constants stay in the graph, where tools can read them
INLINE_TOTAL = 2**31 - 2**24  # what one file of the format can hold, less room for the nodes


@dataclasses.dataclass(frozen=True)
class Lowered:
    """A function as a graph.

    Attributes:
      graph: nodes and constants.
      inputs: its inputs.
      outputs: its outputs.
    """

    graph: Graph
    inputs: dict[str, jax.ShapeDtypeStruct]
    outputs: dict[str, jax.ShapeDtypeStruct]

    @property
    def operators(self) -> dict[str, int]:
        """Number of nodes of each operator, sorted by name."""
        counts: dict[str, int] = {}
        for node in self.graph.nodes:
            counts[node.op] = counts.get(node.op, 0) + 1
        return dict(sorted(counts.items()))


def convert(
    function: Callable[..., dict[str, Any]], params: Any, inputs: dict[str, Any]
) -> Lowered:
    """Writes a function as a graph, its parameters as named constants.

    Args:
      function: `function(params, **inputs)`, giving {name: array}.
      params: tree of arrays; numpy arrays are not copied.
      inputs: {name: array or ShapeDtypeStruct}.

    Raises:
      Unsupported: a primitive without an ONNX form, with its source line.
    """
    specs = {n: jax.ShapeDtypeStruct(x.shape, x.dtype) for n, x in inputs.items()}
    abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), params)
    closed, shapes = jax.make_jaxpr(
        lambda p, arguments: function(p, **arguments), return_shape=True
    )(abstract, specs)
    if not isinstance(shapes, dict):
        raise InputError("a function to export must return a dict of named arrays")
    both = sorted({*shapes} & {*specs})
    if both:
        raise InputError(f"input and result are both called {both[0]!r}: ONNX needs two names")
    g = Graph([*shapes])
    uses = _uses(closed.jaxpr)
    leaves = flatten(params)
    values = []
    for var, (name, leaf) in zip(closed.jaxpr.invars, leaves.items(), strict=False):
        array = np.asarray(leaf)
        shared = uses.get(var, 0) > 1 and array.nbytes > 2**16
        values.append(g.constant(array, label=name, shared=shared))
    # In the order of the jaxpr's arguments, which is that of the sorted names.
    given = {n: g.input(n, s.shape, s.dtype) for n, s in specs.items()}
    values += [given[n] for n in sorted(given)]
    results = lower(g, closed, values)
    names = sorted(shapes)
    g.origin = "result"
    done = {n: full(g, r) for n, r in zip(names, results, strict=True)}
    g.finish([(n, done[n]) for n in shapes])
    return Lowered(g, specs, {n: jax.ShapeDtypeStruct(s.shape, s.dtype) for n, s in shapes.items()})


def _uses(jaxpr: Any) -> dict[Any, int]:
    counts: dict[Any, int] = {}
    for eqn in jaxpr.eqns:
        for atom in eqn.invars:
            if not hasattr(atom, "val"):
                counts[atom] = counts.get(atom, 0) + 1
    return counts


class Weights:
    """A file of arrays that several graphs read; equal arrays are stored once."""

    def __init__(self, path: Path):
        """Collects for `path`, which `write` makes."""
        self.path = path
        self._places: dict[str, tuple[int, int]] = {}
        self._arrays: list[tuple[int, np.ndarray]] = []
        self._size = 0

    def add(self, array: np.ndarray) -> tuple[int, int]:
        """Offset and length of the array in the file."""
        flat = np.ascontiguousarray(array)
        key = hashlib.sha256(flat.reshape(-1).view(np.uint8)).hexdigest()
        if key not in self._places:
            start = -(-self._size // 64) * 64  # aligned, so that it can be mapped
            self._places[key] = (start, flat.nbytes)
            self._arrays.append((start, array))
            self._size = start + flat.nbytes
        return self._places[key]

    def write(self) -> None:
        """Writes the file."""
        with atomic_write(self.path, "wb") as file:
            for start, array in self._arrays:
                file.write(b"\0" * (start - file.tell()))
                file.write(np.ascontiguousarray(array).data)


def to_model(lowered: Lowered, weights: Weights | None = None) -> Any:
    """The `onnx.ModelProto` of a graph.

    Args:
      lowered: the graph.
      weights: receives larger constants; None keeps all in the model.

    Raises:
      InputError: more than 2 GiB of constants and no file for them.
    """
    onnx = load_onnx()
    helper = onnx.helper
    graph = lowered.graph
    total = sum(a.nbytes for a in graph.constants.values())
    if weights is None and total > INLINE_TOTAL:
        raise InputError(f"{total} bytes of weights do not fit into one ONNX file: name a file")
    proto = helper.make_graph(
        [_node(onnx, node) for node in graph.nodes],
        "pangu_jax",
        [_info(onnx, n, s) for n, s in lowered.inputs.items()],
        [_info(onnx, n, s) for n, s in lowered.outputs.items()],
        [_initializer(onnx, n, a, weights) for n, a in graph.constants.items()],
    )
    return helper.make_model(
        proto,
        opset_imports=[helper.make_opsetid("", OPSET)],
        ir_version=IR,
        producer_name="pangu_jax",
        producer_version=pangu_jax.__version__,
    )


def check_model(path: str | Path) -> None:
    """The official checker with strict shape inference.

    Raises:
      InputError: the file is not a valid model.
    """
    onnx = load_onnx()
    try:
        onnx.checker.check_model(str(path), full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise InputError(f"{path} is no valid ONNX model: {error}") from error


def load_onnx() -> Any:
    """The onnx package.

    Raises:
      InputError: it is not installed.
    """
    check_extra("export", "onnx", by="exporting to ONNX")
    import onnx
    import onnx.checker
    import onnx.helper
    import onnx.numpy_helper
    import onnx.shape_inference

    return onnx


def _type(onnx: Any, dtype: Any) -> int:
    return onnx.helper.np_dtype_to_tensor_dtype(np.dtype(dtype))


def _info(onnx: Any, name: str, spec: Any) -> Any:
    return onnx.helper.make_tensor_value_info(name, _type(onnx, spec.dtype), list(spec.shape))


def _node(onnx: Any, node: Node) -> Any:
    attributes = dict(node.attributes)
    if node.op == "Cast":
        attributes["to"] = _type(onnx, attributes["to"])
    attributes = {k: list(v) if isinstance(v, tuple) else v for k, v in attributes.items()}
    return onnx.helper.make_node(
        node.op,
        list(node.inputs),
        list(node.outputs),
        name=node.outputs[0],
        doc_string=node.origin,
        **attributes,
    )


def _initializer(onnx: Any, name: str, array: np.ndarray, weights: Weights | None) -> Any:
    if weights is None or array.nbytes <= INLINE:
        return onnx.numpy_helper.from_array(np.ascontiguousarray(array).reshape(array.shape), name)
    offset, length = weights.add(array)
    proto = onnx.TensorProto(
        name=name,
        data_type=_type(onnx, array.dtype),
        dims=array.shape,
        data_location=onnx.TensorProto.EXTERNAL,
    )
    fields: Sequence = (("location", weights.path.name), ("offset", offset), ("length", length))
    for key, value in fields:
        proto.external_data.add(key=key, value=str(value))
    return proto


def value_of(lowered: Lowered, name: str) -> Value:
    """A tensor of the graph as it was lowered, for tests."""
    return lowered.graph.value(name)
