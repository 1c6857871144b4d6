"""Walks a jaxpr and writes each equation with its primitive's rule.

Nested calls are walked through; `scan` is written out step by step, up to `MAX_NODES`; a branch on
a value computes both sides and selects. What depends on constants alone is computed now, so masks
and tables become constants, unless they would be larger than what they are made from.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core as jex

from pangu_jax.export.onnx import elementwise, index, linear, reduce, shape
from pangu_jax.export.onnx.build import concat, full, reshape, where
from pangu_jax.export.onnx.graph import SMALL, Graph, Unsupported, Value

# The longest graph that writing out loops may give; ATC compiles much longer ones for hours.
MAX_NODES = 20_000

RULES: dict[str, Callable] = {
    **elementwise.RULES,
    **shape.RULES,
    **reduce.RULES,
    **linear.RULES,
    **index.RULES,
}

# Primitives that call a function: where its jaxpr is.
CALLS = {
    "jit": "jaxpr",
    "pjit": "jaxpr",
    "closed_call": "call_jaxpr",
    "core_call": "call_jaxpr",
    "custom_jvp_call": "call_jaxpr",
    "custom_vjp_call": "call_jaxpr",
    "remat2": "jaxpr",
    "checkpoint": "jaxpr",
}

ADVICE = {
    "while": "a loop of unknown length has no operator; use fori_loop with constant bounds",
    "ragged_dot": "use impl={'expert_mlp': 'dense'} or 'gather'",
    "ragged_dot_general": "use impl={'expert_mlp': 'dense'} or 'gather'",
    "pallas_call": "use the operator's export form (impl)",
    "shard_map": "export without a layout",
    "random_bits": "draw random numbers outside",
    "scatter": "write rows by a mask with jnp.where",
    "scatter-add": "sum with a one-hot product",
}


def lower(g: Graph, closed: jex.ClosedJaxpr, inputs: Sequence[Value]) -> list[Value]:
    """Writes a function into the graph.

    Args:
      g: the graph.
      closed: the function.
      inputs: its arguments.

    Returns:
      Its results.

    Raises:
      Unsupported: a primitive without a rule, or a use of one that has no ONNX form.
    """
    constants = [g.constant(np.asarray(c)) for c in closed.consts]
    return walk(g, closed.jaxpr, [*constants, *inputs])


def walk(g: Graph, jaxpr: jex.Jaxpr, inputs: Sequence[Value]) -> list[Value]:
    """`lower` for an open jaxpr, its constants coming first in `inputs`."""
    values: dict[Any, Value] = dict(zip([*jaxpr.constvars, *jaxpr.invars], inputs, strict=True))
    absorbed = _absorbed(jaxpr)

    def read(atom: Any) -> Value:
        return g.constant(np.asarray(atom.val)) if isinstance(atom, jex.Literal) else values[atom]

    for eqn in _live(jaxpr):
        arguments = [read(atom) for atom in eqn.invars]
        if any(after is eqn for after in absorbed.values()):
            values[eqn.outvars[0]] = arguments[0]  # the product before gave this order already
            continue
        results = _equation(g, eqn, arguments, absorbed.get(eqn.outvars[0]))
        values.update(zip(eqn.outvars, results, strict=True))
    return [read(atom) for atom in jaxpr.outvars]


def _live(jaxpr: jex.Jaxpr) -> list[Any]:
    """The equations that the results depend on."""
    needed = {atom for atom in jaxpr.outvars if not isinstance(atom, jex.Literal)}
    kept = []
    for eqn in reversed(jaxpr.eqns):
        if needed.intersection(eqn.outvars):
            kept.append(eqn)
            needed.update(a for a in eqn.invars if not isinstance(a, jex.Literal))
    return kept[::-1]


def _absorbed(jaxpr: jex.Jaxpr) -> dict[Any, Any]:
    """Products whose only use is a transpose that MatMul can absorb: {result: the transpose}."""
    uses: dict[Any, list] = {}
    for eqn in jaxpr.eqns:
        for atom in eqn.invars:
            if not isinstance(atom, jex.Literal):
                uses.setdefault(atom, []).append(eqn)
    for atom in jaxpr.outvars:
        if not isinstance(atom, jex.Literal):
            uses.setdefault(atom, []).append(None)
    found = {}
    for eqn in jaxpr.eqns:
        if eqn.primitive.name == "dot_general":
            only = uses.get(eqn.outvars[0], [])
            after = only[0] if len(only) == 1 else None
            turned = after is not None and after.primitive.name == "transpose"
            if turned and linear.absorbs(eqn, after.params["permutation"]):
                found[eqn.outvars[0]] = after
    return found


def _equation(g: Graph, eqn: Any, inputs: list[Value], after: Any) -> list[Value]:
    name = eqn.primitive.name
    if name in CALLS:
        return _call(g, eqn.params[CALLS[name]], inputs)
    g.origin = f"{name} at {source(eqn)}"
    folded = fold(eqn, inputs) if after is None else None
    if folded is not None:
        return [g.constant(array) for array in folded]
    if name == "scan":
        return _scan(g, eqn, inputs)
    if name == "cond":
        return _cond(g, eqn, inputs)
    if name not in RULES:
        hint = f"; {ADVICE[name]}" if name in ADVICE else ""
        raise Unsupported(f"{g.origin} has no ONNX form{hint}")
    if name == "dot_general":
        results = linear.dot_general(g, eqn, *inputs, after=after and after.params["permutation"])
    else:
        results = RULES[name](g, eqn, *inputs)
    results = [results] if isinstance(results, Value) else list(results)
    for result, var in zip(results, (after or eqn).outvars, strict=True):
        assert result.shape == var.aval.shape, (g.origin, result.shape, var.aval.shape)
        assert result.dtype == var.aval.dtype, (g.origin, result.dtype, var.aval.dtype)
    return results


def _call(g: Graph, called: Any, inputs: list[Value]) -> list[Value]:
    if isinstance(called, jex.ClosedJaxpr):
        return lower(g, called, inputs)
    return walk(g, called, inputs)


# Those that numpy does the same way; everything else is evaluated by jax.
NUMPY = {
    "add": np.add, "sub": np.subtract, "mul": np.multiply, "neg": np.negative, "eq": np.equal,
    "ne": np.not_equal, "lt": np.less, "le": np.less_equal, "gt": np.greater, "not": np.logical_not,
    "ge": np.greater_equal, "max": np.maximum, "min": np.minimum,
}  # fmt: skip


def fold(eqn: Any, inputs: Sequence[Value]) -> list[np.ndarray] | None:
    """Folds an equation on constants; returns None if it must be written into the graph.

    Rules that only move data do their own folding, without copying.
    """
    name = eqn.primitive.name
    if name in shape.RULES or name in ("cond", "scan") or not all(v.foldable for v in inputs):
        return None
    if any(jnp.issubdtype(v.aval.dtype, jax.dtypes.extended) for v in eqn.outvars):
        return None  # a random key is not an array
    arrays = [v.array for v in inputs]
    if name in elementwise.RULES:
        held = np.broadcast_shapes(*(v.held for v in inputs))
        if np.prod(held) > max(SMALL, *(a.size for a in arrays)):
            return None
        if any(len(v.held) not in (0, len(eqn.outvars[0].aval.shape)) for v in inputs):
            return None
        whole = eqn.outvars[0].aval.shape
        if held != whole and np.prod(whole) > SMALL:
            return None
        arrays = [np.broadcast_to(a, whole) for a in arrays]
    else:
        sizes = [int(np.prod(v.aval.shape)) for v in eqn.outvars]
        if sum(sizes) > max(SMALL, *(a.size for a in arrays)) or not inputs:
            return None
        arrays = [np.broadcast_to(a, v.shape) for a, v in zip(arrays, inputs, strict=True)]
    if name in NUMPY and arrays[0].dtype != np.bool_:
        return [np.asarray(NUMPY[name](*arrays), eqn.outvars[0].aval.dtype)]
    return _evaluate(eqn, arrays)


def _evaluate(eqn: Any, arrays: Sequence[np.ndarray]) -> list[np.ndarray]:
    with jax.default_device(jax.local_devices(backend="cpu")[0]):
        results = eqn.primitive.bind(*arrays, **eqn.params)
    results = results if eqn.primitive.multiple_results else [results]
    return [np.asarray(r) for r in results]


def _scan(g: Graph, eqn: Any, inputs: list[Value]) -> list[Value]:
    body, length, reverse = (eqn.params[n] for n in ("jaxpr", "length", "reverse"))
    steps = length * _count(body)
    origin = g.origin
    if len(g.nodes) + steps > MAX_NODES:
        raise Unsupported(
            f"{origin} of {length} steps would make about {steps} nodes, over the bound of "
            f"{MAX_NODES}: use the operator's loop-free form, or a shorter sequence"
        )
    carried, walked = _scan_parts(eqn, getattr(body, "jaxpr", body))
    start = len(inputs) - carried - walked
    fixed, carry = inputs[:start], inputs[start : start + carried]
    rows_of = [full(g, v) for v in inputs[start + carried :]]
    outputs: list[list[Value]] = [[] for _ in eqn.outvars[carried:]]
    for step in range(length)[:: -1 if reverse else 1]:
        rows = [_row(g, v, step) for v in rows_of]
        results = _call(g, body, [*fixed, *carry, *rows])
        carry = results[:carried]
        for made, row in zip(outputs, results[carried:], strict=True):
            made.append(row)
    g.origin = origin
    stacked = [
        _stack(g, made[:: -1 if reverse else 1], var.aval)
        for made, var in zip(outputs, eqn.outvars[carried:], strict=True)
    ]
    return [*carry, *stacked]


def _scan_parts(eqn: Any, body: Any) -> tuple[int, int]:
    """Number of values that a scan carries, and of arrays that it scans.

    Read from the shapes, since the parameters that say so differ between versions of jax: what is
    carried has the same shape outside and inside, scanned arrays have one axis more outside.
    """
    shape = lambda atom: tuple(atom.aval.shape)  # noqa: E731
    carried = sum(shape(a) == shape(b) for a, b in zip(eqn.outvars, body.outvars, strict=True))
    walked = sum(shape(a) != shape(b) for a, b in zip(eqn.invars, body.invars, strict=True))
    return carried, walked


def _count(jaxpr: Any) -> int:
    """About how many nodes a jaxpr makes."""
    total = 0
    for eqn in getattr(jaxpr, "jaxpr", jaxpr).eqns:
        inner = list(jex.jaxprs_in_params(eqn.params))
        times = eqn.params["length"] if eqn.primitive.name == "scan" else 1
        total += times * sum(_count(j) for j in inner) if inner else 1
    return total


def _row(g: Graph, value: Value, step: int) -> Value:
    row = shape.cut_axis(g, value, 0, step, step + 1)
    return reshape(g, row, value.shape[1:])


def _stack(g: Graph, rows: list[Value], aval: Any) -> Value:
    if not rows:
        return g.constant(np.zeros(aval.shape, aval.dtype))
    return concat(g, [reshape(g, full(g, r), (1, *r.shape)) for r in rows], 0)


def _cond(g: Graph, eqn: Any, inputs: list[Value]) -> list[Value]:
    chosen, *rest = inputs
    branches = eqn.params["branches"]
    if chosen.foldable:
        number = int(np.clip(int(chosen.array.reshape(())), 0, len(branches) - 1))
        return _call(g, branches[number], rest)
    origin = g.origin
    results = [_call(g, branch, rest) for branch in branches]
    g.origin = origin
    picked = results[-1]
    for number in range(len(branches) - 2, -1, -1):
        # An index outside is that of the nearest branch.
        test = elementwise.compare(g, "LessOrEqual", chosen, g.constant(np.int32(number)))
        picked = [
            where(g, test, full(g, a), full(g, b))
            for a, b in zip(results[number], picked, strict=True)
        ]
    return picked


def source(eqn: Any) -> str:
    """The line outside jax that an equation comes from, as file:line, or "?"."""
    traceback = eqn.source_info.traceback
    own = str(Path(jax.__file__).parent)
    for frame in traceback.frames if traceback is not None else ():
        if not frame.file_name.startswith(own) and "contextlib" not in frame.file_name:
            return f"{_short(frame.file_name)}:{frame.line_num}"
    return "?"


def _short(path: str) -> str:
    """The path from the package that holds the file, without folders of this machine."""
    parts = Path(path).parts
    folder = Path(path).parent
    inside = 1
    while (folder / "__init__.py").is_file():
        folder = folder.parent
        inside += 1
    return "/".join(parts[-inside:])
