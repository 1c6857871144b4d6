"""Times `ops.selective_scan` against plain lax.scan and lax.associative_scan.

    python tools/bench/selective_scan.py                      # this machine's default device
    python tools/bench/selective_scan.py --check --tune --budget 45 --out scan.json   # a Hopper GPU

On CPU every form is timed in turn, several rounds, and the best time of each counts: ratios hold
on a machine that others use too. On a GPU the table gives the fewest bytes that must move, at the
copy rate measured in the same run, and what mamba_ssm's CUDA kernel takes: measured here if it is
installed, else as recorded on an H100 80GB (its commit e9594ce, torch 2.11).

`--check` compares kernels with float64 first; `--tune` times variants of the kernels. Each step
runs alone: one that fails is reported and the rest goes on. `--budget` skips steps after so many
seconds, and ends the process if one hangs; `--out` is written after every step.
"""

import argparse
import json
import os
import threading
import time
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from expert_mlp import machine  # beside this file

from pangu_jax.core.files import atomic_write
from pangu_jax.ops.selective_scan import choose, platform, selective_scan

# batch, steps, channels, states
CPU_SHAPES = [(1, 4096, 256, 16), (4, 1024, 256, 16), (2, 512, 1024, 16)]
GPU_SHAPES = [(32, 4096, 256, 16), (8, 2048, 5120, 16), (32, 720, 2048, 16)]
RECORDED = dict(zip(GPU_SHAPES, [(1.14, 2.84), (2.70, 6.95), (1.69, 4.84)], strict=True))


def inputs(shape, seed=0):
    """Arguments as Mamba draws them: rates -1 to -N, steps of about 0.001 to 0.1."""
    b, t, e, n = shape
    shapes = [(b, t, e), (b, t, e), (b, t, n), (b, t, n)]
    keys = jax.random.split(jax.random.key(seed), 5)
    u, dt, B, C = (jax.random.normal(key, s) for key, s in zip(keys[:4], shapes, strict=True))
    bias = jax.random.uniform(keys[4], (e,), minval=-6, maxval=-2)
    return [u, dt, -jnp.tile(jnp.arange(1.0, n + 1), (e, 1)), B, C, jnp.ones(e), bias]


def scan(impl, u, dt, A, B, C, D, bias):
    """The scan of one implementation; outputs alone."""
    return selective_scan(u, dt, A, B, C, D, dt_bias=bias, impl=impl)[0]


def plain_scan(u, dt, A, B, C, D, bias):
    """What one writes first: lax.scan over steps, states [E, N]."""
    d = jax.nn.softplus(dt + bias)

    def step(h, inputs):
        u, d, B, C = inputs
        h = jnp.exp(d[..., None] * A) * h + (d * u)[..., None] * B[:, None]
        return h, (h * C[:, None]).sum(-1)

    start = jnp.zeros((u.shape[0], *A.shape), u.dtype)
    _, y = jax.lax.scan(step, start, tuple(x.swapaxes(0, 1) for x in (u, d, B, C)))
    return y.swapaxes(0, 1) + D * u


def plain_associative(u, dt, A, B, C, D, bias):
    """What one writes next: lax.associative_scan over pairs of decay and input."""
    d = jax.nn.softplus(dt + bias)
    pairs = jnp.exp(d[..., None] * A), (d * u)[..., None] * B[:, :, None]
    h = jax.lax.associative_scan(
        lambda left, right: (left[0] * right[0], right[0] * left[1] + right[1]), pairs, axis=1
    )[1]
    return (h * C[:, :, None]).sum(-1) + D * u


def gradients(function):
    """All gradients of a scalar of the outputs, as one compiled call."""
    return jax.jit(jax.grad(lambda *a: (function(*a) ** 2).sum(), argnums=tuple(range(7))))


def seconds(function, arguments, calls=1):
    """Time of one call, of `calls` in a row."""
    start = time.perf_counter()
    for _ in range(calls):
        out = function(*arguments)
    jax.block_until_ready(out)
    return (time.perf_counter() - start) / calls


def relative(have, want):
    """The largest difference against the largest value."""
    have, want = np.asarray(have, np.float64), np.asarray(want, np.float64)
    return float(np.abs(have - want).max() / np.abs(want).max())


