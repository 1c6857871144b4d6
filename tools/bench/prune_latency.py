"""Times dense and pruned models: does a smaller model run faster by as much as it is smaller?

    python tools/bench/prune_latency.py --out prune_latency.json      7B shape, prefill and decode
    python tools/bench/prune_latency.py --shape tiny --length 64           a smoke test on a CPU

Random bfloat16 weights, so only shapes matter: nothing is pruned, models of the pruned shapes are
made, with layers apart as the decoding engine has them. Dense and pruned alternate. For prefill the
ratio is in FLOPs, for decoding (one token against a cache) in bytes of weights and cache. Target:
(speed-up - 1) >= 0.85 (ratio - 1). Compile times and shapes are printed. `--multiple` rounds widths
as `pangu-jax prune --multiple` does.
"""

import argparse
import json
import time

import jax
import jax.numpy as jnp
import numpy as np
from prune_speed import SHAPES, weights

from pangu_jax.core.spec import nbytes
from pangu_jax.models import decoder, transformer
from pangu_jax.pruning import axes
from pangu_jax.pruning.allocate import Limits, parse, shrink


def prepare(cfg, options):
    """A model's compiled prefill and decoding step, and what each costs."""
    params = transformer.by_layer(weights(cfg, jnp.bfloat16), donate=True)
    tokens = jnp.zeros((options.batch, options.length), jnp.int32)

    def prefill(layers, tokens):
        full = jnp.full(options.batch, options.length, jnp.int32)
        return decoder.prefill(layers, tokens, full, cfg=cfg)

    def step(layers, caches, token):
        # The position stays, so that every call does the same work.
        at = jnp.full(options.decode_batch, options.length, jnp.int32)
        return decoder.step(layers, token, at, caches, cfg=cfg)

    began = time.perf_counter()
    prefill = jax.jit(prefill).lower(params, tokens).compile()
    compiled = time.perf_counter() - began
    rows = options.decode_batch
    shape = lambda heads: (rows, options.length + 8, heads.kv_heads, heads.head_dim)  # noqa: E731
    caches = [
        {name: jnp.zeros(shape(layer.attention), jnp.bfloat16) for name in ("key", "value")}
        for layer in cfg.layers
    ]
    token = jnp.zeros(rows, jnp.int32)
    step = jax.jit(step, donate_argnums=1).lower(params, caches, token).compile()
    bytes_read = nbytes(params) - (0 if cfg.tied else nbytes(params["embed"]))
    bytes_read += rows * options.length * decoder.cache_bytes(cfg)
    return {
        "cfg": cfg,
        "params": params,
        "prefill": lambda: prefill(params, tokens),
        "step": step,
        "caches": caches,
        "token": token,
        "compile_s": compiled,
        "flops": axes.flops(cfg, options.length),
        "bytes": bytes_read,
    }


def time_prefill(model, repeats):
    """Least seconds of a prefill."""
    model["prefill"]()[0].block_until_ready()
    times = []
    for _ in range(repeats):
        began = time.perf_counter()
        jax.block_until_ready(model["prefill"]())
        times.append(time.perf_counter() - began)
    return min(times)


def time_decode(model, repeats):
    """Seconds per token of a chain of `repeats` steps, the least of three."""
    times = []
    for _ in range(3):
        caches = model["caches"]
        _, caches = model["step"](model["params"], caches, model["token"])
        jax.block_until_ready(caches)
        began = time.perf_counter()
        for _ in range(repeats):
            _, caches = model["step"](model["params"], caches, model["token"])
        jax.block_until_ready(caches)
        times.append((time.perf_counter() - began) / repeats)
        model["caches"] = caches
    return min(times)


def main():
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", default="7b", choices=SHAPES)
    parser.add_argument("--targets", nargs="*", default=["params=0.8", "params=0.5"])
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--decode-batch", type=int, default=1)
    parser.add_argument("--length", type=int, default=2048)
    parser.add_argument("--multiple", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--out")
    options = parser.parse_args()
    cfg = SHAPES[options.shape]
    limits = Limits(multiple=options.multiple)
    results = {
        "device": jax.devices()[0].device_kind,
        "jax": jax.__version__,
        "command": vars(options),
        "targets": {},
    }
    dense = prepare(cfg, options)
    for target in options.targets:
        small = prepare(
            shrink(cfg, parse(target), prunable_axes=("groups", "ffn"), limits=limits), options
        )
        found = {"layer": repr(axes.sizes(small["cfg"].layers[0]))}
        for what, clock, cost in (
            ("prefill", time_prefill, "flops"),
            ("decode", time_decode, "bytes"),
        ):
            pairs = [[clock(model, options.repeats) for model in (dense, small)] for _ in range(3)]
            before, after = np.min(pairs, 0)
            ratio, speedup = dense[cost] / small[cost], before / after
            kept = (speedup - 1) / (ratio - 1) if ratio > 1 else float("nan")
            found[what] = {
                "dense_ms": 1e3 * before,
                "pruned_ms": 1e3 * after,
                f"{cost}_ratio": ratio,
                "speedup": speedup,
                "share_of_ratio": kept,
            }
            print(
                f"{options.shape} {target} {found['layer']} on {results['device']}: {what} "
                f"{1e3 * before:.2f} -> {1e3 * after:.2f} ms, speed-up {speedup:.3f}, ratio in "
                f"{cost} {ratio:.3f}: {kept:.2f} of it (compiled in {small['compile_s']:.1f} s)",
                flush=True,
            )
        results["targets"][target] = found
        del small
        if options.out:
            with open(options.out, "w", encoding="utf-8") as file:
                json.dump(results, file, indent=1)


if __name__ == "__main__":
    main()
