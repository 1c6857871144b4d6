"""Rules of elementwise primitives. Where ONNX has no operator, from exact compositions."""

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np

from pangu_jax.export.onnx.build import apply, cast, reduced_axes, reduction, scalar, where
from pangu_jax.export.onnx.graph import Graph, Unsupported, Value

# Same meaning in both: primitive, operator.
UNARY = {
    "abs": "Abs", "neg": "Neg", "exp": "Exp", "log": "Log", "sin": "Sin", "cos": "Cos",
    "tan": "Tan", "asin": "Asin", "acos": "Acos", "atan": "Atan", "sinh": "Sinh", "cosh": "Cosh",
    "asinh": "Asinh", "acosh": "Acosh", "atanh": "Atanh", "tanh": "Tanh", "logistic": "Sigmoid",
    "sqrt": "Sqrt", "sign": "Sign", "floor": "Floor", "ceil": "Ceil", "erf": "Erf",
}  # fmt: skip
COMPARE = {
    "eq": "Equal",
    "lt": "Less",
    "le": "LessOrEqual",
    "gt": "Greater",
    "ge": "GreaterOrEqual",
}
LOGIC = {"and": "And", "or": "Or", "xor": "Xor"}


def _unary(op: str) -> Callable:
    return lambda g, eqn, x: apply(g, op, x)


def _plain(op: str) -> Callable:
    return lambda g, eqn, a, b: apply(g, op, a, b)


def add(g: Graph, eqn: Any, a: Value, b: Value) -> Value:
    """Sum, without adding 0."""
    for x, y in ((a, b), (b, a)):
        if x.foldable and x.array.size and not x.array.any() and x.dtype.kind == "i":
            return y if y.shape == eqn.outvars[0].aval.shape else apply(g, "Add", a, b)
    return apply(g, "Add", a, b)


def mul(g: Graph, eqn: Any, a: Value, b: Value) -> Value:
    """Product; x times 1/sqrt(v) becomes x / sqrt(v), the form in which runtimes know RMSNorm."""
    for x, y in ((a, b), (b, a)):
        node = g.producer(y)
        if node is not None and node.op == "Reciprocal":
            root = g.value(node.inputs[0])
            producer = g.producer(root)
            if producer is not None and producer.op == "Sqrt":
                return apply(g, "Div", x, root)
    return apply(g, "Mul", a, b)


def div(g: Graph, eqn: Any, a: Value, b: Value) -> Value:
    """Quotient: a sum over its count is a mean, e / sum(e) a softmax; integers as XLA has them."""
    if a.dtype.kind == "i":
        return _divide_integers(g, a, b)
    return _mean(g, a, b) or _softmax(g, a, b) or apply(g, "Div", a, b)


def _mean(g: Graph, a: Value, b: Value) -> Value | None:
    node = g.producer(a)
    if node is None or node.op != "ReduceSum" or not b.foldable or b.array.size != 1:
        return None
    source, axes = g.value(node.inputs[0]), reduced_axes(g, node)
    if float(b.array.reshape(())) != np.prod([source.shape[i] for i in axes]):
        return None
    if b.shape != () and b.shape != a.shape:
        return None
    square = g.producer(source)
    if square is not None and square.op == "Mul" and square.inputs[0] == square.inputs[1]:
        base = g.value(square.inputs[0])
        source = apply(g, "Pow", base, scalar(g, 2, base))
    keep = bool(node.attributes["keepdims"])
    made = reduction(g, "ReduceMean", source, axes, keep=keep)
    return made if made.held == a.held and a.whole else _as(made, a)


def _as(made: Value, like: Value) -> Value:
    return dataclasses.replace(made, shape=like.shape)


def _softmax(g: Graph, a: Value, b: Value) -> Value | None:
    """Softmax, if this is exp(x - max x) over its own sum along one axis."""
    top, total = g.producer(a), g.producer(b)
    if top is None or total is None or (top.op, total.op) != ("Exp", "ReduceSum"):
        return None
    axes = reduced_axes(g, total)
    if total.inputs[0] != a.name or len(axes) != 1 or not total.attributes["keepdims"]:
        return None
    shifted = g.producer(g.value(top.inputs[0]))
    if shifted is None or shifted.op != "Sub":
        return None
    greatest = g.producer(g.value(shifted.inputs[1]))
    if greatest is None or greatest.op != "ReduceMax" or greatest.inputs[0] != shifted.inputs[0]:
        return None
    if greatest.attributes["axes"] != axes or not greatest.attributes["keepdims"]:
        return None
    x = g.value(shifted.inputs[0])
    if x.held != a.held:
        return None
    return g.emit("Softmax", [x], a.shape, a.dtype, a.held, axis=axes[0])


