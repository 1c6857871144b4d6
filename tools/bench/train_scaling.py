r"""Times training on several devices beside one: the same batch per device, layout by layout.

    python tools/bench/train_scaling.py --preset moge-small --batch 32 --length 2048 \
        --dtype bfloat16 --documents 4 --layouts ddp fsdp expert
    python tools/bench/train_scaling.py --preset moge-medium --batch 8 --length 2048 \
        --dtype bfloat16 --documents 4 --layouts ep ep+tp fsdp+ep --topk --skew 0 2 --forward

Each layout splits a batch of `--batch` rows per device over all devices; documents are packed, four
per row. A layout is ddp, fsdp, expert or tensor over all devices, ep, ep+tp or fsdp+ep as in
`expert_parallel.py`, or rules and sizes of axes, such as `fsdp+expert@fsdp=4,expert=2`. `--topk`
adds the twin with ordinary top-k by all-to-all, with room for the busiest expert and for 1.25 times
the mean. With `--skew` a layer's router likes the first expert best and the last one least.

What is printed is the median round of `--rounds` of `--steps` steps: tokens/s, the ratio to as many
times one device, the step's time beside what a roofline of the machine's own rates says
(`scaling.simulated`), a device's memory as the compiler counts it, the MB that it receives in a
step, and the busiest expert and device over the mean. `--forward` also times the loss. The learning
rate is 0, so that the router stays as it is.

Then each layout's loss and gradients are compared with one device's, on `--check` rows per device,
in the type asked for and in float32, with the router as drawn and with one whose logits are all
equal, so that rounding sends no token elsewhere; beside them one device's with experts in another
form, which adds in another order, too. `--out` is written after every part, and goes on from there.
"""

import argparse
import dataclasses
import statistics
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from collectives import received  # beside this file
from einops import parse_shape, rearrange
from jax.sharding import PartitionSpec as P
from scaling import (  # beside this file
    AXES,
    FULL,
    Results,
    difference,
    fits,
    layout_of,
    named,
    rates,
    simulated,
    spread,
    unless_full,
)
from train_step import batch, held  # beside this file

from pangu_jax.core.spec import abstract
from pangu_jax.core.tree import map_named
from pangu_jax.models import decoder, presets
from pangu_jax.nn import block
from pangu_jax.nn.how import HOW, How
from pangu_jax.nn.mlp import MlpConfig, mlp
from pangu_jax.nn.moe import RouterStats, moe, router_stats
from pangu_jax.ops.routing import router_weights
from pangu_jax.sharding.all_to_all import exchange_pairs
from pangu_jax.sharding.layout import Layout, batch_sharding, init, shardings
from pangu_jax.sharding.mesh import make_mesh
from pangu_jax.sharding.rules import Rules
from pangu_jax.train.language import language_loss
from pangu_jax.train.optimizer import make_optimizer
from pangu_jax.train.optimizer_config import OptimizerConfig
from pangu_jax.train.step import abstract_state, init_state, make_step, one_device

ONE, AGAIN = "one device", "one device, experts in blocks"
TOPK = "top-k, none dropped", "top-k, room 1.25"


@dataclasses.dataclass(frozen=True)
class Pairs(Layout):
    """A layout in which pairs travel to their experts, which have room for so many per device."""

    room: int


def topk_layer(params, x, mask=None, *, cfg, how=HOW):
    """`nn.moe.moe`; in a layout of pairs, ordinary top-k by all-to-all."""
    if not isinstance(how.layout, Pairs):
        return moe(params, x, mask, cfg=cfg, how=how)
    kernels = {n: v["kernel"].astype(x.dtype) for n, v in params["experts"].items()}

    def local(router, kernels, x):
        flat, shape = rearrange(x, "b t d -> (b t) d"), parse_shape(x, "b t _")
        weights, ids, probs = router_weights(
            flat, router["kernel"], router.get("scale"), k=cfg.top_k
        )
        own = {n: v[0] for n, v in kernels.items()}
        y, _ = exchange_pairs(flat, ids[:, 0], weights[:, 0], own, "expert", room=how.layout.room)
        stats = router_stats(ids, probs, None, shape)
        load, total, number = jax.lax.psum((stats.load, stats.prob_sum, stats.tokens), "expert")
        stats = stats.replace(load=load, prob_sum=total, tokens=number)
        return rearrange(y, "(b t) d -> b t d", **shape), stats

    whole, split = P(), P("expert")
    stats = RouterStats(load=whole, prob_sum=whole, tokens=whole, ids=split)
    ends = {"in_specs": (whole, P(None, "expert"), split), "out_specs": (split, stats)}
    run = jax.shard_map(local, mesh=how.layout.mesh, check_vma=False, **ends)
    y, stats = run(params["router"], kernels, x)
    if "shared" in params:
        y = y + mlp(params["shared"], x, cfg=MlpConfig(cfg.shared_width), how=how)
    return y, stats


