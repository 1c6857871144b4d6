"""Times the implementations of `ops.expert_mlp`, forward and with gradients.

    python tools/bench/expert_mlp.py --sizes tiny --tokens 64 512 2048
    python tools/bench/expert_mlp.py --sizes pangu --dtype bfloat16 --tokens 64 1024 16384

Prints one line an implementation and token count: times, their ratios to `one expert`, which is as
many rows as there are choices through the kernels of a single expert (the same FLOPs without any
routing: what could be reached), and the routed FLOPs per second; `--out` writes the same as JSON.
Forms that would need more than some 8 GB for one array are left out, so that `pangu` fits one 80 GB
device up to 16384 tokens in bfloat16.
"""

import argparse
import json
import os
import platform
import statistics
import time
from pathlib import Path

import jax
import jax.numpy as jnp

from pangu_jax.core.files import atomic_write
from pangu_jax.ops.expert_mlp import choose, expert_mlp

ONE = "one expert"

# width, hidden width, groups, experts per group, experts chosen per group
SIZES = {
    "tiny": (128, 64, 8, 4, 1),
    "tiny-topk": (128, 64, 1, 32, 8),
    "demo": (256, 384, 4, 4, 1),
    "demo-topk": (256, 384, 1, 16, 4),
    "small": (768, 192, 8, 8, 1),
    "pangu": (5120, 1344, 8, 8, 1),
    "pangu-topk": (5120, 1344, 1, 64, 8),
}


def inputs(sizes, tokens, dtype):
    """Random activations, kernels and uniformly random choices without repetition."""
    width, hidden, groups, experts, k = sizes
    keys = jax.random.split(jax.random.key(0), 6)
    scores = jax.random.uniform(keys[0], (tokens, groups, experts))
    weights, ids = jax.lax.top_k(scores, k)
    shapes = [(width, hidden), (width, hidden), (hidden, width)]
    kernels = [
        (jax.random.normal(key, (groups, experts, *shape)) * shape[0] ** -0.5).astype(dtype)
        for key, shape in zip(keys[1:4], shapes, strict=True)
    ]
    x = jax.random.normal(keys[4], (tokens, width)).astype(dtype)
    return x, ids.astype(jnp.int32), weights, *kernels


def seconds(calls, repeats):
    """Median of `repeats` timed calls of each after two warm-up calls.

    All are called in turn, so that whatever else the machine does slows all of them down.
    """
    times = [[] for _ in calls]
    for _ in range(2 + repeats):
        for (function, arguments), own in zip(calls, times, strict=True):
            start = time.perf_counter()
            jax.block_until_ready(function(*arguments))
            own.append(time.perf_counter() - start)
    return [statistics.median(own[2:]) for own in times]


def one_expert(rows, weights, gate, up, down):
    """Rows [N, D] through the first expert alone, each times a weight."""
    gate, up, down = (kernel[0, 0] for kernel in (gate, up, down))
    hidden = jax.nn.silu(rows @ gate) * (rows @ up)
    return hidden @ down * weights.reshape(-1, 1).astype(rows.dtype)


def measure(sizes, tokens, dtype, names, repeats):
    """Rows of {implementation, tokens, forward, backward} in seconds."""
    x, ids, *rest = inputs(sizes, tokens, dtype)
    width, hidden, groups, experts, k = sizes
    flops = 6 * tokens * groups * k * width * hidden
    taken, calls = [], []
    for name in [ONE, *names]:
        if name == "dense" and tokens * groups * experts * hidden * 8 > 8e9:
            continue  # its hidden units alone would take many gigabytes
        if name == "gather" and tokens * groups * k * width * hidden * 6 > 8e9:
            continue

        def run(x, ids, *rest, name=name):
            if name == ONE:
                return one_expert(x, *rest)
            return expert_mlp(x, ids, *rest, impl=name)

        def loss(x, ids, *rest, name=name):
            return (run(x, ids, *rest, name=name).astype(jnp.float32) ** 2).sum()

        given = (jnp.tile(x, (groups * k, 1)) if name == ONE else x, ids, *rest)
        taken.append(name)
        calls.append((jax.jit(run), given))
        calls.append((jax.jit(jax.grad(loss, argnums=(0, 2, 3, 4, 5))), given))
    times = seconds(calls, repeats)
    return [
        {"implementation": name, "tokens": tokens, "forward_s": forward,
         "forward_backward_s": both, "forward_flops": flops}
        for name, forward, both in zip(taken, times[::2], times[1::2], strict=True)
    ]  # fmt: skip


def machine():
    """What this runs on, in words."""
    kind = jax.devices()[0].device_kind
    if jax.default_backend() == "cpu":
        info = Path("/proc/cpuinfo")
        lines = info.read_text("utf-8").splitlines() if info.exists() else []
        names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
        kind = f"{len(names) or os.cpu_count()} x {names[0] if names else platform.processor()}"
    return f"{kind} ({platform.machine()}, jax {jax.__version__})"


def line(row, base):
    """A row of the table; `base` is that of one expert."""
    forward, both = row["forward_s"], row["forward_backward_s"]
    ratios = [forward / base["forward_s"], both / base["forward_backward_s"]]
    first, second = [f"{r:7.2f}" for r in ratios]
    return (
        f"{row['tokens']:7d} {row['implementation']:>10} {forward * 1e3:9.3f} {first}"
        f" {both * 1e3:11.3f} {second} {row['forward_flops'] / forward / 1e9:9.0f}"
        f"{' <- picked' if row['picked'] else ''}"
    )


def main():
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", default="tiny", choices=SIZES)
    parser.add_argument("--tokens", type=int, nargs="+", default=[1, 16, 64, 256, 1024, 4096])
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--impl", nargs="+", default=["gather", "dense", "loop", "block"])
    parser.add_argument("--out")
    options = parser.parse_args()
    device, sizes = machine(), SIZES[options.sizes]
    print(f"{options.sizes} {sizes} {options.dtype} on {device}")
    print(
        f"{'tokens':>7} {'form':>10} {'fwd ms':>9} {'/ one':>7} {'fwd+bwd ms':>11} {'/ one':>7}"
        f" {'GFLOP/s':>9}"
    )
    table = []
    for tokens in options.tokens:
        rows = measure(sizes, tokens, jnp.dtype(options.dtype), options.impl, options.repeats)
        picked = choose(jax.default_backend(), tokens, sizes[4], sizes[3])
        base = rows[0]
        for row in rows:
            row["picked"] = row["implementation"] == picked
            print(line(row, base), flush=True)
        table += rows
    if options.out:
        with atomic_write(options.out) as file:
            json.dump({"device": device, "sizes": options.sizes, "dtype": options.dtype,
                       "rows": table}, file, indent=1)  # fmt: skip


if __name__ == "__main__":
    main()