def _divide_integers(g: Graph, a: Value, b: Value) -> Value:
    """Truncating division; by 0 it is -1, and the least integer by -1 is itself, as in XLA."""
    if b.foldable and not np.isin(b.array, (0, -1)).any():
        return apply(g, "Div", a, b)
    zero, minus = scalar(g, 0, b), scalar(g, -1, b)
    by_zero, by_minus = compare(g, "Equal", b, zero), compare(g, "Equal", b, minus)
    risky = apply(g, "Or", by_zero, by_minus)
    safe = apply(g, "Div", a, where(g, risky, scalar(g, 1, b), b))
    safe = where(g, by_minus, apply(g, "Neg", a), safe)
    return where(g, by_zero, minus, safe)


def rem(g: Graph, eqn: Any, a: Value, b: Value) -> Value:
    """Remainder with the sign of the dividend; integers by 0 give the dividend, as XLA has it."""
    if a.dtype.kind != "i" or (b.foldable and not np.isin(b.array, (0, -1)).any()):
        return apply(g, "Mod", a, b, fmod=1)
    zero = scalar(g, 0, b)
    by_zero = compare(g, "Equal", b, zero)
    risky = apply(g, "Or", by_zero, compare(g, "Equal", b, scalar(g, -1, b)))
    safe = apply(g, "Mod", a, where(g, risky, scalar(g, 1, b), b), fmod=1)
    return where(g, by_zero, a, safe)


def _extreme(op: str, logic: str, neutral: float) -> Callable:
    def rule(g: Graph, eqn: Any, a: Value, b: Value) -> Value:
        if a.dtype == np.bool_:
            return apply(g, logic, a, b)
        for x, y in ((a, b), (b, a)):
            if x.foldable and x.dtype.kind == "f" and x.array.size and (x.array == neutral).all():
                return y if y.shape == eqn.outvars[0].aval.shape else apply(g, op, a, b)
        return apply(g, op, a, b)

    return rule


def compare(g: Graph, op: str, a: Value, b: Value) -> Value:
    """A comparison; known bounds of integers may decide it now."""
    shape = np.broadcast_shapes(a.shape, b.shape)
    if a.bounds and b.bounds and op != "Equal":
        low, high = a.bounds[0] - b.bounds[1], a.bounds[1] - b.bounds[0]
        always = {"Less": high < 0, "LessOrEqual": high <= 0, "Greater": low > 0,
                  "GreaterOrEqual": low >= 0}[op]  # fmt: skip
        never = {"Less": low >= 0, "LessOrEqual": low > 0, "Greater": high <= 0,
                 "GreaterOrEqual": high < 0}[op]  # fmt: skip
        if always or never:
            return _as(g.constant(np.full((1,) * len(shape), always)), Value(shape, a.dtype, shape))
    if a.dtype == np.bool_ and op != "Equal":
        a, b = cast(g, a, np.int32), cast(g, b, np.int32)
    return apply(g, op, a, b, dtype=np.bool_)


def _comparison(op: str) -> Callable:
    return lambda g, eqn, a, b: compare(g, op, a, b)


def _not_equal(g: Graph, eqn: Any, a: Value, b: Value) -> Value:
    return apply(g, "Not", compare(g, "Equal", a, b))


def _logic(op: str) -> Callable:
    def rule(g: Graph, eqn: Any, *values: Value) -> Value:
        if values[0].dtype != np.bool_:
            raise Unsupported(f"{g.origin} of integers has no operator in opset 17")
        return apply(g, op, *values)

    return rule


def pow_(g: Graph, eqn: Any, a: Value, b: Value) -> Value:
    """Power of floats."""
    if a.dtype.kind != "f":
        raise Unsupported(f"{g.origin} of an integer base has no exact operator: cast to float32")
    return apply(g, "Pow", a, cast(g, b, a.dtype))


def integer_pow(g: Graph, eqn: Any, x: Value) -> Value:
    """Products by squaring; negative powers are reciprocals."""
    power = eqn.params["y"]
    if power < 0 and x.dtype.kind != "f":
        raise Unsupported(f"{g.origin} with a negative power of integers has no operator")
    result, square, left = None, x, abs(power)
    while left:
        if left & 1:
            result = square if result is None else apply(g, "Mul", result, square)
        left >>= 1
        if left:
            square = apply(g, "Mul", square, square)
    if result is None:
        return where(g, g.constant(np.full((1,) * len(x.shape), True)), scalar_like(g, 1, x), x)
    return apply(g, "Reciprocal", result) if power < 0 else result


def scalar_like(g: Graph, number: float, like: Value) -> Value:
    """A constant of one element that stands for a whole array like another."""
    return _as(g.constant(np.full((1,) * len(like.shape), number, like.dtype)), like)


def square(g: Graph, eqn: Any, x: Value) -> Value:
    """The product of a value with itself."""
    return apply(g, "Mul", x, x)


def rsqrt(g: Graph, eqn: Any, x: Value) -> Value:
    """1 / sqrt(x)."""
    return apply(g, "Reciprocal", apply(g, "Sqrt", x))


def exp2(g: Graph, eqn: Any, x: Value) -> Value:
    """2 to the power of x."""
    return apply(g, "Pow", scalar(g, 2, x), x)