block.moe = topk_layer


@dataclasses.dataclass(frozen=True)
class Case:
    """A model in a layout.

    Attributes:
      name: as it is printed.
      cfg: the model.
      layout: None for one device.
    """

    name: str
    cfg: decoder.DecoderConfig
    layout: Layout | None = None

    @property
    def devices(self):
        """How many split the batch."""
        return 1 if self.layout is None else jax.device_count()


def pairs_layout(room):
    """All devices, each with its share of every layer's experts and of the rows."""
    rules = Rules({"expert": ("expert",)}, {"batch": ("data", "expert")})
    return Pairs(make_mesh(expert=jax.device_count()), rules, room)


def put(data, layout):
    """The batch on its devices."""
    if layout is None:
        return jax.device_put(data, jax.devices()[0])
    return jax.device_put(data, {k: batch_sharding(v.shape, layout) for k, v in data.items()})


def objective(case, options, dtype):
    """The loss of the step."""
    impl = dict(x.split("=") for x in options.impl)
    impl |= {"expert_mlp": "block"} if case.name == AGAIN else {}
    how = How(case.layout, impl=impl, remat=options.remat, dtype=dtype)
    return language_loss(case.cfg, documents=options.documents, how=how)


def skewed(params, skew):
    """Parameters whose routers like the first expert best, as `--skew` says.

    The embedding gets a part that is alike in all tokens and as large as the rest, so that half of
    a normalized state's square is that.
    """
    if not skew:
        return params

    def change(name, x):
        if name.endswith("embed/table"):
            return x + x.std()
        if not name.endswith("router/kernel"):
            return x
        *_, width, groups, size = x.shape
        liked = jnp.linspace(skew * 2**0.5, 0, groups * size, dtype=x.dtype) / width
        return x + liked.reshape(groups, size)

    return map_named(change, params)


def even(params):
    """Parameters whose routers' logits are all equal: the first experts are chosen."""
    return map_named(lambda name, x: x * 0 if name.endswith("router/kernel") else x, params)


def placed(params, case):
    """A copy of the parameters in the form of the case's model, where its layout has them."""
    spec = decoder.spec(case.cfg)
    shapes = abstract(spec)
    if case.layout is None:
        where = jax.tree.map(lambda _: one_device(), shapes)
    else:
        where = shardings(spec, case.layout)

    def one(x, shape, place):
        return jnp.copy(jax.device_put(x.reshape(shape.shape), place))

    return jax.tree.map(one, params, shapes, where)


def counts(cfg, options, params, data):
    """Pairs by layer, device and expert, [L, devices, E], each device's rows one after another."""
    how = How(dtype=options.dtype)

    @jax.jit
    def run(params, data):
        given = {n: data[n] for n in ("positions", "segments")}
        out = decoder.apply(
            params, data["tokens"], cfg=cfg, documents=options.documents, how=how, **given
        )
        ids = jnp.concatenate([x.ids for x in out.router if x is not None])
        experts = cfg.layers[0].moe.experts
        return jax.vmap(lambda x: jnp.bincount(x.reshape(-1), length=experts))(ids)

    shapes = abstract(decoder.spec(cfg))
    params = jax.tree.map(lambda x, s: x.reshape(s.shape), params, shapes)
    parts = [
        {n: jnp.asarray(v[i : i + options.batch]) for n, v in data.items()}
        for i in range(0, len(data["tokens"]), options.batch)
    ]
    parts = jax.device_put(parts, jax.devices()[-1])
    return np.stack([np.asarray(run(params, part)) for part in parts], 1)


def work(case, options, forward):
    """(FLOPs, bytes) of a device's passes and, of a step, of its optimizer.

    Products alone: attention scores within documents, all pairs that there is room for, and each
    weight read once going forward and twice going back; of the optimizer, reading float32
    parameters, moments and gradients, and writing them.
    """
    cfg, spec = case.cfg, decoder.spec(case.cfg)
    tokens = options.batch * options.length
    active = decoder.count_active(cfg) * tokens
    own = total = decoder.count(spec)
    shards = 1
    if case.layout is not None:
        where = jax.tree.leaves(shardings(spec, case.layout))
        shapes = [x.shape for x in jax.tree.leaves(abstract(spec))]
        own = sum(np.prod(w.shard_shape(s)) for w, s in zip(where, shapes, strict=True))
        shards = case.layout.mesh.shape["fsdp"]
    for layer in cfg.layers:
        heads = layer.attention.kv_heads * layer.attention.q_per_kv
        # Scores and sums of two products, each over half a document of a quarter row.
        active += tokens * heads * layer.attention.head_dim * options.length / 4
        if isinstance(case.layout, Pairs) and layer.moe is not None:
            pairs = layer.moe.experts * case.layout.room - tokens * layer.moe.top_k
            active += pairs * 3 * cfg.width * layer.moe.width
    times = 1 if forward else 3
    weights = min(own * shards, total) * 2
    passes = [(2 * times * float(active), float(times * weights))]
    return passes if forward else [*passes, (0.0, float(own * 32))]