class Report:
    """Steps with names, results as they come, and an end that does not wait."""

    def __init__(self, out, budget):
        """`out`: a path or None; `budget`: seconds or None."""
        self.out, self.budget, self.start = out, budget, time.perf_counter()
        self.results = {"machine": machine(), "steps": {}}
        if budget:
            timer = threading.Timer(budget + 10, self.give_up)
            timer.daemon = True
            timer.start()

    def give_up(self):
        """A step hangs: what there is has been written."""
        print("a step hangs: ending", flush=True)
        os._exit(3)

    def step(self, name, function):
        """Runs a step, prints and keeps what it returns or how it failed."""
        spent = time.perf_counter() - self.start
        if self.budget and spent > self.budget:
            result = "skipped: out of time"
        else:
            try:
                result = function()
            except Exception as error:
                result = f"failed: {type(error).__name__}: {str(error)[:600]}"
        took = time.perf_counter() - self.start - spent
        print(f"{name:34} {_words(result)}  [{took:.1f} s]", flush=True)
        self.results["steps"][name] = result
        if self.out:
            with atomic_write(self.out) as file:
                json.dump(self.results, file, indent=1)
        return result


def _words(result):
    if not isinstance(result, dict):
        return str(result)
    return "  ".join(f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}"
                     for k, v in result.items())  # fmt: skip


def compare_cpu(shape, rounds):
    """Best times of a shape in ms, and how many times faster the default is than the best peer."""
    arguments = inputs(shape)
    forms = {"default": partial(scan, None), "lax.scan": plain_scan,
             "associative_scan": plain_associative}  # fmt: skip
    result = {}
    for kind, wrap in (("forward", jax.jit), ("forward+backward", gradients)):
        functions = {name: wrap(form) for name, form in forms.items()}
        best = dict.fromkeys(forms, float("inf"))
        for round in range(rounds + 1):  # the first compiles
            for name, function in functions.items():
                took = seconds(function, arguments)
                best[name] = min(best[name], took if round else float("inf"))
        peer = min(best["lax.scan"], best["associative_scan"])
        result |= {f"{kind} {name} ms": took * 1e3 for name, took in best.items()}
        result[f"{kind} speed-up"] = peer / best["default"]
    return result


def check(shape, impl):
    """Errors against float64, outputs and every gradient, with a state and lengths."""
    b, t, e, n = shape
    exact = [np.asarray(x, np.float64) for x in inputs(shape, seed=1)]
    rng = np.random.default_rng(2)
    state, dy = rng.normal(size=(b, e, n)), rng.normal(size=(b, t, e))
    lengths = np.maximum(1, t - 5 * np.arange(b))

    def everything(impl, arguments, state, dy):
        def run(arguments, state):
            *rest, bias = arguments
            return selective_scan(
                *rest, dt_bias=bias, state=state, lengths=jnp.asarray(lengths), impl=impl
            )

        out, back = jax.vjp(run, arguments, state)
        return out, back((dy, jnp.ones_like(out[1])))

    low = jax.tree.map(partial(jnp.asarray, dtype=jnp.float32), (exact, state, dy))
    have = jax.jit(partial(everything, impl))(*low)
    with jax.enable_x64(True):
        want = jax.jit(partial(everything, "reference"))(
            *jax.tree.map(jnp.asarray, (exact, state, dy))
        )
    names = ["y", "last", "du", "ddt", "dA", "dB", "dC", "dD", "dbias", "dstate"]
    errors = map(relative, jax.tree.leaves(have), jax.tree.leaves(want))
    return dict(zip(names, errors, strict=True))


def device_ms(function, arguments, calls=10, rounds=3):
    """The best of some rounds of calls in a row, in ms."""
    jax.block_until_ready(function(*arguments))
    return min(seconds(function, arguments, calls) for _ in range(rounds)) * 1e3


def compare_gpu(shape, form, copy):
    """Times of one form at one shape in ms, against floor and mamba_ssm."""
    b, t, e, n = shape
    arguments = inputs(shape)
    floor = 4 * b * t * (3 * e + 2 * n) / copy * 1e3
    result = {"forward ms": device_ms(jax.jit(form), arguments), "floor ms": floor}
    y, back = jax.jit(lambda *a: jax.vjp(form, *a))(*arguments)
    result["backward ms"] = device_ms(jax.jit(lambda back, dy: back(dy)), (back, jnp.ones_like(y)))
    recorded = RECORDED.get(shape)
    if recorded:
        result["mamba_ssm / forward"] = recorded[0] / result["forward ms"]
        result["mamba_ssm / backward"] = recorded[1] / result["backward ms"]
    return result


