"""Times the training step of a model preset on random tokens.

    python tools/bench/train_step.py --preset moge-small --batch 16 --length 2048 --dtype bfloat16

Prints tokens per second, model FLOP/s (6 x active parameters per token, attention scores left out),
and the device's peak memory where it tells; `--out` writes the same as JSON. `--twin` takes the
ordinary top-k router of the same sizes.
"""

import argparse
import json
import time

import jax
import jax.numpy as jnp
import numpy as np

from pangu_jax.models import decoder, presets
from pangu_jax.nn.how import How
from pangu_jax.train.language import language_loss
from pangu_jax.train.optimizer import OptimizerConfig, make_optimizer
from pangu_jax.train.step import init_state, make_step


def batch(rows, length, vocab, packed):
    """Random windows; packed ones hold four documents each."""
    rng = np.random.default_rng(0)
    at = np.arange(length)
    part = max(1, -(-length // 4)) if packed else length
    return {
        "tokens": rng.integers(0, vocab, (rows, length), np.int32),
        "labels": rng.integers(0, vocab, (rows, length), np.int32),
        "weights": np.ones((rows, length), np.float32),
        "segments": np.broadcast_to(at // part + 1, (rows, length)).astype(np.int32),
        "positions": np.broadcast_to(at % part, (rows, length)).astype(np.int32),
    }


def main():
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--preset", default="moge-tiny", choices=presets.PRESETS)
    parser.add_argument("--twin", action="store_true")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--length", type=int, default=256)
    parser.add_argument("--accumulate", type=int, default=1)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--remat", choices=["full", "dots"])
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--impl", nargs="*", default=[], metavar="OPERATOR=NAME")
    parser.add_argument("--out")
    options = parser.parse_args()
    cfg = presets.preset(options.preset)
    cfg = presets.as_topk(cfg) if options.twin else cfg
    optimizer = make_optimizer(OptimizerConfig(), 1000)
    state = init_state(decoder.spec(cfg), optimizer, key=jax.random.key(0))
    loss = language_loss(
        cfg,
        how=How(
            impl=dict(x.split("=") for x in options.impl),
            remat=options.remat,
            dtype=options.dtype,
        ),
    )
    step = make_step(loss, optimizer, accumulate=options.accumulate)
    data = jax.tree.map(jnp.asarray, batch(options.batch, options.length, cfg.vocab, True))
    key = jax.random.key(1)
    began = time.perf_counter()
    for _ in range(2):
        state, metrics = step(state, data, key)
    jax.block_until_ready(metrics)
    compiled = time.perf_counter() - began
    began = time.perf_counter()
    for _ in range(options.steps):
        state, metrics = step(state, data, key)
    jax.block_until_ready(metrics)
    seconds = (time.perf_counter() - began) / options.steps
    tokens = options.batch * options.length / seconds
    active = decoder.count_active(cfg)
    memory = (jax.devices()[0].memory_stats() or {}).get("peak_bytes_in_use", 0)
    result = {
        "device": jax.devices()[0].device_kind,
        "jax": jax.__version__,
        "command": vars(options),
        "tokens_per_s": tokens,
        "model_tflops": 6 * active * tokens / 1e12,
        "step_s": seconds,
        "first_steps_s": compiled,
        "peak_gib": memory / 2**30,
    }
    print(
        f"{options.preset}{' twin' if options.twin else ''} {options.impl} remat {options.remat} "
        f"on {result['device']}: {tokens:,.0f} tok/s, "
        f"{result['model_tflops']:.2f} model TFLOP/s, {seconds * 1e3:.1f} ms per step, "
        f"peak {result['peak_gib']:.1f} GiB, first two steps {compiled:.1f} s",
        flush=True,
    )
    if options.out:
        with open(options.out, "w", encoding="utf-8") as file:
            json.dump(result, file, indent=1)


if __name__ == "__main__":
    main()
