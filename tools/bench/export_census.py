"""Our ONNX lowering beside jax2onnx on the functions that models here are made of.

    python tools/bench/export_census.py --out census.json
    python tools/bench/export_census.py --peer ~/peer/bin/python --out census.json

Without `--peer` only ours is measured. With it, the given Python (an environment of its own that
has jax2onnx: it pins libraries that we do not want) is started on the same cases and writes ONNX
files; then both files of a case are checked by onnx's checker with strict shape
inference and timed by onnxruntime in turn. For each case: whether it converts, whether the file is
valid at opset 17, the number of nodes, the error against jax, the latency.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

OPSET = 17


def rms(x):
    """RMSNorm without a gain."""
    return x * lax.rsqrt(jnp.mean(x * x, -1, keepdims=True) + 1e-5)


def block(x, wq, wk, wo, wg, wd):
    """RMSNorm, rotary grouped-query attention, SwiGLU."""
    b, t, _ = x.shape
    h = rms(x)
    q, k = (h @ wq).reshape(b, t, 2, 2, 16), (h @ wk).reshape(b, t, 2, 16)
    angle = jnp.arange(t)[:, None] / 100.0 ** (jnp.arange(8) / 8)
    cos, sin = jnp.cos(angle)[:, None], jnp.sin(angle)[:, None]

    def turn(x, c, s):
        first, second = x[..., :8], x[..., 8:]
        return jnp.concatenate([first * c - second * s, second * c + first * s], -1)

    q, k = turn(q, cos[:, None], sin[:, None]), turn(k, cos, sin)
    scores = jnp.einsum("btkqc,bskc->bkqts", q, k) / 4
    weights = jax.nn.softmax(jnp.where(jnp.tril(jnp.ones((t, t), bool)), scores, -1e30))
    x = x + jnp.einsum("bkqts,bskc->btkqc", weights, k).reshape(b, t, -1) @ wo
    h = rms(x)
    return x + (jax.nn.silu(h @ wg) * (h @ wg)) @ wd


def shifted_scan(a, b):
    """h_t = a_t h_{t-1} + b_t in log2 T shifted sums."""
    step = 1
    while step < a.shape[1]:
        pad = ((0, 0), (step, 0), (0, 0))
        b = b + a * jnp.pad(b[:, :-step], pad)
        a = a * jnp.pad(a[:, :-step], pad, constant_values=1)
        step *= 2
    return b


def loop_scan(a, b):
    """The same by lax.scan."""
    body = lambda h, x: (x[0] * h + x[1], x[0] * h + x[1])  # noqa: E731
    rows = (jnp.moveaxis(a, 1, 0), jnp.moveaxis(b, 1, 0))
    return jnp.moveaxis(lax.scan(body, jnp.zeros_like(b[:, 0]), rows)[1], 0, 1)


def associative(a, b):
    """The same by lax.associative_scan."""
    join = lambda l, r: (l[0] * r[0], l[1] * r[0] + r[1])  # noqa: E731, E741
    return lax.associative_scan(join, (a, b), axis=1)[1]


def one_hot_experts(x, router, kernels):
    """Top-1 of grouped experts, every expert computed."""
    probs = jax.nn.softmax(x @ router)
    value, index = lax.top_k(probs.reshape(-1, 2, 4), 1)
    weight = (jax.nn.one_hot(index, 4) * value[..., None]).sum(2)
    return jnp.einsum("tge,td,gedf->tf", weight, x, kernels)


def gathered_experts(x, router, kernels):
    """The same, the chosen kernels looked up."""
    value, index = lax.top_k((x @ router).reshape(-1, 2, 4), 1)
    chosen = kernels[jnp.arange(2)[None], index[..., 0]]
    return jnp.einsum("tg,td,tgdf->tf", value[..., 0], x, chosen)


def three_layers(x, w):
    """Three layers by lax.scan."""
    return lax.scan(lambda x, w: (x + jnp.tanh(rms(x) @ w), None), x, w)[0]


def cache_write(cache, row, at):
    """A new row in a key-value cache."""
    return lax.dynamic_update_slice(cache, row, (0, at[0], 0, 0))


def resize(x):
    """Bilinear, with antialiasing."""
    return jax.image.resize(x, (1, 5, 7, 3), "bilinear", antialias=True)


def f(*shape):
    """Random floats of a shape."""
    size = int(np.prod(shape))
    return (np.sin(np.arange(size) * 1.7 + len(shape)) * 0.5).reshape(shape).astype(np.float32)


def i(*shape):
    """Small integers of a shape."""
    return (np.arange(int(np.prod(shape))) * 7 % 5).reshape(shape).astype(np.int32)


SCAN = (np.abs(f(2, 64, 8)), f(2, 64, 8))
EXPERTS = (f(6, 16), f(16, 8), f(2, 4, 16, 12))
CASES = {
    "transformer block": (
        block,
        (f(1, 32, 64), f(64, 64), f(64, 32), f(64, 64), f(64, 96), f(96, 64)),
    ),
    "dot_product_attention": (
        lambda q, k: jax.nn.dot_product_attention(q, k, k, is_causal=True),
        (f(1, 16, 4, 16), f(1, 16, 4, 16)),
    ),
    "3 layers by lax.scan": (three_layers, (f(2, 8, 16), f(3, 16, 16))),
    "top_k": (lambda x: lax.top_k(x, 3), (f(4, 9),)),
    "experts, one-hot": (one_hot_experts, EXPERTS),
    "experts, gathered": (gathered_experts, EXPERTS),
    "experts, ragged_dot": (
        lambda x, w: lax.ragged_dot(x, w, jnp.array([2, 3, 3], jnp.int32)),
        (f(8, 16), f(3, 16, 4)),
    ),
    "recurrence, lax.scan": (loop_scan, SCAN),
    "recurrence, associative_scan": (associative, SCAN),
    "recurrence, log steps": (shifted_scan, SCAN),
    "convolution 3x3": (
        lambda x, w: lax.conv_general_dilated(
            x, w, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        ),
        (f(1, 12, 12, 8), f(3, 3, 8, 16)),
    ),
    "depthwise causal conv": (
        lambda x, w: lax.conv_general_dilated(
            x, w, (1,), [(3, 0)], dimension_numbers=("NWC", "WIO", "NWC"), feature_group_count=8
        ),
        (f(2, 32, 8), f(4, 1, 8)),
    ),
    "gelu, exact": (lambda x: jax.nn.gelu(x, approximate=False), (f(4, 64),)),
    "fori_loop": (lambda x: lax.fori_loop(0, 4, lambda _, c: c * 0.5 + 1, x), (f(3, 3),)),
    "cond": (lambda x: lax.cond(x.sum() > 0, jnp.sin, jnp.cos, x), (f(3, 3),)),
    "cache write": (cache_write, (f(1, 64, 2, 8), f(1, 1, 2, 8), np.array([7], np.int32))),
    "argsort and take": (lambda x: jnp.take_along_axis(x, jnp.argsort(x, -1), -1), (f(4, 9),)),
    "scatter-add": (lambda x: x.at[jnp.array([0, 2])].add(1.0), (f(4, 9),)),
    "roll": (lambda x: jnp.roll(x, 3, 1), (f(4, 9),)),
    "embedding take": (lambda t, n: jnp.take(t, n, axis=0), (f(50, 16), i(2, 7))),
    "resize, antialiased": (resize, (f(1, 9, 11, 3),)),
    "while_loop": (lambda x: lax.while_loop(lambda c: c.sum() < 9, lambda c: c + 1, x), (f(3),)),
}


def results(name):
    """What jax gives for a case, as a list of arrays."""
    function, arrays = CASES[name]
    return [np.asarray(x) for x in jax.tree.leaves(jax.jit(function)(*arrays))]


def write_ours(name, path):
    """Converts with pangu_jax."""
    from pangu_jax.export.onnx.model import convert, to_model
    from pangu_jax.export.program import single

    function, arrays = CASES[name]
    bundle = single(lambda _, *x: function(*x), {}, {f"x{n}": a for n, a in enumerate(arrays)})
    program = bundle.programs[0]
    made = to_model(convert(program.function, {}, dict(program.inputs)))
    path.write_bytes(made.SerializeToString())


def write_peer(folder):
    """Converts every case with jax2onnx; runs in the peer's environment."""
    import onnx
    from jax2onnx import to_onnx

    for number, (function, arrays) in enumerate(CASES.values()):
        specs = [jax.ShapeDtypeStruct(a.shape, a.dtype) for a in arrays]
        try:
            model = to_onnx(function, inputs=specs, model_name="case", opset=OPSET)
            onnx.save_model(model, str(folder / f"{number}.onnx"))
        except Exception as error:
            (folder / f"{number}.txt").write_text(f"{type(error).__name__}: {error}"[:160])


