"""Steps on each number by itself: arithmetic, comparisons, choices, conversions."""

import math

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from .program import constant

erf = np.vectorize(math.erf, otypes=[np.float64])
UNARY = {
    "neg": (lax.neg, np.negative), "abs": (jnp.abs, np.abs), "sin": (jnp.sin, np.sin),
    "cos": (jnp.cos, np.cos), "tanh": (jnp.tanh, np.tanh), "erf": (lax.erf, erf),
    "sigmoid": (jax.nn.sigmoid, lambda x: 1 / (1 + np.exp(-x))),
    "silu": (jax.nn.silu, lambda x: x / (1 + np.exp(-x))),
    "softplus": (jax.nn.softplus, lambda x: np.log1p(np.exp(x))),
    "exp": (lambda x: jnp.exp(jnp.minimum(x, 2)), lambda x: np.exp(np.minimum(x, 2))),
    "expm1": (lambda x: jnp.expm1(jnp.minimum(x, 2)), lambda x: np.expm1(np.minimum(x, 2))),
    "exp2": (lambda x: jnp.exp2(jnp.minimum(x, 2)), lambda x: np.exp2(np.minimum(x, 2))),
    "log": (lambda x: jnp.log(x * x + 1), lambda x: np.log(x * x + 1)),
    "log1p": (lambda x: jnp.log1p(x * x), lambda x: np.log1p(x * x)),
    "sqrt": (lambda x: jnp.sqrt(x * x + 1), lambda x: np.sqrt(x * x + 1)),
    "rsqrt": (lambda x: lax.rsqrt(x * x + 1), lambda x: 1 / np.sqrt(x * x + 1)),
    "cube": (lambda x: lax.integer_pow(x / 8, 3), lambda x: (x / 8) ** 3),
    "inverse": (lambda x: lax.integer_pow(x * x + 1, -2), lambda x: (x * x + 1) ** -2.0),
    "erfc": (lax.erfc, lambda x: 1 - erf(x)),
    "clip": (lambda x: jnp.clip(x, -1, 2), lambda x: np.clip(x, -1, 2)),
    "gelu": (lambda x: jax.nn.gelu(x, approximate=False), lambda x: x * (1 + erf(x / 2**0.5)) / 2),
}  # fmt: skip


def unary(p):
    n = p.pick("float")
    if n is not None:
        f, g = UNARY[str(p.rng.choice(list(UNARY)))]
        p.add(f, g(p.values[n]), n)


def partner(p, n, kind):
    """A value that broadcasts with value n: another one, or a constant."""
    shape = p.values[n].shape
    for other in p.rng.permutation(len(p.values)):
        v = p.values[other]
        if v.dtype.kind == p.values[n].dtype.kind:
            try:
                np.broadcast_shapes(shape, v.shape)
            except ValueError:
                continue
            if p.chance():
                return int(other), None
    thin = tuple(1 if p.chance(0.4) else s for s in shape)
    return None, p.draw(thin[int(p.rng.integers(0, len(thin) + 1)) :], kind)


def binary_with(p, kind, f, g, check=None):
    n = p.pick(kind)
    if n is None:
        return
    other, array = partner(p, n, kind)
    a, b = p.values[n], p.values[other] if array is None else array
    if check is not None and not check(a, b):
        return
    if array is None:
        p.add(f, g(a, b), n, other)
    else:
        held = constant(array)
        p.add(lambda x: f(x, held), g(a, b), n)


def binary(p):
    f, g = [
        (jnp.add, np.add),
        (jnp.subtract, np.subtract),
        (lambda x, y: x * y * 0.25, lambda x, y: x * y * 0.25),
        (jnp.maximum, np.maximum),
        (jnp.minimum, np.minimum),
        (lambda x, y: x / (y * y + 1), lambda x, y: x / (y * y + 1)),
        (
            lambda x, y: jnp.power(x * x + 0.5, jnp.tanh(y)),
            lambda x, y: (x * x + 0.5) ** np.tanh(y),
        ),
    ][int(p.rng.integers(7))]
    binary_with(p, "float", f, g)


def _divide(a, b):
    safe = np.where(b == 0, 1, b)
    return np.where(b == 0, -1, np.trunc(a / safe)).astype(np.int32)


