"""Random small programs: each step as a jax function, and its result by numpy in float64.

A step never compares or rounds floats that are near a border, so that the last bits of a result
cannot decide what comes next.
"""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

BOUND = 30.0


class Program:
    """A list of steps over a growing list of values, of which some are inputs."""

    def __init__(self, seed):
        self.rng = np.random.default_rng(seed)
        self.values, self.steps, self.peak = [], [], 1.0
        self.inputs = {}
        for name in ("a", "b", "i", "p"):
            shape = self.shape()
            kind = {"i": "int", "p": "bool"}.get(name, "float")
            self.inputs[name] = len(self.values)
            self.values.append(self.draw(shape, kind))
        self.wanted = int(self.rng.integers(3, 13))
        tries = 0
        while len(self.steps) < self.wanted and tries < 400:
            tries += 1
            OPS[int(self.rng.integers(len(OPS)))](self)
        self.results = sorted({len(self.values) - 1, int(self.rng.integers(4, len(self.values)))})

    def shape(self, low=0, high=5):
        rank = int(self.rng.integers(low, high + 1))
        return tuple(int(n) for n in self.rng.choice([1, 2, 3, 4], rank, p=[0.3, 0.3, 0.25, 0.15]))

    def draw(self, shape, kind="float"):
        if kind == "int":
            return self.rng.integers(-5, 6, shape).astype(np.int32)
        if kind == "bool":
            return self.rng.random(shape) < 0.5
        # Multiples of 1/64: float32 holds them, and different ones are far apart.
        return np.round(self.rng.normal(size=shape) * 128) / 64

    def pick(self, kind=None, low=0):
        kinds = {"float": "f", "int": "i", "bool": "b"}
        fitting = [
            n
            for n, v in enumerate(self.values)
            if v.ndim >= low and v.size and (kind is None or v.dtype.kind == kinds[kind])
        ]
        if not fitting:
            return None
        # Mostly the latest, so that programs are deep.
        return fitting[-1] if self.rng.random() < 0.6 else int(self.rng.choice(fitting))

    def chance(self, p=0.5):
        return bool(self.rng.random() < p)

    def add(self, function, result, *sources):
        """A step: `function` of the values numbered `sources`, which numpy says gives `result`."""
        result = np.asarray(result)
        if result.size > 600 or result.ndim > 5:
            return
        if result.dtype.kind == "f":
            result = result.astype(np.float64)
            top = np.abs(result).max(initial=0)
            if not np.isfinite(top) or top > BOUND * 100:
                return
            self.peak = max(self.peak, top)
        elif result.dtype.kind == "i":
            if np.abs(result.astype(np.int64)).max(initial=0) > 10**6:
                return
            result = result.astype(np.int32)
        self.steps.append((function, sources))
        self.values.append(result)
        if result.dtype.kind == "f" and np.abs(result).max(initial=0) > BOUND:
            self.steps.append((lambda x: jnp.tanh(x * 0.25), (len(self.values) - 1,)))
            self.values.append(np.tanh(result * 0.25))

    def arguments(self):
        kinds = {"f": np.float32, "i": np.int32, "b": np.bool_}
        return {
            name: self.values[n].astype(kinds[self.values[n].dtype.kind])
            for name, n in self.inputs.items()
        }

    def function(self, params, **inputs):
        values = [inputs[name] for name in self.inputs]
        for function, sources in self.steps:
            result = function(*(values[n] for n in sources))
            values.append(result)
        return {f"r{n}": values[n] for n in self.results}


def constant(array):
    array = np.asarray(array)
    return array.astype(np.float32) if array.dtype.kind == "f" else array


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


def transposed(p):
    n = p.pick(low=2)
    if n is not None:
        order = tuple(int(i) for i in p.rng.permutation(p.values[n].ndim))
        p.add(lambda x: x.transpose(order), p.values[n].transpose(order), n)


def reshaped(p):
    n = p.pick()
    size, shape = p.values[n].size, []
    while size > 1 and len(shape) < 4:
        factors = [d for d in range(1, size + 1) if size % d == 0]
        shape.append(int(p.rng.choice(factors)))
        size //= shape[-1]
    shape.append(size)
    shape = tuple(shape)
    p.add(lambda x: x.reshape(shape), p.values[n].reshape(shape), n)


def broadcast(p):
    n = p.pick()
    v = p.values[n]
    shape = tuple(3 if s == 1 and p.chance() else s for s in v.shape)
    if len(shape) < 5 and p.chance():
        shape = (2, *shape)
    p.add(lambda x: jnp.broadcast_to(x, shape), np.broadcast_to(v, shape), n)