def examine(path, name):
    """Validity, nodes, operators, error."""
    import onnx
    import onnxruntime

    found = {}
    model = onnx.load(str(path))
    try:
        onnx.checker.check_model(model, full_check=True)
        found["valid"] = {o.domain: o.version for o in model.opset_import}.get("") == OPSET
    except Exception as error:
        found["valid"], found["why"] = False, str(error).splitlines()[0][:160]
    nodes = list(model.graph.node)
    found["nodes"] = len(nodes)
    found["loops"] = sorted({n.op_type for n in nodes} & {"Loop", "Scan", "If", "Einsum"})
    found["domains"] = sorted({n.domain for n in nodes if n.domain})
    try:
        session = onnxruntime.InferenceSession(str(path))
        arrays = CASES[name][1]
        given = {i.name: a for i, a in zip(session.get_inputs(), arrays, strict=True)}
        outs = session.run(None, given)
    except Exception as error:
        return None, {**found, "why": str(error).splitlines()[0][:160]}
    worst = 0.0
    for wanted, got in zip(results(name), outs, strict=True):
        scale = np.abs(wanted).max()
        worst = max(worst, float(np.abs(wanted.astype(np.float64) - got).max() / (scale or 1)))
    return (session, given), {**found, "error": worst}


def latency(pairs, repeats=60):
    """Median microseconds of each session, called in turn."""
    times = {name: [] for name in pairs}
    for turn in range(repeats + 5):
        for name, (session, given) in pairs.items():
            start = time.perf_counter()
            session.run(None, given)
            if turn >= 5:
                times[name].append(1e6 * (time.perf_counter() - start))
    return {name: statistics.median(values) for name, values in times.items()}


