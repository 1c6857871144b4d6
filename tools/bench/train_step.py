r"""Times the training step of a model on random tokens, on one device.

    python tools/bench/train_step.py --preset moge-small --batch 32 --length 2048 --dtype bfloat16
    python tools/bench/train_peer.py --preset qwen3-0.6b --batch 8 --length 2048
    python tools/bench/train_step.py --preset qwen3-0.6b --batch 8 --length 2048 --dtype bfloat16 \
        --documents 16

Prints tokens per second (the median of some rounds), model FLOP/s (6 x active parameters per token,
attention scores left out), and the step's memory as the compiler counts it; `--out` writes the same
as JSON. Rows are packed, four documents each, unless `--plain` says one; `--documents` promises
that a row holds at most so many, so that attention needs no mask. `--twin` takes the ordinary top-k
router of the same sizes. Presets of Qwen3's shapes are what `train_peer.py` times, too.
"""

import argparse
import json
import os
import statistics
import tempfile
import time

import jax
import jax.numpy as jnp
import numpy as np

from pangu_jax.core.files import atomic_write
from pangu_jax.models import decoder, presets
from pangu_jax.nn.attention import AttentionConfig
from pangu_jax.nn.block import LayerConfig
from pangu_jax.nn.how import How
from pangu_jax.nn.mlp import MlpConfig
from pangu_jax.nn.rotary import RopeConfig
from pangu_jax.train.language import language_loss
from pangu_jax.train.optimizer import make_optimizer
from pangu_jax.train.optimizer_config import OptimizerConfig
from pangu_jax.train.profile import operation_times, part_times
from pangu_jax.train.step import init_state, make_step

# Vocabulary, width, layers, key-value heads, query heads of each, size of a head, hidden units.
SHAPES = {
    "qwen3-0.6b": (151_936, 1024, 28, 8, 2, 128, 3072),
    "qwen3-1.7b": (151_936, 2048, 28, 8, 2, 128, 6144),
    "qwen3-tiny": (512, 64, 2, 2, 2, 16, 96),
}


def model(name):
    """The configuration of a preset, or of one of Qwen3's shapes."""
    if name not in SHAPES:
        return presets.preset(name)
    vocab, width, layers, kv_heads, q_per_kv, size, hidden = SHAPES[name]
    layer = LayerConfig(
        AttentionConfig(kv_heads, q_per_kv, size, qk_norm=True), mlp=MlpConfig(hidden)
    )
    return decoder.DecoderConfig(vocab, width, (layer,) * layers, RopeConfig(1e6), 1e-6, tied=True)


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


def held(program):
    """Bytes of device memory that a compiled step takes, state and temporary arrays."""
    memory = program.memory_analysis()
    return (
        memory.argument_size_in_bytes
        + memory.temp_size_in_bytes
        + memory.output_size_in_bytes
        - memory.alias_size_in_bytes
    )


def profile(program, call, steps=3):
    """Milliseconds of a call of a compiled program by its parts, and of its longest operations.

    On GPUs only with XLA_FLAGS=--xla_gpu_enable_command_buffer= (nothing behind it): graphs of
    operations hide what is in them.
    """
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            for _ in range(steps):
                out = call()
            jax.block_until_ready(out)
        text = program.as_text()
        parts = part_times(folder, text).most_common()
        longest = operation_times(folder, text).most_common(40)
    return {
        "parts": {name: busy / steps / 1e3 for name, busy in parts},
        "longest": [[*name, busy / steps / 1e3] for name, busy in longest],
    }


def measure(options):
    """The results as they are written."""
    cfg = model(options.preset)
    cfg = presets.as_topk(cfg) if options.twin else cfg
    optimizer = make_optimizer(OptimizerConfig(), 1000)
    how = How(
        impl=dict(x.split("=") for x in options.impl),
        remat=options.remat,
        dtype=options.dtype,
        unroll=options.unroll,
    )
    loss = language_loss(cfg, chunk=options.chunk, documents=options.documents, how=how)
    step = make_step(loss, optimizer, accumulate=options.accumulate)
    state = init_state(decoder.spec(cfg), optimizer, key=jax.random.key(0))
    data = batch(options.batch, options.length, cfg.vocab, not options.plain)
    data, key = jax.tree.map(jnp.asarray, data), jax.random.key(1)
    began = time.perf_counter()
    program = step.lower(state, data, key).compile()
    compiled = time.perf_counter() - began
    times = []
    for count in (2, *[options.steps] * options.rounds):
        began = time.perf_counter()
        for _ in range(count):
            state, metrics = program(state, data, key)
        jax.block_until_ready(metrics)
        times.append((time.perf_counter() - began) / count)
    seconds = statistics.median(times[1:])
    tokens = options.batch * options.length / seconds
    loss_now = float(metrics["loss"])

    def again():
        nonlocal state
        state, metrics = program(state, data, key)
        return metrics

    return {
        "profile": profile(program, again) if options.profile else None,
        "device": jax.devices()[0].device_kind,
        "jax": jax.__version__,
        "flags": os.environ.get("XLA_FLAGS", ""),
        "command": vars(options),
        "tokens_per_s": tokens,
        "model_tflops": 6 * decoder.count_active(cfg) * tokens / 1e12,
        "step_s": seconds,
        "rounds_s": times[1:],
        "compile_s": compiled,
        "gib": held(program) / 2**30,
        "loss": loss_now,
    }


def main():
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--preset", default="moge-tiny", choices=[*presets.PRESETS, *SHAPES])
    parser.add_argument("--twin", action="store_true")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--length", type=int, default=256)
    parser.add_argument("--plain", action="store_true", help="one document per row")
    parser.add_argument("--documents", type=int, help="the most documents a row holds")
    parser.add_argument("--accumulate", type=int, default=1)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--remat", choices=["full", "dots"])
    parser.add_argument("--chunk", type=int, help="tokens whose logits are held")
    parser.add_argument("--unroll", type=int, help="layers in a row; all where not given")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--impl", nargs="*", default=[], metavar="OPERATOR=NAME")
    parser.add_argument("--profile", action="store_true", help="also say where the time goes")
    parser.add_argument("--out")
    options = parser.parse_args()
    result = measure(options)
    print(
        f"{options.preset}{' twin' if options.twin else ''} {' '.join(options.impl)} "
        f"documents {options.documents} remat {options.remat} chunk {options.chunk} "
        f"unroll {options.unroll} on {result['device']}: {result['tokens_per_s']:,.0f} tok/s, "
        f"{result['model_tflops']:.1f} model TFLOP/s, {result['step_s'] * 1e3:.1f} ms per step, "
        f"{result['gib']:.1f} GiB, compiled in {result['compile_s']:.0f} s, "
        f"loss {result['loss']:.4f}",
        flush=True,
    )
    for name, busy in (result["profile"] or {"parts": {}})["parts"].items():
        print(f"  {name:20} {busy:8.2f} ms")
    if options.out:
        with atomic_write(options.out, "w") as file:
            json.dump(result, file, indent=1)


if __name__ == "__main__":
    main()
