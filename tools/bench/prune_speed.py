"""Times pruning a Llama-7B shape (random weights): statistics, choice, ridge repair, slicing.

    python tools/bench/prune_speed.py --out prune_speed.json              32 x 128 and 128 x 2048
    python tools/bench/prune_speed.py --shape tiny --runs 8x64            a smoke test on a CPU

Each run makes fresh bfloat16 weights, prunes them to --target by SlimLLM with ridge repair, and
prints the wall time (weights made beforehand, compiling counted), and the peak of device memory
relative to the weights where the device tells. Peak memory is that of the process so far, so a
figure is trustworthy for the first run and an upper bound for later ones; `--runs` takes one run a
process. Targets: 32 x 128 in 60 s, 128 x 2048 in 360 s, peak at most 1.3 times the weights.
"""

import argparse
import json
import time

import jax
import jax.numpy as jnp
import numpy as np

from pangu_jax.core.spec import nbytes
from pangu_jax.models import decoder, presets
from pangu_jax.nn.attention import AttentionConfig
from pangu_jax.nn.how import How
from pangu_jax.nn.mlp import MlpConfig
from pangu_jax.pruning import axes
from pangu_jax.pruning.allocate import Limits, parse
from pangu_jax.pruning.compress import compress
from pangu_jax.pruning.recipe import Recipe
from pangu_jax.pruning.stats import SweepConfig
from pangu_jax.sharding.layout import init

SHAPES = {
    "7b": presets.uniform(
        32000, 4096, 32, AttentionConfig(32, 1, 128), mlp=MlpConfig(11008), max_length=4096
    ),
    "1b": presets.uniform(
        32000, 2048, 16, AttentionConfig(8, 4, 64), mlp=MlpConfig(8192), max_length=4096
    ),
    "tiny": presets.uniform(
        264, 64, 3, AttentionConfig(4, 2, 8), mlp=MlpConfig(160), max_length=256
    ),
}


def weights(cfg, dtype):
    """Random parameters of the size a trained model's have, layer by layer on the device."""
    return init(decoder.spec(cfg), key=jax.random.key(0), dtype=dtype)


def one(cfg, windows, options):
    """One run's figures."""
    params = jax.block_until_ready(weights(cfg, jnp.bfloat16))
    size = nbytes(params)
    began = time.perf_counter()
    found = compress(
        params,
        windows,
        cfg=cfg,
        target=parse(options.target),
        recipe=Recipe(method=options.method, repair=options.repair, ridge=options.ridge),
        limits=Limits(multiple=options.multiple, heads_divide=False),
        sweep_cfg=SweepConfig(
            batch=options.batch, moments="float32", offload=options.offload, held_out=options.held
        ),
        donate=True,
        how=How(impl={"attention": options.impl} if options.impl else None),
    )
    jax.block_until_ready(found.params)
    seconds = time.perf_counter() - began
    peak = (jax.devices()[0].memory_stats() or {}).get("peak_bytes_in_use")
    return {
        "windows": list(windows.shape),
        "seconds": seconds,
        "weights_gib": size / 2**30,
        "peak_gib": None if peak is None else peak / 2**30,
        "peak_over_weights": None if peak is None else peak / size,
        "parameters": [axes.parameters(cfg), axes.parameters(found.cfg)],
        "error_cut": float(np.mean([s.cut / s.output for s in found.sites.values()])),
        "error_repaired": float(np.mean([s.repaired / s.output for s in found.sites.values()])),
    }


def main():
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", default="7b", choices=SHAPES)
    parser.add_argument("--runs", nargs="*", default=["32x128", "128x2048"])
    parser.add_argument("--target", default="params=0.8")
    parser.add_argument("--method", default="slimllm")
    parser.add_argument("--repair", default="ridge")
    parser.add_argument("--ridge", type=float)
    parser.add_argument("--multiple", type=int, default=64)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--offload", action="store_true", help="layer boundary in host memory")
    parser.add_argument("--held", type=float, default=0.25, help="share held out for the ridge")
    parser.add_argument("--impl")
    parser.add_argument("--out")
    options = parser.parse_args()
    cfg = SHAPES[options.shape]
    results = {
        "device": jax.devices()[0].device_kind,
        "jax": jax.__version__,
        "command": vars(options),
        "runs": [],
    }
    for text in options.runs:
        number, length = map(int, text.split("x"))
        rng = np.random.default_rng(0)
        windows = rng.integers(0, cfg.vocab, (number, length)).astype(np.int32)
        found = one(cfg, windows, options)
        results["runs"].append(found)
        ratio = found["peak_over_weights"]
        print(
            f"{options.shape} {text} on {results['device']}: {found['seconds']:.1f} s, weights "
            f"{found['weights_gib']:.2f} GiB, peak "
            + ("not told" if ratio is None else f"{ratio:.2f} times that"),
            flush=True,
        )
        if options.out:
            with open(options.out, "w", encoding="utf-8") as file:
                json.dump(results, file, indent=1)


if __name__ == "__main__":
    main()