def convert(name, who, folder):
    """The file, or why there is none; the peer's are in the folder already."""
    number = list(CASES).index(name)
    if who == "peer":
        why, path = folder / f"{number}.txt", folder / f"{number}.onnx"
        return (path, None) if path.exists() else (None, why.read_text() if why.exists() else "?")
    path = folder / "ours.onnx"
    try:
        write_ours(name, path)
    except ValueError as error:
        return None, str(error)[:160]
    return path, None


def text(row):
    """One cell of the table."""
    if not row.get("converts"):
        return "fails"
    valid = "valid" if row["valid"] else "INVALID"
    loops = " " + ",".join(row["loops"]) if row["loops"] else ""
    error = f"{row['error']:.0e}" if "error" in row else "does not run"
    return f"{valid} {row['nodes']} nodes{loops}, {error}, {row.get('latency_us', 0):.0f} us"


def main():
    """Prints one line per case."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--peer", help="a Python that has jax2onnx")
    parser.add_argument("--out", type=Path, help="also write JSON here")
    parser.add_argument("--write-peer", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.write_peer:
        write_peer(options.write_peer)
        return
    sides = ["ours", *(["peer"] if options.peer else [])]
    table = {}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        if options.peer:
            subprocess.run([options.peer, __file__, "--write-peer", folder], check=False)
        for name in CASES:
            table[name] = row = measure(name, sides, folder)
            line = " | ".join(f"{who}: {text(row[who])}" for who in sides)
            print(f"{name:30} {line}", flush=True)
    if options.out:
        options.out.write_text(json.dumps(table, indent=1) + "\n")


def measure(name, sides, folder):
    """What each side makes of a case."""
    rows, pairs = {}, {}
    for who in sides:
        path, why = convert(name, who, folder)
        rows[who] = {"converts": path is not None, **({"why": why} if why else {})}
        if path is not None:
            pair, found = examine(path, name)
            rows[who] |= found
            if pair is not None:
                pairs[who] = pair
    for who, value in latency(pairs).items():
        rows[who]["latency_us"] = value
    return rows


if __name__ == "__main__":
    sys.exit(main())