def squeeze_or_expand(p):
    n = p.pick()
    v = p.values[n]
    ones = [i for i, s in enumerate(v.shape) if s == 1]
    if ones and p.chance():
        axis = int(p.rng.choice(ones))
        p.add(lambda x: jnp.squeeze(x, axis), v.squeeze(axis), n)
    else:
        axis = int(p.rng.integers(0, v.ndim + 1))
        p.add(lambda x: jnp.expand_dims(x, axis), np.expand_dims(v, axis), n)


def sliced(p):
    n = p.pick(low=1)
    if n is None:
        return
    spans = []
    for s in p.values[n].shape:
        start = int(p.rng.integers(0, s))
        spans.append(slice(start, int(p.rng.integers(start + 1, s + 1)), int(p.rng.integers(1, 3))))
    if p.chance(0.3):
        spans[-1] = slice(None, None, -1)
    spans = tuple(spans)
    p.add(lambda x: x[spans], p.values[n][spans], n)


def padded(p):
    n = p.pick(low=1)
    if n is None:
        return
    v = p.values[n]
    config = [
        (int(p.rng.integers(-1, 3)), int(p.rng.integers(-1, 3)), int(p.rng.integers(0, 3)))
        for _ in v.shape
    ]
    sizes = [lo + s + (s - 1) * mid + hi for s, (lo, hi, mid) in zip(v.shape, config, strict=True)]
    if min(sizes) < 1:
        return
    kind = {"f": np.float32, "i": np.int32, "b": np.bool_}[v.dtype.kind]
    fill = kind(p.rng.integers(0, 3))
    out = np.full(sizes, fill, v.dtype)
    for place in np.ndindex(v.shape):
        to = tuple(lo + i * (mid + 1) for i, (lo, _, mid) in zip(place, config, strict=True))
        if all(0 <= t < s for t, s in zip(to, sizes, strict=True)):
            out[to] = v[place]
    p.add(lambda x: lax.pad(x, fill, config), out, n)


def joined(p):
    n = p.pick(low=1)
    if n is None:
        return
    v = p.values[n]
    axis = int(p.rng.integers(v.ndim))
    shape = list(v.shape)
    shape[axis] = int(p.rng.integers(1, 3))
    kind = {"f": "float", "i": "int", "b": "bool"}[v.dtype.kind]
    other = p.draw(tuple(shape), kind)
    held = constant(other)
    p.add(lambda x: jnp.concatenate([x, held, x], axis), np.concatenate([v, other, v], axis), n)


def split_and_stack(p):
    n = p.pick(low=1)
    if n is None:
        return
    v = p.values[n]
    axis = int(p.rng.integers(v.ndim))
    if v.shape[axis] >= 2:
        at = [1]
        p.add(lambda x: jnp.split(x, at, axis)[1], np.split(v, at, axis)[1], n)
    if v.ndim < 5:
        p.add(lambda x: jnp.stack([x, x], axis), np.stack([v, v], axis), n)


def dynamic(p):
    n, i = p.pick(low=1), p.pick("int")
    if n is None:
        return
    v = p.values[n]
    number = int(p.values[i].reshape(-1)[0])
    axis = int(p.rng.integers(v.ndim))
    size = int(p.rng.integers(1, v.shape[axis] + 1))
    start = min(max(number + v.shape[axis] if number < 0 else number, 0), v.shape[axis] - size)
    span = tuple(slice(start, start + size) if d == axis else slice(None) for d in range(v.ndim))
    if p.chance():
        p.add(lambda x, i: lax.dynamic_slice_in_dim(x, i.reshape(-1)[0], size, axis), v[span], n, i)
        return
    shape = list(v.shape)
    shape[axis] = size
    update = p.draw(tuple(shape), {"f": "float", "i": "int", "b": "bool"}[v.dtype.kind])
    held = constant(update)
    out = v.copy()
    out[span] = update
    p.add(
        lambda x, i: lax.dynamic_update_slice_in_dim(x, jnp.asarray(held), i.reshape(-1)[0], axis),
        out,
        n,
        i,
    )


def static_update(p):
    n = p.pick("float", low=1)
    if n is None:
        return
    v = p.values[n]
    sizes = [int(p.rng.integers(1, s + 1)) for s in v.shape]
    starts = [int(p.rng.integers(0, s - u + 1)) for s, u in zip(v.shape, sizes, strict=True)]
    update = p.draw(tuple(sizes))
    held, out = constant(update), v.copy()
    out[tuple(slice(a, a + u) for a, u in zip(starts, sizes, strict=True))] = update
    p.add(lambda x: lax.dynamic_update_slice(x, jnp.asarray(held), starts), out, n)


