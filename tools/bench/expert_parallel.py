r"""Times a routed block over devices: grouped routing beside ordinary top-k by all-to-all.

    python tools/bench/expert_parallel.py --tokens 16384 1024 64 --skew 0 2 \
        --layouts ep+tp fsdp+ep --out block.json

The block has Pangu Pro MoE's size (width 5120, 64 experts of width 1344, 8 a token, no shared
expert), bfloat16, its experts split over all devices, so many tokens on each. Grouped routing
(`nn.moe` under the rules `expert`) gathers tokens and scatters sums; `--layouts` adds others: ep+tp
and fsdp+ep, which halve the experts' axis, or names such as `fsdp+expert@fsdp=4,expert=2`. Ordinary
top-k sends pairs to their experts (`sharding.all_to_all`), once with room for the busiest expert,
so that nothing is dropped, and once with room for 1.25 times the mean. Both routers like the first
expert best and the last one least: their logits differ by `--skew` on average.

Prints milliseconds (the median of five rounds of calls), in parentheses what a roofline of the
machine's own rates says (`scaling.simulated`), the ratio to the grouped block, the busiest expert
and the busiest device over the mean, the share of pairs dropped, the MB that a device receives
going forward, by the compiled program, and the difference in norm to one device with the tokens of
all: of the outputs, and of the gradient that differs most, of weights and tokens. `no experts` is
routing and exchange alone: MB over its time is the bandwidth that is reached; top-k has one hidden
unit there. `one device` has its own tokens and all experts. `--out` is written after every row, and
goes on from there.
"""

