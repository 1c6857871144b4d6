r"""Times training on several devices beside one: the same batch per device, layouts in turns.

    python tools/bench/train_scaling.py --preset moge-small --batch 32 --length 2048 \
        --dtype bfloat16 --layouts ddp fsdp expert

Each layout splits a batch of `--batch` rows per device over all devices; documents are packed, four
per row. A layout is one of the names below, over all devices, or rules and sizes of axes, such as
`fsdp+expert@fsdp=4,expert=2`. All take turns for `--rounds` rounds of `--steps` steps; what is
printed is the median round: tokens/s, the ratio to as many times one device, a device's memory as
the compiler counts it, and the MB that it receives in a step. `--forward` also times the loss.
Then each layout's loss and gradients are compared with one device's, on `--check` rows per device,
in the type asked for and in float32; beside them one device's with experts in another form, which
adds in another order, too, so that what rounding alone does is seen. `--out` is written anew after
every part.
"""

import argparse
import json
import statistics
import time
from concurrent.futures import ThreadPoolExecutor

import jax
import jax.numpy as jnp
from collectives import received  # beside this file
from train_step import batch, held  # beside this file

from pangu_jax.core.files import atomic_write
from pangu_jax.models import decoder, presets
from pangu_jax.nn.how import How
from pangu_jax.sharding.layout import Layout, batch_sharding, init, shardings
from pangu_jax.sharding.mesh import make_mesh
from pangu_jax.sharding.rules import preset as rules
from pangu_jax.train.language import language_loss
from pangu_jax.train.optimizer import make_optimizer
from pangu_jax.train.optimizer_config import OptimizerConfig
from pangu_jax.train.step import init_state, make_step

AXES = {"ddp": "data", "fsdp": "fsdp", "expert": "expert", "tensor": "tensor"}
ONE, AGAIN = "one device", "one device, experts in blocks"


def place(name):
    """The layout of that name over all devices, or None."""
    if name in (ONE, AGAIN):
        return None
    table, _, sizes = name.partition("@")
    axes = {
        axis: int(size) for axis, size in (part.split("=") for part in sizes.split(",") if part)
    }
    if not axes and table not in AXES:
        raise SystemExit(f"{name}: give one of {' '.join(AXES)}, or rules@axis=size,...")
    return Layout(make_mesh(**(axes or {AXES[name]: jax.device_count()})), rules(table))


def put(data, layout):
    """The batch on its devices."""
    if layout is None:
        return jax.device_put(data, jax.devices()[0])
    return jax.device_put(data, {k: batch_sharding(v.shape, layout) for k, v in data.items()})


def how(options, layout, dtype, **more):
    """The options of a model on that layout, and more implementations."""
    impl = dict(x.split("=") for x in options.impl) | more
    return How(layout, impl=impl, remat=options.remat, dtype=dtype)


def objective(cfg, options, layout, dtype, **more):
    """The loss of the step."""
    where = how(options, layout, dtype, **more)
    return language_loss(cfg, documents=options.documents, how=where)


def placed(params, cfg, layout):
    """A copy of the parameters, where the layout has them; values do not depend on it."""
    where = jax.devices()[0] if layout is None else shardings(decoder.spec(cfg), layout)
    return jax.tree.map(jnp.copy, jax.device_put(params, where))


def gradients(cfg, options, start, name, dtype):
    """A compiled function: the mean loss, and the gradients of all parameters."""
    layout = place(name)
    loss = objective(
        cfg, options, layout, dtype, **({"expert_mlp": "block"} if name == AGAIN else {})
    )

    def mean(params, data):
        total, weight, _ = loss(params, None, data, jax.random.key(0))
        return total / weight

    params = placed(start, cfg, layout)
    rows = options.check * jax.device_count()
    data = put(batch(rows, min(options.length, 512), cfg.vocab, True), layout)
    with jax.default_matmul_precision("highest" if dtype == "float32" else "default"):
        return jax.jit(jax.value_and_grad(mean)).lower(params, data).compile(), params, data


def difference(found, want):
    """Norm of the difference of two trees of arrays over the norm of the second."""
    pairs = list(zip(jax.tree.leaves(found), jax.tree.leaves(want), strict=True))
    off = sum(float(jnp.vdot(a - b, a - b)) for a, b in pairs)
    return (off / sum(float(jnp.vdot(b, b)) for _, b in pairs)) ** 0.5


def _other_form(cfg, options):
    """Whether experts in blocks would be another program."""
    routed = any(layer.moe is not None for layer in cfg.layers)
    return routed and "expert_mlp=block" not in options.impl


def check(cfg, options, start, dtype):
    """Rows of differences to one device's."""
    again = [AGAIN] if _other_form(cfg, options) else []
    names = [ONE, *again, *options.layouts]
    rows, want = [], None
    with ThreadPoolExecutor() as pool:
        for name, (run, params, data) in zip(
            names, pool.map(lambda n: gradients(cfg, options, start, n, dtype), names), strict=True
        ):
            value, grads = jax.device_put(run(params, data), jax.devices()[0])
            if want is None:
                want = value, grads
                continue
            row = {"layout": name, "dtype": dtype, "loss": float(abs(value / want[0] - 1))}
            row["gradients"] = difference(grads, want[1])
            rows.append(row)
            print(
                f"{name:10} {dtype}: against one device's, loss {row['loss']:.1e}, "
                f"gradients {row['gradients']:.1e}",
                flush=True,
            )
    return rows