def reduction(p):
    n = p.pick(low=1)
    if n is None:
        return
    v = p.values[n]
    count = int(p.rng.integers(1, v.ndim + 1))
    axes = tuple(int(a) for a in sorted(p.rng.choice(v.ndim, count, replace=False)))
    keep = p.chance()
    if v.dtype.kind == "b":
        f, g = [(jnp.any, np.any), (jnp.all, np.all)][int(p.rng.integers(2))]
    elif v.dtype.kind == "i":
        f, g = [(jnp.sum, np.sum), (jnp.max, np.max), (jnp.min, np.min)][int(p.rng.integers(3))]
    else:
        f, g = [(jnp.sum, np.sum), (jnp.max, np.max), (jnp.min, np.min), (jnp.mean, np.mean),
                (jnp.prod, np.prod)][int(p.rng.integers(5))]  # fmt: skip
    p.add(lambda x: f(x, axis=axes, keepdims=keep), np.asarray(g(v, axis=axes, keepdims=keep)), n)


def normalised(p):
    n = p.pick("float", low=1)
    if n is None:
        return
    v = p.values[n]
    axis = int(p.rng.integers(v.ndim))
    if p.chance():
        e = np.exp(v - v.max(axis, keepdims=True))
        p.add(lambda x: jax.nn.softmax(x, axis), e / e.sum(axis, keepdims=True), n)
    else:
        mean = (v * v).mean(axis, keepdims=True)
        p.add(
            lambda x: x * lax.rsqrt(jnp.mean(x * x, axis, keepdims=True) + 0.1),
            v / np.sqrt(mean + 0.1),
            n,
        )


def running(p):
    n = p.pick(str(p.rng.choice(["float", "int"])), low=1)
    if n is None:
        return
    v = p.values[n]
    axis, back = int(p.rng.integers(v.ndim)), p.chance()
    f, g = [
        (lax.cumsum, np.cumsum),
        (lax.cummax, np.maximum.accumulate),
        (lax.cummin, np.minimum.accumulate),
        (lax.cumprod, np.cumprod),
    ][int(p.rng.integers(4))]
    turned = np.flip(v, axis) if back else v
    out = g(turned, axis=axis)
    p.add(lambda x: f(x, axis=axis, reverse=back), np.flip(out, axis) if back else out, n)


def distinct(v, axis):
    ordered = np.sort(v, axis)
    gaps = np.diff(ordered, axis=axis)
    return v.dtype.kind != "f" or (np.abs(gaps) > 1e-3).all()


def ordering(p):
    n = p.pick(str(p.rng.choice(["float", "int"])), low=1)
    if n is None:
        return
    v = p.values[n]
    axis = int(p.rng.integers(v.ndim))
    kind = int(p.rng.integers(5))
    if not distinct(v, axis):
        return
    if kind == 0:
        p.add(lambda x: jnp.argmax(x, axis), np.argmax(v, axis).astype(np.int32), n)
    elif kind == 1:
        p.add(lambda x: jnp.argmin(x, axis), np.argmin(v, axis).astype(np.int32), n)
    elif kind == 2:
        p.add(lambda x: jnp.sort(x, axis), np.sort(v, axis), n)
    elif kind == 3:
        order = np.argsort(v, axis, kind="stable").astype(np.int32)
        p.add(lambda x: jnp.argsort(x, axis, stable=True), order, n)
    elif distinct(v, v.ndim - 1):
        k = int(p.rng.integers(1, v.shape[-1] + 1))
        order = np.argsort(-v, -1, kind="stable")[..., :k]
        which = int(p.rng.integers(2))
        out = np.take_along_axis(v, order, -1) if which == 0 else order.astype(np.int32)
        p.add(lambda x: lax.top_k(x, k)[which], out, n)