def programs(options, data, case):
    """The compiled step, and the loss if that is asked for; no parameters are needed for it."""
    optimizer = make_optimizer(OptimizerConfig(learning_rate=0.0), 1000)
    loss = objective(case, options, options.dtype)
    step = make_step(loss, optimizer, layout=case.layout)
    state = abstract_state(decoder.spec(case.cfg), optimizer, layout=case.layout)
    if case.layout is None:
        place = one_device()
        state = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place), state
        )
    given = put({n: v[: options.batch * case.devices] for n, v in data.items()}, case.layout)
    began = time.perf_counter()
    program = step.lower(state, given, jax.random.key(1)).compile()
    only = None
    if options.forward:
        only = jax.jit(lambda params, data: loss(params, None, data, None)[0])
        only = only.lower(state.params, given).compile()
    print(f"{case.name:10} compiled in {time.perf_counter() - began:.0f} s", flush=True)
    return optimizer, given, program, only


def timed(case, options, start, found, compiled):
    """A row of times."""
    optimizer, data, step, only = compiled
    row = {"mb": sum(received(step).values()) / 1e6, "received": received(step)}
    row |= {"gib": held(step) / 2**30, "tokens": options.batch * options.length * case.devices}
    row["simulated_step"] = simulated(found, work(case, options, False), step)
    if only:
        row["simulated_forward"] = simulated(found, work(case, options, True), only)
    if not fits(step, False, case.devices):
        return {**row, **FULL}
    key = jax.random.key(1)
    spec, params = decoder.spec(case.cfg), placed(start, case)
    state = init_state(spec, optimizer, key=key, params=params, layout=case.layout)
    del params
    times = {"step": [], "forward": []}
    for count in (2, *[options.steps] * options.rounds):
        began = time.perf_counter()
        for _ in range(count):
            state, metrics = step(state, data, key)
        jax.block_until_ready(metrics)
        times["step"].append((time.perf_counter() - began) / count)
        began = time.perf_counter()
        for _ in range(count if only else 0):
            loss = only(state.params, data)
        if only:
            jax.block_until_ready(loss)
            times["forward"].append((time.perf_counter() - began) / count)
    for name, rounds in times.items():
        if rounds:
            row[name], row[f"{name}_rounds"] = statistics.median(rounds[1:]), rounds[1:]
    return row


def show(row, alone):
    """A printed line; `alone` is one device's row, if there is one."""
    parts = [f"skew {row['skew']:g} {row['layout']:24}"]
    if "failed" in row:
        parts.append(row["failed"] + (f", {row['gib']:.1f} GiB wanted" if "gib" in row else ""))
        return "  ".join(parts)
    rate = row["tokens"] / row["step"]
    parts.append(f"{rate:10,.0f} tok/s")
    for name in ("step", "forward"):
        if name in row:
            by = row[f"simulated_{name}"]["seconds"]
            parts.append(f"{name} {row[name] * 1e3:.1f} ms ({by * 1e3:.1f})")
    parts.append(f"{row['gib']:.1f} GiB a device, {row['mb']:,.0f} MB received")
    parts.append(f"expert {row['expert']:.2f}, device {row['device']:.2f}")
    if alone and "step" in alone and row is not alone:
        one = alone["tokens"] / alone["step"]
        parts.append(f"{rate / one / jax.device_count():.2f} of {jax.device_count()} x one")
    return "  ".join(parts)


