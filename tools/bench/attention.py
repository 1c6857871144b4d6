"""Times attention over packed rows: forward, and forward with gradients, by form.

    python tools/bench/attention.py --documents 4 16 64 --out attention.json

Rows of `--length` hold four documents of equal length. Forms: one document per row ("plain"), which
is another result and a yardstick; a mask of [B, T, T] ("mask"); and documents that are announced,
at most so many a row ("packed M"). Before it is timed, a form's results and gradients are compared
with the reference's in float32, on rows of uneven documents and of padding, where it has the same
to give.
"""

import argparse
import json
import statistics
import time
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from pangu_jax.core.files import atomic_write
from pangu_jax.ops.attention import attention, visible
from pangu_jax.ops.packed import pack


def arrays(rows, length, heads, dtype):
    """Queries, keys, values and the gradient of the result."""
    kv_heads, q_per_kv, size = heads
    query, other = (rows, length, kv_heads, q_per_kv, size), (rows, length, kv_heads, size)
    keys, shapes = jax.random.split(jax.random.key(0), 4), (query, other, other, query)
    return [jax.random.normal(k, s, dtype) for k, s in zip(keys, shapes, strict=True)]


def form(name, segments):
    """The function that attends, of queries, keys and values."""
    impl = None
    if name == "plain":
        mask = None
    elif name == "mask":
        at = jnp.broadcast_to(jnp.arange(segments.shape[1]), segments.shape)
        mask = visible(segments, at, segments, at)
    else:
        mask = pack(segments, int(name.split()[1]))
    return partial(attention, mask=mask, impl=impl)


def both(attend, query, key, value, d):
    """The result and the gradients of all three."""
    out, back = jax.vjp(attend, query, key, value)
    return out, *back(d)


def check(name, heads, length):
    """Largest relative error in norm against the reference in float32; padding is not compared."""
    ends = np.array([[7, 8, length // 2, length], [length // 3, length - 5, length, length]])
    at = np.arange(length)
    segments = (at[None, None] >= ends[:, :, None]).sum(1) + 1
    segments[1, length - 5 :] = 0
    segments = jnp.asarray(segments, jnp.int32)
    seen = (segments > 0)[:, :, None, None, None]
    inputs = arrays(2, length, heads, jnp.bfloat16)
    inputs[3] = jnp.where(seen, inputs[3], 0)
    found = jax.jit(lambda *x: both(form(name, segments), *x))(*inputs)
    exact = [x.astype(jnp.float32) for x in inputs]
    reference = partial(form("mask", segments), impl="reference")
    with jax.default_matmul_precision("highest"):
        want = jax.jit(lambda *x: both(reference, *x))(*exact)
    errors = []
    for a, b in zip(found, want, strict=True):
        keep = seen if a.ndim == 5 else seen[..., 0]
        a, b = jnp.where(keep, a, 0).astype(jnp.float32), jnp.where(keep, b, 0)
        errors.append(float(jnp.linalg.norm(a - b) / jnp.linalg.norm(b)))
    return max(errors)


def seconds(run, inputs, calls):
    """Median of three rounds, per call."""
    jax.block_until_ready(run(*inputs))
    times = []
    for _ in range(3):
        began = time.perf_counter()
        for _ in range(calls):
            out = run(*inputs)
        jax.block_until_ready(out)
        times.append((time.perf_counter() - began) / calls)
    return statistics.median(times)


def main():
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--length", type=int, default=2048)
    parser.add_argument("--heads", type=int, nargs=3, default=[8, 2, 128], metavar=("K", "Q", "C"))
    parser.add_argument("--documents", type=int, nargs="+", default=[4, 16, 64])
    parser.add_argument("--calls", type=int, default=20)
    parser.add_argument("--out")
    options = parser.parse_args()
    part = -(-options.length // 4)
    segments = jnp.broadcast_to(
        jnp.arange(options.length, dtype=jnp.int32) // part + 1, (options.batch, options.length)
    )
    inputs = arrays(options.batch, options.length, options.heads, jnp.bfloat16)
    rows = []
    for name in ("plain", "mask", *(f"packed {most}" for most in options.documents)):
        attend = form(name, segments)
        row = {"form": name, "device": jax.devices()[0].device_kind, "command": vars(options)}
        if name != "plain":
            row["error"] = check(name, options.heads, min(options.length, 512))
        row["forward_s"] = seconds(jax.jit(attend), inputs[:3], options.calls)
        row["both_s"] = seconds(jax.jit(partial(both, attend)), inputs, options.calls)
        rows.append(row)
        print(
            f"{name:10} forward {row['forward_s'] * 1e3:7.3f} ms, with gradients "
            f"{row['both_s'] * 1e3:7.3f} ms, error {row.get('error', 0):.1e}",
            flush=True,
        )
        if options.out:
            with atomic_write(options.out, "w") as file:
                json.dump(rows, file, indent=1)


if __name__ == "__main__":
    main()
