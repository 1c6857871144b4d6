"""Times decoding: Qwen3-1.7B's shape, random weights, the engine beside slices of stacked weights.

    python tools/bench/decode.py --out decode.jsonl
    python tools/bench/decode.py --tiny

A case is a number of slots B and a form of the step; each runs in a process of its own, so that
peak memory is the case's. Forms:

    engine     `decode.slots`: layers unrolled, each with arrays of its own
    mask       the same, the new rows of the cache written by a mask over all of it
    sliced     layers unrolled, but slices of stacked weights

Prints one line per case: tokens/s (all slots together, prompts not counted), seconds to compile the
step, bytes of parameters and caches, the step's own temporary memory, and the device's peak where
it tells.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from functools import partial

import jax
import jax.numpy as jnp

from pangu_jax.core.spec import nbytes
from pangu_jax.decode import slots as device
from pangu_jax.decode.sample import rows_of
from pangu_jax.decode.sampling_config import SamplingConfig
from pangu_jax.models import decoder, transformer
from pangu_jax.nn.attention import AttentionConfig
from pangu_jax.nn.block import LayerConfig
from pangu_jax.nn.how import How
from pangu_jax.nn.mlp import MlpConfig
from pangu_jax.nn.rotary import RopeConfig
from pangu_jax.sharding.layout import init

FORMS = ("engine", "mask", "sliced")


def shape(tiny):
    """Qwen3-1.7B, or something like it that a CPU compiles and runs in seconds."""
    if tiny:
        layer = LayerConfig(AttentionConfig(2, 2, 32, qk_norm=True), mlp=MlpConfig(512))
        return decoder.DecoderConfig(2048, 256, (layer,) * 8, tied=True)
    layer = LayerConfig(AttentionConfig(8, 2, 128, qk_norm=True), mlp=MlpConfig(6144))
    return decoder.DecoderConfig(
        151_936, 2048, (layer,) * 28, RopeConfig(1e6), 1e-6, tied=True, max_length=40_960
    )


def started(cfg, rows, length, prompt, new, kind, sampling):
    """Slots whose prompts were read: caches of zeros cost what any others cost."""
    key = jax.random.key(0)
    how = How(dtype=kind)
    empty = device.init(key, cfg=cfg, slots=rows, length=length, stops=8, kind=kind, how=how)
    full = jax.jit(lambda n: jnp.full(rows, n, jnp.int32))
    return empty.replace(
        length=full(prompt),
        made=full(1),
        limit=full(new + 1),
        active=jnp.ones(rows, bool),
        sampling=jax.tree.map(jnp.asarray, rows_of([sampling] * rows)),
    )


@partial(jax.jit, static_argnames=("burst", "cfg", "how"), donate_argnames="state")
def sliced_step(params, state, *, burst, cfg, how):
    """Greedy, with the layers' weights cut out of the stacked ones in the loop."""

    def body(_, state):
        apart = transformer.by_layer(params)
        logits, caches = decoder.step(
            apart, state.token, state.length, state.caches, cfg=cfg, how=how
        )
        token = jnp.argmax(logits, -1).astype(jnp.int32)
        return state.replace(caches=caches, token=token, length=state.length + 1)

    return jax.lax.fori_loop(0, burst, body, state)


def case(options, rows, form):
    """One line of results."""
    cfg = shape(options.tiny)
    kind = jnp.dtype(options.dtype)
    impl = {"cache_write": "mask"} if form == "mask" else {}
    how = How(dtype=kind, impl=impl)
    length = options.prompt + options.new
    params = init(decoder.spec(cfg), key=jax.random.key(0), dtype=kind)
    state = started(
        cfg, rows, length, options.prompt, options.new, kind, SamplingConfig(options.temperature)
    )
    static = {"burst": options.burst, "cfg": cfg, "how": how}
    if form in ("engine", "mask"):
        params = transformer.by_layer(params, donate=True)
        more = (jnp.int32(options.burst), jnp.int32(0))
        lowered = device.step.lower(params, state, *more, most=options.burst, cfg=cfg, how=how)
        run = lambda program, state: program(params, state, *more)[0]  # noqa: E731
    else:
        lowered = sliced_step.lower(params, state, **static)
        run = lambda program, state: program(params, state)  # noqa: E731
    began = time.perf_counter()
    program = lowered.compile()
    compiled = time.perf_counter() - began
    state = jax.block_until_ready(run(program, state))  # the first is not counted
    times = options.new // options.burst - 1
    began = time.perf_counter()
    for _ in range(times):
        state = run(program, state)
    jax.block_until_ready(state)
    seconds = time.perf_counter() - began
    memory = program.memory_analysis()
    peak = (jax.devices()[0].memory_stats() or {}).get("peak_bytes_in_use", 0)
    return {
        "device": jax.devices()[0].device_kind,
        "jax": jax.__version__,
        "flags": os.environ.get("XLA_FLAGS", ""),
        "B": rows,
        "form": form,
        "tok_s": rows * times * options.burst / seconds,
        "ms_per_step": 1e3 * seconds / (times * options.burst),
        "compile_s": compiled,
        "params_gib": nbytes(decoder.spec(cfg), kind) / 2**30,
        "caches_gib": memory.alias_size_in_bytes / 2**30,
        "temp_gib": memory.temp_size_in_bytes / 2**30,
        "peak_gib": peak / 2**30,
        "command": {**vars(options), "out": None},
    }


def main():
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tiny", action="store_true", help="for a CPU: small, float32")
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 32])
    parser.add_argument("--form", nargs="+", default=list(FORMS), choices=FORMS)
    parser.add_argument("--prompt", type=int, default=128)
    parser.add_argument("--new", type=int, default=256, help="a multiple of --burst, two at least")
    parser.add_argument("--burst", type=int, default=32, help="steps a dispatch")
    parser.add_argument("--temperature", type=float, default=0.0)
    parser.add_argument("--dtype")
    parser.add_argument("--out", help="a .jsonl file that the lines are added to")
    parser.add_argument("--here", action="store_true", help="one case, in this process")
    options = parser.parse_args()
    options.dtype = options.dtype or ("float32" if options.tiny else "bfloat16")
    if options.here:
        print(json.dumps(case(options, options.batch[0], options.form[0])))
        return
    for rows in options.batch:
        for form in options.form:
            line = one(rows, form)
            print(
                f"B {rows:3} {form:8} {line['tok_s']:10,.0f} tok/s {line['ms_per_step']:8.3f} "
                f"ms per step, compiled in {line['compile_s']:.1f} s, parameters "
                f"{line['params_gib']:.3f}, caches {line['caches_gib']:.3f}, temporary "
                f"{line['temp_gib']:.3f}, peak {line['peak_gib']:.3f} GiB on {line['device']}",
                flush=True,
            )
            if options.out:
                with open(options.out, "a", encoding="utf-8") as file:
                    file.write(json.dumps(line) + "\n")


def one(rows, form):
    """A case, in a process of its own."""
    command = [sys.executable, __file__, *sys.argv[1:], "--here"]
    command += ["--batch", str(rows), "--form", form]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


if __name__ == "__main__":
    main()