def product(p):
    n = p.pick(str(p.rng.choice(["float", "float", "int"])))
    if n is None:
        return
    v = p.values[n]
    kinds = [str(p.rng.choice(["batch", "contract", "free"])) for _ in v.shape]
    batch = [i for i, k in enumerate(kinds) if k == "batch"]
    contract = [i for i, k in enumerate(kinds) if k == "contract"]
    extra = p.shape(0, 2)
    axes = (
        [("b", i) for i in batch]
        + [("c", i) for i in contract]
        + [("x", j) for j in range(len(extra))]
    )
    order = p.rng.permutation(len(axes))
    axes = [axes[i] for i in order]
    shape = tuple(extra[j] if t == "x" else v.shape[j] for t, j in axes)
    other = p.draw(shape, "float" if v.dtype.kind == "f" else "int")
    held = constant(other)
    place = {axis: k for k, axis in enumerate(axes)}
    rb, rc = [place["b", i] for i in batch], [place["c", i] for i in contract]
    letters = iter("abcdefghijklmnopqrstuvwxyz")
    left = [next(letters) for _ in v.shape]
    fresh = [next(letters) for _ in extra]
    right = [fresh[j] if t == "x" else left[j] for t, j in axes]
    free = [left[i] for i, k in enumerate(kinds) if k == "free"]
    rest = [fresh[j] for t, j in axes if t == "x"]
    out = [left[i] for i in batch] + free + rest
    swap = p.chance(0.4)
    if swap:
        out = [left[i] for i in batch] + rest + free
        expression = f"{''.join(right)},{''.join(left)}->{''.join(out)}"
        result = np.einsum(expression, other, v)
        f = lambda x: lax.dot_general(held, x, ((rc, contract), (rb, batch)))  # noqa: E731
    else:
        expression = f"{''.join(left)},{''.join(right)}->{''.join(out)}"
        result = np.einsum(expression, v, other)
        f = lambda x: lax.dot_general(x, held, ((contract, rc), (batch, rb)))  # noqa: E731
    if p.chance() and result.ndim > 1:
        turn = tuple(int(i) for i in p.rng.permutation(result.ndim))
        p.add(lambda x: f(x).transpose(turn), result.transpose(turn), n)
    else:
        p.add(f, result, n)


