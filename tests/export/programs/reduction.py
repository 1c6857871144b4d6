"""Steps along an axis: sums, normalizing, running results, orderings."""

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax


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


def normalized(p):
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
