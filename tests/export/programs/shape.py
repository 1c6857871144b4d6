"""Steps that move, repeat, cut or join values, and write into them."""

import jax.numpy as jnp
import numpy as np
from jax import lax

from .program import constant


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