import argparse
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from collectives import received  # beside this file
from expert_mlp import machine  # beside this file
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from moe_block import seconds  # beside this file
from scaling import (  # beside this file
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

from pangu_jax.nn.how import HOW, How
from pangu_jax.nn.moe import MoEConfig, moe, moe_spec
from pangu_jax.ops.expert_mlp import IMPLEMENTATIONS
from pangu_jax.ops.routing import router_weights
from pangu_jax.sharding.all_to_all import exchange_pairs
from pangu_jax.sharding.layout import batch_sharding, init, shardings

IMPLEMENTATIONS["none"] = lambda x, ids, weights, gate, up, down: x  # no experts
SIZES = {"pangu": (5120, MoEConfig(64, 8, 1, 1344)), "tiny": (64, MoEConfig(16, 4, 1, 32))}
KERNELS = ("gate", "up", "down")
NOT_DROPPED = "top-k, none dropped"


class Form(NamedTuple):
    """A form of the block.

    Attributes:
      name: as it is printed.
      run: (parameters, tokens) -> outputs.
      params: its parameters, where they belong.
      x: its tokens, where they belong.
      work: hidden units x rows that a device computes, bytes of weights and rows that it reads or
        writes.
      like: "grouped" or "top-k", whose output on one device it must give, or None.
      more: entries of its row.
    """

    name: str
    run: Any
    params: Any
    x: jax.Array
    work: tuple[float, float]
    like: str | None = None
    more: Mapping[str, float] = MappingProxyType({})


def drawn(width, cfg, skew):
    """Parameters of the block, on the first device."""
    params = init(moe_spec(width, cfg), key=jax.random.key(0), dtype=jnp.bfloat16)
    router = params["router"]["kernel"].astype(jnp.float32)
    liked = jnp.linspace(skew, 0, cfg.experts) / width
    router += liked.reshape(router.shape[1:])
    return {**params, "router": {"kernel": router}}


def flat(params, cfg):
    """The same experts and router in one group, and their configuration: ordinary top-k."""
    one = MoEConfig(cfg.experts, 1, cfg.groups * cfg.top_k, cfg.width)

    def merged(kernel, axis):
        shape = (*kernel.shape[:axis], 1, cfg.experts, *kernel.shape[axis + 2 :])
        return {"kernel": kernel.reshape(shape)}

    experts = {n: merged(params["experts"][n]["kernel"], 0) for n in KERNELS}
    return {"router": merged(params["router"]["kernel"], 1), "experts": experts}, one


def tokens_of(rows, tokens, width, skew):
    """Activations with a part that is alike in all, where the router is skewed."""
    x = jax.random.normal(jax.random.key(1), (rows, tokens, width)) + bool(skew)
    return x.astype(jnp.bfloat16)


def grouped(params, x, *, cfg, how=HOW):
    """The block as `nn.moe` computes it."""
    return moe(params, x, cfg=cfg, how=how)[0]


def ordinary(params, x, *, k, layout, room, width=None):
    """The block with ordinary top-k by all-to-all; `width` takes so many hidden units alone."""

    def local(params, x):
        weights, ids, _ = router_weights(x[0], params["router"]["kernel"], None, k=k)
        kernels = {n: v["kernel"][0] for n, v in params["experts"].items()}
        if width:
            cut = {"down": np.s_[:, :width]}
            kernels = {n: v[cut.get(n, np.s_[..., :width])] for n, v in kernels.items()}
        y, _ = exchange_pairs(x[0], ids[:, 0], weights[:, 0], kernels, "expert", room=room)
        return y[None]

    specs = {"router": {"kernel": P()}, "experts": {n: {"kernel": SPLIT} for n in KERNELS}}
    ends = {"in_specs": (specs, P("expert")), "out_specs": P("expert"), "check_vma": False}
    return jax.shard_map(local, mesh=layout.mesh, **ends)(params, x)


SPLIT = P(None, "expert")


def both(run, params, x, dy):
    """Outputs and the gradients of all weights and tokens."""
    y, back = jax.vjp(run, params, x)
    return y, back(dy)


@partial(jax.jit, static_argnames="k")
def counts(params, x, k):
    """Pairs by device and expert, int32 [devices, E]."""
    kernel = params["router"]["kernel"]
    experts = kernel.shape[1] * kernel.shape[2]

    def row(x):
        ids = router_weights(x, kernel, None, k=k)[1]
        ids += jnp.arange(kernel.shape[1], dtype=ids.dtype)[:, None] * kernel.shape[2]
        return jnp.bincount(ids.reshape(-1), length=experts)

    return jax.lax.map(row, x)


def grouped_forms(alone, x, width, cfg, layouts):
    """One device, and grouped routing in all layouts."""
    devices, tokens, _ = x.shape
    units = tokens * cfg.groups * cfg.top_k * cfg.width  # a device's, however they are split
    weights = 2 * 3 * width * cfg.width * cfg.experts
    busiest, device = spread(np.asarray(counts(alone, x, cfg.top_k)).sum(0), devices)
    load = {"expert": busiest, "device": device}
    run = partial(grouped, cfg=cfg)
    one = jax.device_put(x[:1], jax.devices()[0])
    forms = [Form("one device", run, alone, one, (units, weights + 4 * tokens * width))]
    for name in ["ep", *layouts]:
        full = named(name, devices)
        layout = layout_of(full)
        params = jax.device_put(alone, shardings(moe_spec(width, cfg), layout))
        there = jax.device_put(x, batch_sharding(x.shape, layout))
        sizes = layout.mesh.shape
        parts = sizes["expert"] * sizes["tensor"]
        work = units, weights / parts + 4 * tokens * parts * width
        run = partial(grouped, cfg=cfg, how=How(layout))
        title = "grouped" if name == "ep" else f"grouped, {full}"
        forms.append(Form(title, run, params, there, work, "grouped", load))
        if name == "ep":
            bare = How(layout, impl={"expert_mlp": "none"})
            run = partial(grouped, cfg=cfg, how=bare)
            idle = 0, 4 * tokens * parts * width
            forms.append(Form("grouped, no experts", run, params, there, idle))
    return forms


def topk_forms(merged, x, width, one):
    """Ordinary top-k with room for all pairs, and with room for 1.25 times the mean."""
    devices, tokens, _ = x.shape
    layout = layout_of(f"expert@expert={devices}")
    held = np.asarray(counts(merged, x, one.top_k))
    mean = tokens * one.top_k / one.experts
    busiest, device = spread(held.sum(0), devices)
    split = NamedSharding(layout.mesh, SPLIT)
    experts = jax.device_put(merged["experts"], split)
    router = jax.device_put(merged["router"], NamedSharding(layout.mesh, P()))
    params = {"router": router, "experts": experts}
    x = jax.device_put(x, NamedSharding(layout.mesh, P("expert")))
    weights = 2 * 3 * width * one.width * one.experts / devices
    forms = []
    for name, room in ((NOT_DROPPED, int(held.max())), ("top-k, room 1.25", -(-5 * mean // 4))):
        room = max(int(room), 1)
        rows = one.experts * room
        dropped = float(np.maximum(held - room, 0).sum() / held.sum())
        more = {"expert": busiest, "device": device, "dropped": dropped, "room": room / mean}
        work = rows * one.width, weights + 4 * rows * width
        run = partial(ordinary, k=one.top_k, layout=layout, room=room)
        like = None if dropped else "top-k"
        forms.append(Form(name, run, params, x, work, like, more))
        if name == NOT_DROPPED:
            run = partial(run, width=1)
            work = rows, 4 * rows * width
            forms.append(Form("top-k, no experts", run, params, x, work))
    return forms


def programs(form):
    """The compiled forward pass, and that with gradients."""
    forward = jax.jit(form.run).lower(form.params, form.x).compile()
    gradient = jax.jit(partial(both, form.run)).lower(form.params, form.x, form.x).compile()
    return forward, gradient


def timed(form, compiled, found, repeats, want):
    """A row of a form's times, and how far it is from one device."""
    width = form.x.shape[-1]
    forward, gradient = compiled
    row = {"received": received(forward), "received_both": received(gradient)}
    row["mb"] = sum(row["received"].values()) / 1e6
    units, moved = form.work
    flops = 6 * width * units
    for name, program, more, times in (("forward", forward, (), 1), ("both", gradient, (0,), 3)):
        given = form.params, form.x, *[form.x for _ in more]
        row[name] = seconds(lambda: program(*given), jax.block_until_ready, repeats)  # noqa: B023
        row[f"simulated_{name}"] = simulated(found, [(times * flops, times * moved)], program)
    if "no experts" in form.name and row["mb"]:
        row["gb_per_s"] = row["mb"] / 1e3 / row["forward"]
    if form.like:
        got = _as(want[form.like], gradient(form.params, form.x, form.x))
        row["error_outputs"] = difference(got[0], want[form.like][0])["all"]
        row["error_gradients"] = difference(got[1], want[form.like][1])["worst"]
    return row


def _as(want, got):
    """The arrays of `got` as a tree like `want`."""
    return jax.tree.unflatten(jax.tree.structure(want), jax.tree.leaves(got))


def case(options, tokens, skew, results):
    """Adds the rows of all forms that are not there yet, and prints them."""
    width, cfg = SIZES[options.sizes]
    same = {"tokens": tokens, "skew": skew}
    x = tokens_of(jax.device_count(), tokens, width, skew)
    alone = drawn(width, cfg, skew)
    merged, one = flat(alone, cfg)
    forms = grouped_forms(alone, x, width, cfg, options.layouts)
    forms += topk_forms(merged, x, width, one)
    forms = [form for form in forms if not results.has(**same, name=form.name)]
    if not forms:
        return
    whole = [
        Form("", partial(grouped, cfg=c), p, x, (0, 0)) for p, c in ((alone, cfg), (merged, one))
    ]
    # Compiling takes longer than all else, and one core. Each tries products on the device.
    with ThreadPoolExecutor(4) as pool:
        compiled = list(pool.map(partial(unless_full, programs), [*whole, *forms]))
    references = [program[1](w.params, x, x) for w, program in zip(whole, compiled, strict=False)]
    want = dict(zip(("grouped", "top-k"), references, strict=True))
    for form, pair in zip(forms, compiled[2:], strict=True):
        devices, found = len(form.x.sharding.device_set), None
        if pair and all(fits(program, True, devices) for program in pair):
            given = form, pair, results.found["rates"], options.repeats, want
            found = unless_full(timed, *given)
        row = {**same, "name": form.name, **form.more, **(found or FULL)}
        results.add([row])
        print(show(row, results.row(**same, name="grouped")), flush=True)


def show(row, base):
    """A printed line; `base` is the grouped block's row, if there is one."""
    if "failed" in row:
        return f"{row['tokens']:6d} skew {row['skew']:g} {row['name']:24} {row['failed']}"
    times = [
        f"{row[n] * 1e3:9.3f} ms ({row[f'simulated_{n}']['seconds'] * 1e3:.3f}) "
        + (f"x{row[n] / base[n]:.2f}" if base and n in base else "")
        for n in ("forward", "both")
    ]
    more = [
        f"{n} {row[n]:.3g}"
        for n in ("expert", "device", "dropped", "room", "error_outputs", "error_gradients")
        if n in row
    ]
    more += [f"{row['mb']:.3g} MB"] + ([f"{row['gb_per_s']:.3g} GB/s"] if "gb_per_s" in row else [])
    return (
        f"{row['tokens']:6d} skew {row['skew']:g} {row['name']:24} {times[0]}  with gradients "
        f"{times[1]}  {', '.join(more)}"
    )


def main():
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", choices=SIZES, default="pangu")
    parser.add_argument("--tokens", type=int, nargs="+", default=[16384], help="on each device")
    parser.add_argument("--skew", type=float, nargs="+", default=[0.0, 2.0])
    parser.add_argument("--layouts", nargs="*", default=[], help="more, for the grouped block")
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--out")
    options = parser.parse_args()
    print(f"{jax.device_count()} x {machine()}", flush=True)
    settings = {"device": machine(), "devices": jax.device_count(), "sizes": options.sizes}
    results = Results(options.out, {**settings, "layouts": options.layouts})
    print(results.part("rates", rates), flush=True)
    for tokens in options.tokens:
        for skew in options.skew:
            case(options, tokens, skew, results)


if __name__ == "__main__":
    main()