def convolution(p):
    n = p.pick("float", low=3)
    if n is None:
        return
    v = p.values[n]
    spatial = v.ndim - 2
    lhs = tuple(int(i) for i in p.rng.permutation(v.ndim))
    x = v.transpose(lhs)  # batch, channels, space
    groups = x.shape[1] if p.chance(0.3) else 1
    outputs = groups * int(p.rng.integers(1, 3))
    window = [int(p.rng.integers(1, 3)) for _ in range(spatial)]
    kernel = p.draw((outputs, x.shape[1] // groups, *window))
    stride, inner = ([int(p.rng.integers(1, 3)) for _ in range(spatial)] for _ in range(2))
    outer = [int(p.rng.integers(1, 3)) for _ in range(spatial)]
    padding = [
        tuple(int(i) for i in p.rng.integers(-1 if p.chance(0.2) else 0, 3, 2))
        for _ in range(spatial)
    ]
    result = naive_convolution(x, kernel, stride, padding, inner, outer, groups)
    if result is None:
        return
    rhs, out = (tuple(int(i) for i in p.rng.permutation(v.ndim)) for _ in range(2))
    numbers = lax.ConvDimensionNumbers(lhs, rhs, out)
    held = constant(kernel.transpose(np.argsort(rhs)))
    p.add(
        lambda x: lax.conv_general_dilated(x, held, stride, padding, inner, outer, numbers, groups),
        result.transpose(np.argsort(out)),
        n,
    )


def naive_convolution(x, kernel, stride, padding, inner, outer, groups):
    wide = [(s - 1) * d + 1 for s, d in zip(x.shape[2:], inner, strict=True)]
    spread = np.zeros((*x.shape[:2], *wide))
    spread[(slice(None), slice(None), *(slice(None, None, d) for d in inner))] = x
    low, high = zip(*padding, strict=True)
    room = [(max(a, 0), max(b, 0)) for a, b in padding]
    spread = np.pad(spread, [(0, 0), (0, 0), *room])
    spread = spread[(..., *(slice(max(-a, 0), s - max(-b, 0)) for a, b, s in
                            zip(low, high, spread.shape[2:], strict=True)))]  # fmt: skip
    reach = [(k - 1) * d + 1 for k, d in zip(kernel.shape[2:], outer, strict=True)]
    sizes = [(s - r) // t + 1 for s, r, t in zip(spread.shape[2:], reach, stride, strict=True)]
    if min(sizes) < 1 or min(spread.shape) < 1:
        return None
    out = np.zeros((x.shape[0], kernel.shape[0], *sizes))
    per, chunk = kernel.shape[0] // groups, kernel.shape[1]
    for o, place in itertools.product(range(kernel.shape[0]), np.ndindex(*sizes)):
        first = o // per * chunk
        for tap in np.ndindex(*kernel.shape[2:]):
            at = tuple(i * t + k * d for i, t, k, d in zip(place, stride, tap, outer, strict=True))
            rows = spread[(slice(None), slice(first, first + chunk), *at)]
            out[(slice(None), o, *place)] += rows @ kernel[(o, slice(None), *tap)]
    return out


def lookup(p):
    n, i = p.pick(low=1), p.pick("int")
    if n is None or p.values[i].ndim + p.values[n].ndim > 6:
        return
    v, index = p.values[n], p.values[i]
    axis = int(p.rng.integers(v.ndim))
    mode = str(p.rng.choice(["clip", "wrap", "fill"]))
    size = v.shape[axis]
    if mode == "fill":
        if v.dtype.kind != "f":
            return
        inside = (index >= -size) & (index < size)
        rows = np.take(v, np.where(inside, index, 0), axis)
        shape = (1,) * axis + index.shape + (1,) * (v.ndim - axis - 1)
        out = np.where(inside.reshape(shape), rows, 2.0)
        p.add(lambda x, i: jnp.take(x, i, axis, mode="fill", fill_value=2.0), out, n, i)
        return
    out = np.take(v, index, axis, mode=mode)
    p.add(lambda x, i: jnp.take(x, i, axis, mode=mode), out, n, i)


def along(p):
    n = p.pick("float", low=1)
    if n is None:
        return
    v = p.values[n]
    axis = int(p.rng.integers(v.ndim))
    shape = list(v.shape)
    shape[axis] = 3
    index = p.rng.integers(0, v.shape[axis], shape).astype(np.int32)
    out = np.take_along_axis(v, index, axis)
    p.add(lambda x: jnp.take_along_axis(x, index, axis), out, n)
    if v.ndim >= 2 and p.chance():
        rows = p.rng.integers(-v.shape[0], v.shape[0], (2, 1)).astype(np.int32)
        columns = p.rng.integers(0, v.shape[1], (3,)).astype(np.int32)
        p.add(lambda x: x[rows, columns], v[rows, columns], n)
    if v.ndim >= 2 and p.chance():
        wide = min(2, v.shape[1])
        starts = p.rng.integers(0, v.shape[1] - wide + 1, v.shape[0])
        out = np.stack([row[s : s + wide] for row, s in zip(v, starts, strict=True)])
        held = starts.astype(np.int32)
        p.add(
            lambda x: jax.vmap(lambda r, s: lax.dynamic_slice_in_dim(r, s, wide, 0))(x, held),
            out,
            n,
        )


def counting(p):
    n = p.pick("float", low=1)
    if n is None:
        return
    v = p.values[n]
    axis = int(p.rng.integers(v.ndim))
    row = np.arange(v.shape[axis]).reshape([-1 if d == axis else 1 for d in range(v.ndim)])
    p.add(lambda x: x + lax.broadcasted_iota(jnp.float32, x.shape, axis), v + row, n)


def looped(p):
    n = p.pick("float", low=1)
    if n is None:
        return
    v = p.values[n]
    back = p.chance()
    order = range(v.shape[0])[:: -1 if back else 1]
    carry, rows = np.zeros(v.shape[1:]), [None] * v.shape[0]
    for t in order:
        carry = carry * 0.5 + v[t]
        rows[t] = carry * 2
    body = lambda c, x: (c * 0.5 + x, (c * 0.5 + x) * 2)  # noqa: E731
    p.add(lambda x: lax.scan(body, jnp.zeros(x.shape[1:]), x, reverse=back)[1], np.stack(rows), n)


def branched(p):
    n, c = p.pick("float"), p.pick("bool")
    if n is not None:
        v, yes = p.values[n], bool(p.values[c].reshape(-1)[0])
        p.add(
            lambda x, c: lax.cond(c.reshape(-1)[0], lambda x: x * 2, lambda x: -x, x),
            v * 2 if yes else -v,
            n,
            c,
        )


OPS = [
    unary, unary, unary, binary, binary, integer, integer_unary, compare, logic, select,
    choose_case, convert, rounding, transposed, transposed, reshaped, reshaped, broadcast,
    squeeze_or_expand, sliced, padded, joined, split_and_stack, dynamic, static_update, reduction,
    reduction, normalised, running, ordering, product, product, product, convolution, convolution,
    lookup, along, counting, looped, branched,
]  # fmt: skip
