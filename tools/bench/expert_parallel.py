r"""Times a routed block over devices: grouped routing beside ordinary top-k by all-to-all.

    python tools/bench/expert_parallel.py --tokens 16384 1024 64 --skew 0 4 --out parallel.json

The block has Pangu Pro MoE's size (width 5120, 64 experts of width 1344, 8 a token, no shared
expert), bfloat16, its experts split over all devices, so many tokens on each. Grouped routing
(`nn.moe` under the rules `expert`) gathers tokens and scatters sums; `--layouts` adds others, such
as `expert+tensor@expert=4,tensor=2` or `fsdp+expert@fsdp=4,expert=2`. Ordinary top-k sends pairs to
their experts (`sharding.all_to_all`), once with room for the busiest expert, so that nothing is
dropped, and once with room for 1.25 times the mean. Both routers like the first expert best and the
last one least: their logits differ by `--skew` on average.

Prints milliseconds (the median of five rounds of calls), the ratio to the grouped block, the
busiest expert and the busiest device over the mean, the share of pairs dropped, and the MB that a
device receives going forward, by the compiled program. `grouped, no experts` is routing and
exchange alone: MB over its time is the bandwidth that is reached. One device with its own tokens
and all experts stands beside. Before it times anything it compares both forms with one device, and
at full size the bfloat16 outputs of more layouts with those of the first.
"""

import argparse
import json
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from collectives import received  # beside this file
from expert_mlp import machine  # beside this file
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from moe_block import seconds  # beside this file

from pangu_jax.core.files import atomic_write
from pangu_jax.nn.how import HOW, How
from pangu_jax.nn.moe import MoEConfig, moe, moe_spec
from pangu_jax.ops.expert_mlp import IMPLEMENTATIONS
from pangu_jax.ops.routing import router_weights
from pangu_jax.sharding.all_to_all import exchange_pairs, room_needed
from pangu_jax.sharding.layout import Layout, batch_sharding, init, shardings
from pangu_jax.sharding.mesh import make_mesh
from pangu_jax.sharding.rules import preset

IMPLEMENTATIONS["none"] = lambda x, ids, weights, gate, up, down: x  # no experts
SIZES = {"pangu": (5120, MoEConfig(64, 8, 1, 1344)), "tiny": (64, MoEConfig(16, 4, 1, 32))}


def drawn(width, cfg, skew, layout):
    """Parameters of the block, where the layout has them."""
    spec = moe_spec(width, cfg)
    params = init(spec, key=jax.random.key(0), dtype=jnp.bfloat16, layout=layout)
    router = params["router"]["kernel"].astype(jnp.float32)
    liked = jnp.linspace(skew, 0, cfg.experts) / width
    router += liked.reshape(router.shape[1:])
    return {**params, "router": {"kernel": router}}


def tokens_of(rows, tokens, width, skew):
    """Activations with a part that is alike in all, where the router is skewed."""
    x = jax.random.normal(jax.random.key(1), (rows, tokens, width)) + bool(skew)
    return x.astype(jnp.bfloat16)


def grouped(params, x, *, cfg, how=HOW):
    """The block with grouped routing, and its experts' loads."""
    y, stats = moe(params, x, cfg=cfg, how=how)
    return y, stats.load


def ordinary(params, x, *, cfg, layout, room):
    """The block with ordinary top-k, its experts' loads, and the pairs dropped."""
    k = cfg.groups * cfg.top_k

    def local(params, x):
        flat = x[0]
        router = params["router"]["kernel"].reshape(flat.shape[1], 1, -1)
        weights, ids, _ = router_weights(flat, router, None, k=k)
        kernels = {
            name: kernel["kernel"].reshape(-1, *kernel["kernel"].shape[2:])
            for name, kernel in params["experts"].items()
        }
        ids = ids[:, 0]
        y, dropped = exchange_pairs(flat, ids, weights[:, 0], kernels, "expert", room=room)
        load = jnp.bincount(ids.reshape(-1), length=cfg.experts)
        needed = room_needed(ids, cfg.experts)
        return y[None], load[None], dropped[None], needed[None]

    split = {"router": {"kernel": P()}, "experts": {n: {"kernel": P("expert")} for n in KERNELS}}
    run = jax.shard_map(
        local,
        mesh=layout.mesh,
        in_specs=(split, P("expert")),
        out_specs=P("expert"),
        check_vma=False,
    )
    return run(params, x)


KERNELS = ("gate", "up", "down")
UNITS = {"received": "MB received", "gb_per_s": "GB/s", "error": "from grouped, in norm"}


def both(run, params, x, dy):
    """Outputs and the gradients of all weights and tokens."""
    y, back = jax.vjp(lambda params, x: run(params, x)[0], params, x)
    return y, back(dy)


def spread(load, devices):
    """The busiest expert and the busiest device over the mean."""
    load = np.asarray(load, np.float64).reshape(-1)
    by_device = load.reshape(devices, -1).sum(1)
    return float(load.max() / load.mean()), float(by_device.max() / by_device.mean())


def timed(name, run, params, x, repeats):
    """A row of times."""
    forward, gradient = jax.jit(run).lower(params, x).compile(), jax.jit(partial(both, run))
    row = {"name": name, "received": sum(received(forward).values()) / 1e6}
    row["forward"] = seconds(lambda: forward(params, x), jax.block_until_ready, repeats)
    row["both"] = seconds(lambda: gradient(params, x, x), jax.block_until_ready, repeats)
    return row


def laid_out(name):
    """The layout of `rules@axis=size,...`; without sizes the axis `expert` has all devices."""
    rules, _, sizes = name.partition("@")
    axes = {
        axis: int(size) for axis, size in (part.split("=") for part in sizes.split(",") if part)
    }
    return Layout(make_mesh(**(axes or {"expert": jax.device_count()})), preset(rules))