def copy_rate():
    """Bytes read and written per second by a large copy."""
    x = jnp.ones(1 << 28, jnp.float32)
    return 2 * x.nbytes / device_ms(jax.jit(lambda x: x + 1), (x,)) * 1e3


def mamba_ssm(shape):
    """mamba_ssm's own kernel on the same shape, if it is installed."""
    import torch
    from mamba_ssm.ops.selective_scan_interface import selective_scan_fn

    u, dt, A, B, C, D, bias = (torch.from_numpy(np.array(x)).cuda() for x in inputs(shape))
    u, dt, B, C = (x.transpose(1, 2).contiguous() for x in (u, dt, B, C))
    leaves = [x.requires_grad_() for x in (u, dt, A, B, C, D, bias)]

    def forward():
        return selective_scan_fn(*leaves[:6], delta_bias=bias, delta_softplus=True)

    def timed(function, calls=10):
        function()
        torch.cuda.synchronize()
        start = time.perf_counter()
        for _ in range(calls):
            function()
        torch.cuda.synchronize()
        return (time.perf_counter() - start) / calls * 1e3

    y = forward()
    dy = torch.ones_like(y)
    back = partial(torch.autograd.grad, y, leaves, dy, retain_graph=True)
    return {"forward ms": timed(forward), "backward ms": timed(back)}


def tune(report, shape):
    """Variants of the kernels at one shape, the plain forward and backward alone."""
    from pangu_jax.ops.kernels import selective_scan_mosaic as kernels

    u, dt, A, B, C, D, bias = inputs(shape)
    b, t, e, n = shape
    state = jnp.zeros((b, n, e))
    first = (u, dt, A.T, B, C, D, bias)
    forward = [dict(length=x, unroll=y) for x, y in [(32, 2), (32, 8), (16, 4), (64, 4), (32, 1)]]
    # 4 steps per chunk leave room for two blocks on a multiprocessor, for twice the kept states.
    backward = [dict(length=x, unroll=y, steps_ahead=z)
                for x, y, z in [(8, 4, 2), (4, 4, 2), (4, 4, 3), (8, 8, 2), (8, 2, 1)]]  # fmt: skip
    plans = [(kernels.forward, settings, (*first, state)) for settings in forward]
    for settings in backward:
        starts = jnp.zeros((b, t // settings["length"], n, e))
        plans.append((kernels.backward, settings, (*first, starts, u, state)))
    for function, settings, arguments in plans:
        run = jax.jit(partial(function, softplus=True, **settings))
        name = f"{function.__name__} {' '.join(f'{k} {v}' for k, v in settings.items())}"
        report.step(name, lambda run=run, a=arguments: {"ms": device_ms(run, a, 5, 2)})


def on_gpu(report, options):
    """Checks, the table, then variants; the most telling first."""
    if options.check:
        report.step("error, small, mosaic", partial(check, (2, 520, 384, 16), "mosaic"))
    copy = report.step("copy bytes/s", copy_rate)
    copy = copy if isinstance(copy, float) else 3.0e12
    for shape in options.shapes or GPU_SHAPES:
        name = choose(platform(), shape)
        report.step(f"{shape} default ({name})",
                    partial(compare_gpu, shape, partial(scan, None), copy))  # fmt: skip
    shape = (options.shapes or GPU_SHAPES)[0]
    if options.tune:
        tune(report, shape)
    report.step(f"{shape} chunked", partial(compare_gpu, shape, partial(scan, "chunked"), copy))
    report.step(f"{shape} associative_scan", partial(compare_gpu, shape, plain_associative, copy))
    if options.check:
        report.step("error, long, mosaic", partial(check, (1, 4096, 256, 16), "mosaic"))
    for shape in options.shapes or GPU_SHAPES:
        report.step(f"{shape} mamba_ssm", partial(mamba_ssm, shape))


def main():
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shapes", nargs="+", type=_shape, help="B,T,E,N ...")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--tune", action="store_true")
    parser.add_argument("--budget", type=float)
    parser.add_argument("--out")
    options = parser.parse_args()
    report = Report(options.out, options.budget)
    print(report.results["machine"], flush=True)
    if jax.default_backend() == "gpu":
        on_gpu(report, options)
        return
    for shape in options.shapes or CPU_SHAPES:
        if options.check:
            report.step(f"error {shape}", partial(check, shape, None))
        report.step(f"{shape}", partial(compare_cpu, shape, options.rounds))


def _shape(text):
    return tuple(int(part) for part in text.split(","))


if __name__ == "__main__":
    main()