def log1p(g: Graph, eqn: Any, x: Value) -> Value:
    """log(1 + x) without losing small x: log(u) x / (u - 1) with u = 1 + x rounded."""
    one, most = scalar(g, 1, x), scalar(g, np.finfo(np.float32).max, x)
    u = apply(g, "Add", x, one)
    small = compare(g, "Equal", u, one)
    gap = apply(g, "Sub", apply(g, "Min", u, most), one)
    ratio = apply(g, "Div", apply(g, "Min", x, most), where(g, small, one, gap))
    return where(g, small, x, apply(g, "Mul", apply(g, "Log", u), ratio))


def expm1(g: Graph, eqn: Any, x: Value) -> Value:
    """exp(x) - 1 without losing small x: 2 tanh(x/2) / (1 - tanh(x/2)) near 0."""
    half = apply(g, "Tanh", apply(g, "Mul", x, scalar(g, 0.5, x)))
    one = scalar(g, 1, x)
    near = apply(g, "Div", apply(g, "Add", half, half), apply(g, "Sub", one, half))
    far = apply(g, "Sub", apply(g, "Exp", x), one)
    return where(g, compare(g, "Less", apply(g, "Abs", x), scalar(g, 0.5, x)), near, far)


def erfc(g: Graph, eqn: Any, x: Value) -> Value:
    """1 - erf(x), to an absolute error of 1e-7: not accurate relative to tiny values."""
    return apply(g, "Sub", scalar(g, 1, x), apply(g, "Erf", x))


def cbrt(g: Graph, eqn: Any, x: Value) -> Value:
    """The real cube root."""
    root = apply(g, "Pow", apply(g, "Abs", x), scalar(g, 1 / 3, x))
    return apply(g, "Mul", apply(g, "Sign", x), root)


def round_(g: Graph, eqn: Any, x: Value) -> Value:
    """Rounds to the nearest integer: halves to even, or away from zero."""
    if int(eqn.params["rounding_method"]) == 1:
        return apply(g, "Round", x)
    size = apply(g, "Abs", x)
    down = apply(g, "Floor", size)
    over = compare(g, "GreaterOrEqual", apply(g, "Sub", size, down), scalar(g, 0.5, x))
    return apply(g, "Mul", apply(g, "Sign", x), apply(g, "Add", down, cast(g, over, x.dtype)))


def is_finite(g: Graph, eqn: Any, x: Value) -> Value:
    """Tests for neither infinity nor NaN."""
    wrong = [apply(g, op, x, dtype=np.bool_) for op in ("IsInf", "IsNaN")]
    return apply(g, "Not", apply(g, "Or", *wrong))


def select_n(g: Graph, eqn: Any, which: Value, *cases: Value) -> Value:
    """Selects a case by a boolean or an integer."""
    if which.dtype == np.bool_:
        return cases[0] if len(cases) == 1 else where(g, which, cases[1], cases[0])
    picked = cases[-1]
    for number in range(len(cases) - 2, -1, -1):
        test = compare(g, "Equal", which, scalar(g, number, which))
        picked = where(g, test, cases[number], picked)
    return picked


def clamp(g: Graph, eqn: Any, low: Value, x: Value, high: Value) -> Value:
    """Clamps between two bounds."""
    made = apply(g, "Min", apply(g, "Max", x, low), high)
    bounds = (low.bounds[0], high.bounds[1]) if low.bounds and high.bounds else None
    return dataclasses.replace(made, bounds=bounds)


def convert(g: Graph, eqn: Any, x: Value) -> Value:
    """Converts to another type."""
    return cast(g, x, eqn.params["new_dtype"])


def _same(g: Graph, eqn: Any, x: Value) -> Value:
    return x


def reduce_precision(g: Graph, eqn: Any, x: Value) -> Value:
    """Supported only if it does not round."""
    if eqn.params["exponent_bits"] < 8 or eqn.params["mantissa_bits"] < 23:
        raise Unsupported(f"{g.origin} has no ONNX form")
    return x


RULES: dict[str, Callable] = {
    **{name: _unary(op) for name, op in UNARY.items()},
    **{name: _comparison(op) for name, op in COMPARE.items()},
    **{name: _logic(op) for name, op in LOGIC.items()},
    "not": _logic("Not"),
    "ne": _not_equal,
    "add": add,
    "add_any": add,
    "sub": _plain("Sub"),
    "mul": mul,
    "div": div,
    "rem": rem,
    "max": _extreme("Max", "Or", -np.inf),
    "min": _extreme("Min", "And", np.inf),
    "pow": pow_,
    "integer_pow": integer_pow,
    "square": square,
    "rsqrt": rsqrt,
    "exp2": exp2,
    "log1p": log1p,
    "expm1": expm1,
    "erfc": erfc,
    "cbrt": cbrt,
    "round": round_,
    "is_finite": is_finite,
    "select_n": select_n,
    "clamp": clamp,
    "convert_element_type": convert,
    "stop_gradient": _same,
    "copy": _same,
    "copy_p": _same,
    "reduce_precision": reduce_precision,
}