def cases_of(cfg, options, held):
    """The cases of a skew; `held` are the pairs by layer, device and expert of cfg and its twin."""
    names = [named(name, jax.device_count()) for name in options.layouts]
    cases = [Case(ONE, cfg), *[Case(name, cfg, layout_of(name)) for name in names]]
    if options.topk:
        pairs = held[1]
        mean = pairs.sum() / pairs.size
        for name, room in zip(TOPK, (pairs.max(), -(-5 * mean // 4)), strict=True):
            cases.append(Case(name, presets.as_topk(cfg), pairs_layout(max(int(room), 1))))
    return cases


def of_skew(cfg, options, start, skew, results, known):
    """Adds the rows of one skew that are not there yet; `known` keeps what was compiled."""
    names = [named(name, jax.device_count()) for name in options.layouts]
    names = [ONE, *names, *(TOPK if options.topk else ())]
    if all(results.has(layout=name, skew=skew) for name in names):
        return
    found = results.part("rates", rates)
    params = skewed(start, skew)
    rows = options.batch * jax.device_count()
    data = batch(rows, options.length, cfg.vocab, True)
    models = [cfg, presets.as_topk(cfg)] if options.topk else [cfg]
    held = [counts(model, options, params, data) for model in models]
    cases = cases_of(cfg, options, held)
    cases = [case for case in cases if not results.has(layout=case.name, skew=skew)]
    new = [case for case in cases if case not in known]
    with ThreadPoolExecutor(8) as pool:  # compiling takes longer than all else, and one core
        compiled = pool.map(partial(unless_full, programs, options, data), new)
        known.update(zip(new, compiled, strict=True))
    for case in cases:
        pairs = held[case.name in TOPK]
        row = known[case] and unless_full(timed, case, options, params, found, known[case])
        row = dict(row or FULL)
        row["expert"], row["device"] = spread(pairs.sum(1), jax.device_count())
        if isinstance(case.layout, Pairs):
            lost = np.maximum(pairs - case.layout.room, 0).sum() / pairs.sum()
            row |= {"dropped": float(lost), "room": float(case.layout.room / pairs.mean())}
        results.add([{"layout": case.name, "skew": skew, **row}])
        print(show(results.found["rows"][-1], results.row(layout=ONE, skew=skew)), flush=True)


def gradients(options, dtype, case):
    """A compiled function: the mean loss, and the gradients of all parameters; and its batch."""
    loss = objective(case, options, dtype)

    def mean(params, data):
        total, weight, _ = loss(params, None, data, jax.random.key(0))
        return total / weight

    spec = decoder.spec(case.cfg)
    shapes = abstract(spec)
    if case.layout is not None:
        shapes = jax.tree.map(
            lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
            shapes,
            shardings(spec, case.layout),
        )
    rows = options.check * jax.device_count()
    data = put(batch(rows, min(options.length, 512), case.cfg.vocab, True), case.layout)
    with jax.default_matmul_precision("highest" if dtype == "float32" else "default"):
        return jax.jit(jax.value_and_grad(mean)).lower(shapes, data).compile(), data


def check(cfg, options, start, dtype):
    """Rows of differences to one device's."""
    names = [named(name, jax.device_count()) for name in options.layouts]
    routed = any(layer.moe is not None for layer in cfg.layers)
    again = [Case(AGAIN, cfg)] if routed and "expert_mlp=block" not in options.impl else []
    groups = [[Case(ONE, cfg), *again, *[Case(n, cfg, layout_of(n)) for n in names]]]
    if options.topk:
        twin = presets.as_topk(cfg)
        room = options.check * min(options.length, 512)  # for all of a device's tokens
        groups.append([Case(ONE, twin), Case(TOPK[0], twin, pairs_layout(room))])
    rows = []
    with ThreadPoolExecutor(8) as pool:
        found = pool.map(
            partial(gradients, options, dtype), [case for cases in groups for case in cases]
        )
        compiled = iter(list(found))
    for cases in groups:
        want = {}
        for case in cases:
            run, data = next(compiled)
            for routing, change in (("as drawn", lambda x: x), ("even", even)):
                value, grads = run(placed(change(start), case), data)
                value = float(value)
                if case.name == ONE:
                    want[routing] = value, grads
                    continue
                row = {"layout": case.name, "dtype": dtype, "routing": routing}
                row["loss"] = abs(value / want[routing][0] - 1)
                found = difference(grads, want[routing][1])
                row |= {"gradients": found["all"], "worst": found["worst"]}
                rows.append(row)
                print(
                    f"{case.name:10} {dtype}, router {routing}: against one device's, loss "
                    f"{row['loss']:.1e}, gradients {row['gradients']:.1e}, the worst leaf "
                    f"{row['worst']:.1e}",
                    flush=True,
                )
    return rows


def main():
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--preset", default="moge-tiny", choices=presets.PRESETS)
    parser.add_argument(
        "--layouts", nargs="*", default=["ddp", "fsdp", "expert"], help=" ".join(AXES)
    )
    parser.add_argument("--topk", action="store_true", help="also the twin, by all-to-all")
    parser.add_argument("--skew", type=float, nargs="+", default=[0.0])
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
    settings = {k: v for k, v in vars(options).items() if k not in ("out", "skew", "check")}
    settings["device"] = jax.devices()[0].device_kind
    settings |= {"devices": jax.device_count(), "jax": jax.__version__}
    results = Results(options.out, settings)
    # On the last device: the first also has to hold one device's state.
    start = jax.device_put(init(decoder.spec(cfg), key=jax.random.key(0)), jax.devices()[-1])
    print("parameters drawn", flush=True)
    known = {}
    for skew in options.skew:
        of_skew(cfg, options, start, skew, results, known)
    for dtype in dict.fromkeys((options.dtype, "float32")) if options.check else ():
        results.part(f"check {dtype}", partial(check, cfg, options, start, dtype))


if __name__ == "__main__":
    main()
