"""Products and convolutions with any order of axes."""

import itertools

import numpy as np
from jax import lax

from .program import constant


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
