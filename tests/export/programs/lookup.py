"""Steps that index, and steps that count, loop or branch."""

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax


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