def other_layout(options, name, alone, x, want):
    """A row of the grouped block in another layout, which gives what `want` is."""
    width, cfg = SIZES[options.sizes]
    layout = laid_out(name)
    params = jax.device_put(alone, shardings(moe_spec(width, cfg), layout))
    x = jax.device_put(x, batch_sharding(x.shape, layout))
    run = partial(grouped, cfg=cfg, how=How(layout))
    row = timed(f"grouped, {name}", run, params, x, options.repeats)
    found = np.float32(jax.device_get(jax.jit(run)(params, x)[0]))
    return {**row, "error": float(np.linalg.norm(found - want) / np.linalg.norm(want))}


def case(options, tokens, skew):
    """Rows of all forms."""
    width, cfg = SIZES[options.sizes]
    devices = jax.device_count()
    layout = Layout(make_mesh(expert=devices), preset("expert"))
    where = NamedSharding(layout.mesh, P("expert"))
    x = tokens_of(devices, tokens, width, skew)
    alone = drawn(width, cfg, skew, None)
    one = jax.device_put(x[:1], jax.devices()[0])
    rows = [timed("one device", partial(grouped, cfg=cfg), alone, one, options.repeats)]
    params = jax.device_put(alone, shardings(moe_spec(width, cfg), layout))
    x = jax.device_put(x, where)
    run = partial(grouped, cfg=cfg, how=How(layout))
    rows.append(timed("grouped", run, params, x, options.repeats))
    y, load = jax.jit(run)(params, x)
    rows[-1]["expert"], rows[-1]["device"] = spread(load, devices)
    bare = partial(grouped, cfg=cfg, how=How(layout, impl={"expert_mlp": "none"}))
    rows.append(timed("grouped, no experts", bare, params, x, options.repeats))
    rows[-1]["gb_per_s"] = rows[-1]["received"] / 1e3 / rows[-1]["forward"]
    want = np.float32(jax.device_get(y))
    rows += [other_layout(options, name, alone, x, want) for name in options.layouts]
    del alone
    form = partial(ordinary, cfg=cfg, layout=layout)
    _, load, _, needed = jax.jit(partial(form, room=1))(params, x)
    mean = tokens * cfg.groups * cfg.top_k / cfg.experts
    for name, room in (("top-k, none dropped", int(needed.max())), ("top-k, room 1.25", 0)):
        room = room or -(-int(1.25 * mean * 8) // 8)
        run = partial(form, room=room)
        row = timed(name, run, params, x, options.repeats)
        row["expert"], row["device"] = spread(load.sum(0), devices)
        dropped = jax.jit(run)(params, x)[2].sum()
        row["dropped"] = float(dropped) / (devices * mean * cfg.experts)
        row["room"] = room / mean
        rows.append(row)
    return [{"tokens": tokens, "skew": skew, **row} for row in rows]


def check(options):
    """Largest relative difference in norm of both forms to one device's, float32 weights."""
    width, cfg = SIZES["tiny"]
    devices = jax.device_count()
    layout = Layout(make_mesh(expert=devices), preset("expert"))
    x = tokens_of(devices, 40, width, 1.0)
    params = drawn(width, cfg, 1.0, None)
    flat = MoEConfig(cfg.experts, 1, cfg.groups * cfg.top_k, cfg.width)
    merged = {
        "router": {"kernel": params["router"]["kernel"].reshape(width, 1, -1)},
        "experts": {
            n: {"kernel": v["kernel"].reshape(1, -1, *v["kernel"].shape[2:])}
            for n, v in params["experts"].items()
        },
    }
    want = [jax.jit(partial(grouped, cfg=c))(p, x)[0] for c, p in ((cfg, params), (flat, merged))]
    placed = jax.device_put(params, shardings(moe_spec(width, cfg), layout))
    spread_x = jax.device_put(x, NamedSharding(layout.mesh, P("expert")))
    got = [
        jax.jit(partial(grouped, cfg=cfg, how=How(layout)))(placed, spread_x)[0],
        jax.jit(partial(ordinary, cfg=cfg, layout=layout, room=40))(placed, spread_x)[0],
    ]
    pairs = [(np.float32(a), np.float32(b)) for a, b in zip(got, want, strict=True)]
    return [float(np.linalg.norm(a - b) / np.linalg.norm(b)) for a, b in pairs]


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
    print(f"{jax.device_count()} x {machine()}")
    errors = check(options)
    print(f"against one device: grouped {errors[0]:.1e}, top-k {errors[1]:.1e}", flush=True)
    rows = []
    for tokens in options.tokens:
        for skew in options.skew:
            found = case(options, tokens, skew)
            for row in found:
                ratios = [row[n] / found[1][n] for n in ("forward", "both")]
                more = [
                    f"{n} {row[n]:.3g}" for n in ("expert", "device", "dropped", "room") if n in row
                ]
                more += [f"{row[n]:.3g} {unit}" for n, unit in UNITS.items() if n in row]
                print(
                    f"{tokens:6d} skew {skew:g} {row['name']:24} {row['forward'] * 1e3:9.3f} ms "
                    f"x{ratios[0]:.2f}  with gradients {row['both'] * 1e3:9.3f} ms "
                    f"x{ratios[1]:.2f}  {', '.join(more)}",
                    flush=True,
                )
            rows += found
            if options.out:
                with atomic_write(options.out) as file:
                    json.dump({"device": machine(), "errors": errors, "rows": rows}, file, indent=1)


if __name__ == "__main__":
    main()