def prepare(cfg, options, start, name):
    """A compiled step with what it takes, warm."""
    layout = place(name)
    optimizer = make_optimizer(OptimizerConfig(), 1000)
    state = init_state(
        decoder.spec(cfg),
        optimizer,
        key=jax.random.key(0),
        params=placed(start, cfg, layout),
        layout=layout,
    )
    step = make_step(objective(cfg, options, layout, options.dtype), optimizer, layout=layout)
    rows = options.batch * (1 if layout is None else jax.device_count())
    data = put(batch(rows, options.length, cfg.vocab, True), layout)
    began = time.perf_counter()
    program = step.lower(state, data, jax.random.key(1)).compile()
    print(f"{name:10} compiled in {time.perf_counter() - began:.0f} s", flush=True)
    loss = objective(cfg, options, layout, options.dtype)
    forward = jax.jit(lambda params, data: loss(params, None, data, None)[0])
    return {
        "forward": forward.lower(state.params, data).compile() if options.forward else None,
        "mb": sum(received(program).values()) / 1e6,
        "name": name,
        "tokens": rows * options.length,
        "gib": held(program) / 2**30,
        "state": state,
        "data": data,
        "step": program,
    }


def turn(case, steps):
    """Seconds per step of some steps."""
    key = jax.random.key(1)
    began = time.perf_counter()
    for _ in range(steps):
        case["state"], metrics = case["step"](case["state"], case["data"], key)
    jax.block_until_ready(metrics)
    return (time.perf_counter() - began) / steps


def only_forward(case, steps):
    """Seconds per pass of some passes."""
    began = time.perf_counter()
    for _ in range(steps):
        loss = case["forward"](case["state"].params, case["data"])
    jax.block_until_ready(loss)
    return (time.perf_counter() - began) / steps


def main():
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--preset", default="moge-tiny", choices=presets.PRESETS)
    parser.add_argument(
        "--layouts", nargs="+", default=["ddp", "fsdp", "expert"], help=" ".join(AXES)
    )
    parser.add_argument("--batch", type=int, default=4, help="rows per device")
    parser.add_argument("--length", type=int, default=256)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--remat", choices=["full", "dots"])
    parser.add_argument("--documents", type=int, help="the most documents a row holds")
    parser.add_argument("--check", type=int, default=2, help="rows per device; 0 for no comparison")
    parser.add_argument("--forward", action="store_true")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--impl", nargs="*", default=[], metavar="OPERATOR=NAME")
    parser.add_argument("--out")
    options = parser.parse_args()
    cfg = presets.preset(options.preset)
    result = {
        "device": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
        "jax": jax.__version__,
        "command": vars(options),
        "check": [],
        "rows": [],
    }

    def write():
        if options.out:
            with atomic_write(options.out, "w") as file:
                json.dump(result, file, indent=1)

    start = init(decoder.spec(cfg), key=jax.random.key(0))
    print("parameters drawn", flush=True)
    with ThreadPoolExecutor() as pool:  # compiling takes longer than all else, and one core
        names = [ONE, *options.layouts]
        cases = list(pool.map(lambda name: prepare(cfg, options, start, name), names))
    for case in cases:
        turn(case, 2)
    times = {case["name"]: [] for case in cases}
    passes = {case["name"]: [] for case in cases}
    for _ in range(options.rounds):
        for case in cases:
            times[case["name"]].append(turn(case, options.steps))
            if options.forward:
                passes[case["name"]].append(only_forward(case, options.steps))
    alone = None
    for case in cases:
        seconds = statistics.median(times[case["name"]])
        rate = case["tokens"] / seconds
        alone = alone or rate
        ratio = None if case["name"] == ONE else rate / (alone * jax.device_count())
        ahead = passes[case["name"]]
        row = {
            "layout": case["name"],
            "tokens_per_s": rate,
            "ratio": ratio,
            "gib": case["gib"],
            "seconds": times[case["name"]],
            "forward_seconds": ahead,
            "mb_received": case["mb"],
        }
        result["rows"].append(row)
        print(
            f"{case['name']:10} {rate:10,.0f} tok/s  {seconds * 1e3:7.1f} ms per step  "
            f"{case['gib']:5.1f} GiB a device  {case['mb']:,.0f} MB received"
            + (f"  forward {statistics.median(ahead) * 1e3:.1f} ms" if ahead else "")
            + (f"  {ratio:.2f} of {jax.device_count()} x one" if ratio else ""),
            flush=True,
        )
    write()
    del cases
    for dtype in dict.fromkeys((options.dtype, "float32")) if options.check else ():
        result["check"] += check(cfg, options, start, dtype)
        write()


if __name__ == "__main__":
    main()