def _remainder(a, b):
    return np.where(b == 0, a, np.fmod(a, np.where(b == 0, 1, b))).astype(np.int32)


def _pair(f):
    return lambda x, y: f(*jnp.broadcast_arrays(x, y))


def integer(p):
    f, g = [
        (jnp.add, np.add),
        (jnp.subtract, np.subtract),
        (jnp.multiply, np.multiply),
        (jnp.maximum, np.maximum),
        (jnp.minimum, np.minimum),
        (_pair(lax.div), _divide),
        (_pair(lax.rem), _remainder),
    ][int(p.rng.integers(7))]
    binary_with(p, "int", f, g)


def integer_unary(p):
    n = p.pick("int")
    if n is not None:
        f, g = [(jnp.abs, np.abs), (jnp.negative, np.negative), (jnp.sign, np.sign),
                (lambda x: jnp.clip(x, -2, 3), lambda x: np.clip(x, -2, 3)),
                (lambda x: x**2, lambda x: x**2)][int(p.rng.integers(5))]  # fmt: skip
        p.add(f, g(p.values[n]), n)


def apart(a, b):
    gap = np.abs(a - b)
    return bool((gap > 1e-3).all())


def compare(p):
    f, g = [(jnp.less, np.less), (jnp.less_equal, np.less_equal), (jnp.greater, np.greater),
            (jnp.greater_equal, np.greater_equal), (jnp.equal, np.equal),
            (jnp.not_equal, np.not_equal)][int(p.rng.integers(6))]  # fmt: skip
    kind = str(p.rng.choice(["float", "int", "bool"]))
    binary_with(p, kind, f, g, apart if kind == "float" else None)


def logic(p):
    f, g = [(jnp.logical_and, np.logical_and), (jnp.logical_or, np.logical_or),
            (jnp.logical_xor, np.logical_xor)][int(p.rng.integers(3))]  # fmt: skip
    binary_with(p, "bool", f, g)
    n = p.pick("bool")
    if p.chance(0.3):
        p.add(jnp.logical_not, ~p.values[n], n)


def select(p):
    kind = str(p.rng.choice(["float", "int", "bool"]))
    n, c = p.pick(kind), p.pick("bool")
    if n is None:
        return
    try:
        shape = np.broadcast_shapes(p.values[n].shape, p.values[c].shape)
    except ValueError:
        return
    other = p.draw(shape if p.chance() else (), kind)
    held = constant(other)
    p.add(lambda x, c: jnp.where(c, x, held), np.where(p.values[c], p.values[n], other), n, c)


def choose_case(p):
    n, c = p.pick("float"), p.pick("int")
    if n is None or c is None or p.values[c].shape != p.values[n].shape:
        return
    x, which = p.values[n], np.clip(p.values[c], 0, 2)
    p.add(
        lambda x, c: lax.select_n(jnp.clip(c, 0, 2), x, -x, x * 0.5),
        np.select([which == 0, which == 1], [x, -x], x * 0.5),
        n,
        c,
    )


def convert(p):
    n = p.pick()
    v = p.values[n]
    if v.dtype.kind == "f":
        if np.abs(v - np.round(v)).min(initial=1) > 1e-3:
            p.add(lambda x: x.astype(jnp.int32), np.trunc(v).astype(np.int32), n)
            return
        if np.abs(v).min(initial=1) > 1e-3:
            p.add(lambda x: x.astype(bool), v != 0, n)
        return
    if p.chance(0.7):
        p.add(lambda x: x.astype(jnp.float32), v.astype(np.float64), n)
    elif v.dtype.kind == "b":
        p.add(lambda x: x.astype(jnp.int32), v.astype(np.int32), n)
    else:
        p.add(lambda x: x.astype(bool), v != 0, n)


def rounding(p):
    n = p.pick("float")
    if n is None:
        return
    v = p.values[n]
    halves = np.abs(v * 2 - np.round(v * 2))
    if halves.min(initial=1) > 1e-3:
        f, g = [(jnp.floor, np.floor), (jnp.ceil, np.ceil), (jnp.round, np.round),
                (jnp.sign, np.sign),
                (lambda x: lax.round(x, lax.RoundingMethod.AWAY_FROM_ZERO), np.round),
                ][int(p.rng.integers(5))]  # fmt: skip
        p.add(f, g(v), n)
