"""The benches of several devices: bytes counted, rooflines, layouts, top-k layers and tables."""

import argparse
import json
import re
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pangu_jax.core.spec import is_spec
from pangu_jax.nn.how import HOW, How
from pangu_jax.nn.moe import MoEConfig, moe, moe_spec
from pangu_jax.sharding.mesh import make_mesh
from pangu_jax.sharding.rules import Rules

# What a GPU's compiler writes, one line a collective.
GPU = """
  %all-gather-start = (bf16[8,4]{1,0}, bf16[16,4]{1,0}) all-gather-start(bf16[8,4]{1,0} %x), \
channel_id=1, replica_groups=[1,2]<=[2], dimensions={0}
  %all-gather-done = bf16[16,4]{1,0} all-gather-done(%all-gather-start)
  %reduce-scatter-start = ((bf16[16,4]{1,0}), bf16[8,4]{1,0}) reduce-scatter-start(%y), \
channel_id=2, replica_groups={{0,1}}, dimensions={0}, to_apply=%add
  %all-to-all-start = ((f32[2,8]{1,0}), f32[2,8]{1,0}) all-to-all-start(%z), channel_id=3, \
replica_groups={{0,1}}, dimensions={0}
  %all-reduce-start = f32[10]{0} all-reduce-start(%w), replica_groups={{0,1}}, to_apply=%add
"""


@pytest.fixture(scope="module")
def bench():
    """The modules of tools/bench."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(Path(__file__).parents[2] / "tools" / "bench"))
        import collectives
        import expert_parallel
        import scaling
        import scaling_table
        import train_scaling

        from pangu_jax.nn import block
        from pangu_jax.ops.expert_mlp import IMPLEMENTATIONS

        block.moe = moe  # what train_scaling puts in its place is called by its name here
        IMPLEMENTATIONS.pop("none", None)  # gone where the modules were there already
        yield SimpleNamespace(
            collectives=collectives,
            block=expert_parallel,
            scaling=scaling,
            table=scaling_table,
            train=train_scaling,
        )


def program(text):
    return SimpleNamespace(as_text=lambda: text)


def test_bytes_of_a_gpu_program(bench):
    found = bench.collectives.received(program(GPU))
    want = {"all-gather": 64, "reduce-scatter": 64, "all-to-all": 32, "all-reduce": 40}
    assert found == want
    assert bench.collectives.calls(program(GPU)) == dict.fromkeys(want, 1)


FORMS = {
    "{}": 8,
    "[4,2]<=[8]": 2,
    "[2,4]<=[2,4]T(1,0)": 4,
    "{{0,2,4,6},{1,3,5,7}}": 4,
    "mesh['data'=1,'tensor'=2,'expert'=4] {'expert'}": 4,
    "mesh['data'=1,'tensor'=2,'expert'=4] {'tensor','expert'}": 8,
    "mesh['axis_0'=8] device_ids=([4,2]T(1,0)) {'axis_0':(2)4}": 4,
}


@pytest.mark.parametrize("groups", FORMS)
def test_devices_of_a_collective(bench, groups):
    text = (
        f"  ROOT %a = f32[8]{{0}} all-gather(%x), channel_id=1, replica_groups={groups}, dimensions"
    )
    n = FORMS[groups]
    assert bench.collectives.received(program(text)) == {"all-gather": 32 * (n - 1) // n}


def test_an_unknown_collective_is_told(bench):
    text = "  %a = f32[8]{0} all-gather(%x), replica_groups=everyone, dimensions={0}"
    with pytest.raises(ValueError, match="all-gather"):
        bench.collectives.received(program(text))


def test_bytes_of_this_version_s_programs(bench):
    """What this version of jax writes is read: two of four devices, 8 x 4 numbers on each."""
    mesh = make_mesh(expert=2, tensor=2, devices=jax.devices()[:4])
    spec = jax.sharding.PartitionSpec("expert")
    bodies = {
        "all-gather": lambda x: jax.lax.all_gather(x, "expert", tiled=True),
        "reduce-scatter": lambda x: jax.lax.psum_scatter(x, "expert", tiled=True),
        "all-to-all": lambda x: jax.lax.all_to_all(x, "expert", 0, 0, tiled=True),
        "all-reduce": lambda x: jax.lax.psum(x, "expert"),
    }
    form = {"mesh": mesh, "in_specs": spec, "out_specs": spec, "check_vma": False}
    for kind, body in bodies.items():
        run = jax.jit(jax.shard_map(body, **form))
        compiled = run.lower(jax.ShapeDtypeStruct((16, 4), jnp.float32)).compile()
        want = {"all-gather": 128, "reduce-scatter": 64, "all-to-all": 64, "all-reduce": 128}
        assert bench.collectives.received(compiled) == {kind: want[kind]}


def test_roofline(bench):
    rates = {
        "tflops": 2.0,
        "tb_per_s": 0.5,
        "gb_per_s": dict.fromkeys(
            ("all-gather", "reduce-scatter", "all-to-all", "all-reduce"), 4e-9
        ),
        "latency": dict.fromkeys(("all-gather", "reduce-scatter", "all-to-all", "all-reduce"), 0.5),
    }
    found = bench.scaling.simulated(rates, [(8e12, 1e12), (1e12, 3e12)], program(GPU))
    # By compute 4 s, by memory 2; then 0.5 and 6. 200 bytes at 4 bytes/s, and four calls.
    want = {"compute": 4.0, "memory": 6.0, "communication": 50 + 2.0, "seconds": 62.0}
    assert found == pytest.approx(want)
    alone = bench.scaling.simulated(rates, [(8e12, 1e12)], program(""))
    assert alone["seconds"] == pytest.approx(4) and alone["communication"] == 0


@pytest.mark.parametrize("devices", [1, 2, 4, 8])
def test_named_layouts_take_all_devices(bench, devices):
    for name in ("ep", "ep+tp", "fsdp+ep"):
        full = bench.scaling.named(name, devices)
        sizes = [int(x) for x in re.findall(r"=(\d+)", full)]
        assert np.prod(sizes) == devices
    assert bench.scaling.named("ddp", devices) == "ddp"


def test_spread_is_the_mean_over_layers(bench):
    load = [[2, 2, 0, 0], [1, 1, 1, 1]]  # devices hold neighbors
    assert bench.scaling.spread(load, 2) == [1.5, 1.5]
    assert bench.scaling.spread([3, 1, 2, 2], 2) == [1.5, 1.0]


def test_what_fits(bench, monkeypatch):
    sizes = {"temp": 50, "output": 30, "alias": 20, "argument": 35}
    sizes = SimpleNamespace(**{f"{name}_size_in_bytes": size for name, size in sizes.items()})
    step = SimpleNamespace(memory_analysis=lambda: sizes)

    def device(left):
        return SimpleNamespace(memory_stats=lambda: {"bytes_limit": left + 7, "bytes_in_use": 7})

    monkeypatch.setattr(jax, "devices", lambda: [device(100), device(70)])
    assert bench.scaling.fits(step, False, 1) and bench.scaling.fits(step, True, 2)
    assert not bench.scaling.fits(step, False, 2)
    monkeypatch.setattr(jax, "devices", lambda: [SimpleNamespace(memory_stats=lambda: None)])
    assert bench.scaling.fits(step, False, 1)


def test_full_memory_is_no_row_s_end(bench):
    def full(message):
        raise jax.errors.JaxRuntimeError(message)

    assert bench.scaling.unless_full(full, "RESOURCE_EXHAUSTED: 3 GiB") is None
    assert bench.scaling.unless_full(lambda x: x + 1, 1) == 2
    with pytest.raises(jax.errors.JaxRuntimeError, match="INTERNAL"):
        bench.scaling.unless_full(full, "INTERNAL: a kernel")


def test_results_go_on(bench, tmp_path):
    path = tmp_path / "a.json"
    first = bench.scaling.Results(path, {"tokens": (1, 2)})
    first.add([{"name": "a", "skew": 0.0}])
    assert first.part("rates", lambda: 3) == 3
    second = bench.scaling.Results(path, {"tokens": (1, 2)})
    assert second.has(name="a", skew=0.0) and not second.has(name="a", skew=2.0)
    assert second.part("rates", lambda: pytest.fail("computed again")) == 3
    with pytest.raises(SystemExit, match="other settings"):
        bench.scaling.Results(path, {"tokens": (1,)})


def test_difference(bench):
    found = bench.scaling.difference(
        {"a": jnp.float32([3.0, 4.0]), "b": jnp.float32([1.0])},
        {"a": jnp.float32([3.0, 4.0]), "b": jnp.float32([2.0])},
    )
    assert found == pytest.approx({"all": (1 / 29) ** 0.5, "worst": 0.5})


def drawn(spec, seed):
    """Parameters of a spec, by numpy."""
    rng = np.random.default_rng(seed)
    draw = lambda leaf: rng.normal(size=leaf.shape).astype(np.float32) / 2  # noqa: E731
    return jax.tree.map(draw, spec, is_leaf=is_spec)


@pytest.fixture(scope="module")
def routed():
    """A routed layer with a shared expert in one group, and its inputs."""
    cfg = MoEConfig(8, 1, 2, 6, shared_width=4, router_scale=True)
    params = drawn(moe_spec(10, cfg), 0)
    x, dy = np.random.default_rng(0).normal(size=(2, 4, 5, 10)).astype(np.float32)
    return cfg, params, x, dy


def gradients(layer, params, x, dy, **options):
    """Outputs, statistics, and gradients of a layer, jitted."""

    @jax.jit
    def run(params, x):
        y, back, stats = jax.vjp(partial(layer, **options), params, x, has_aux=True)
        return y, back(dy), stats

    return run(params, x)


def test_topk_layer_is_one_device_s(bench, routed):
    cfg, params, x, dy = routed
    mesh = make_mesh(expert=2, devices=jax.devices()[:2])
    rules = Rules({"expert": ("expert",)}, {"batch": ("data", "expert")})
    layout = bench.train.Pairs(mesh, rules, 10)  # a device's tokens: room for all
    got = gradients(bench.train.topk_layer, params, x, dy, cfg=cfg, how=How(layout))
    want = gradients(moe, params, x, dy, cfg=cfg, how=HOW)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        np.testing.assert_allclose(a, b, atol=2e-5)
    less = bench.train.Pairs(mesh, rules, 1)
    y, _ = jax.jit(partial(bench.train.topk_layer, cfg=cfg, how=How(less)))(params, x)
    assert not np.allclose(y, want[0], atol=1e-3)


def test_counts_and_flat_experts(bench):
    """The bench's count of pairs is a loop's, and its ordinary block routes as one group does."""
    cfg = MoEConfig(4, 2, 1, 3)
    params = drawn(moe_spec(6, cfg), 1)
    x = np.random.default_rng(1).normal(size=(2, 7, 6)).astype(np.float32)
    merged, one = bench.block.flat(params, cfg)
    scores = np.einsum("btd,de->bte", x, np.reshape(params["router"]["kernel"], (6, 4)))
    want = np.zeros((2, 4), int)
    for row, token, group in np.ndindex(2, 7, 2):
        want[row, 2 * group + np.argmax(scores[row, token, 2 * group : 2 * group + 2])] += 1
    np.testing.assert_array_equal(bench.block.counts(params, x, 1), want)
    top = np.argsort(-scores, axis=-1)[..., :2]
    flat = np.stack([np.bincount(row.reshape(-1), minlength=4) for row in top])
    np.testing.assert_array_equal(bench.block.counts(merged, x, one.top_k), flat)


def test_work_of_a_step(bench):
    """FLOPs of a device are those of its tokens; pairs there is room for are computed."""
    cfg = bench.train.presets.preset("moge-tiny")
    options = argparse.Namespace(batch=2, length=64)
    one = bench.train.work(bench.train.Case("", cfg), options, False)
    forward = bench.train.work(bench.train.Case("", cfg), options, True)
    assert one[0][0] == pytest.approx(3 * forward[0][0])
    tokens, active = 128, bench.train.decoder.count_active(cfg)
    scores = 2 * 3 * tokens * 4 * 32 * 64 / 4  # layers, heads, size of a head, a quarter of a row
    assert forward[0][0] == pytest.approx(2 * active * tokens + scores)
    assert one[1] == (0, 32 * bench.train.decoder.count(bench.train.decoder.spec(cfg)))
    twin = bench.train.presets.as_topk(cfg)
    mesh = make_mesh(expert=2, devices=jax.devices()[:2])
    rules = Rules({"expert": ("expert",)}, {"batch": ("expert",)})
    twice = bench.train.Pairs(mesh, rules, 2 * tokens * 8 // 32)
    more = bench.train.work(bench.train.Case("", twin, twice), options, True)
    pairs = 3 * tokens * 8 * 3 * 128 * 32  # layers, tokens, experts of each, kernels
    assert more[0][0] == pytest.approx(forward[0][0] + 2 * pairs)
    assert more[0][1] < 0.8 * forward[0][1]


def test_skewed_routers_and_even_ones(bench):
    params = {
        "embed": {"table": np.float32([[0] * 4, [1] * 4, [2] * 4])},
        "moe": {"router": {"kernel": np.zeros((2, 4, 2, 2), np.float32)}},
        "head": {"kernel": np.ones((4, 3), np.float32)},
    }
    found = bench.train.skewed(params, 3.0)
    assert found["head"]["kernel"] is params["head"]["kernel"]
    router = np.asarray(found["moe"]["router"]["kernel"])
    np.testing.assert_allclose(found["embed"]["table"][1], 1 + (2 / 3) ** 0.5, rtol=1e-6)
    assert router[0, 0].reshape(-1).tolist() == sorted(router[0, 0].reshape(-1).tolist())[::-1]
    assert float((router[1].sum(0).reshape(-1) / 2**0.5)[0]) == pytest.approx(3)
    assert not np.any(bench.train.even(found)["moe"]["router"]["kernel"])
    assert bench.train.skewed(params, 0) is params


def test_tables(bench, tmp_path):
    by = {"seconds": 0.002}
    row = {"tokens": 64, "skew": 0.0, "name": "grouped", "forward": 0.004, "both": 0.01, "mb": 1.5,
           "expert": 1.5, "device": 1.0, "simulated_forward": by, "simulated_both": by,
           "error_outputs": 0.0025, "error_gradients": 0.003}  # fmt: skip
    failed = {"tokens": 64, "skew": 0.0, "name": "top-k", "failed": "out of memory"}
    rates = {"tflops": 700.0, "tb_per_s": 4.3, "gb_per_s": {"all-gather": 300.0},
             "latency": {"all-gather": 2e-5}, "published": {"tflops": 989}}  # fmt: skip
    settings = {"device": "GPU", "devices": 2, "sizes": "pangu"}
    block = {"settings": settings, "rates": rates, "rows": [row, failed]}
    times = {"skew": 0.0, "mb": 10.0, "gib": 3.25, "expert": 1.2, "device": 1.0}
    rows = [
        {**times, "layout": "one device", "tokens": 64, "step": 0.5, "simulated_step": by},
        {**times, "layout": "ep", "tokens": 128, "step": 0.8, "dropped": 0.25},
        {"layout": "fsdp", "skew": 0.0, "expert": 1.2, "device": 1.0, **bench.scaling.FULL},
    ]
    train = {"settings": {"preset": "moge", "batch": 1, "length": 64, "devices": 2}, "rows": rows}
    apart = {"layout": "ep", "routing": "even", "loss": 2e-5, "gradients": 0.03, "worst": 0.04}
    train["check bfloat16"] = [{**apart, "dtype": "bfloat16"}]
    train["check float32"] = [{**apart, "dtype": "float32"}]
    text = bench.table.tables([block, train])
    assert "| bfloat16 product, TFLOP/s | 989 | 700 |" in text
    assert "| 64 | 0 | grouped | 2 | 4 | 1.00 | 2 | 10 | 1.00 | 1.50, 1.00 |  | 1.5 |" in text
    assert "| top-k: out of memory |" in text and "| fsdp: out of memory |" in text
    assert "| 64 | 0 | ep | 160 | 0.62 |  | 800 |" in text and "| 25 % |" in text
    lines = [line for line in text.splitlines() if line.startswith("|")]
    assert {line.count("|") for line in lines} == {4, 15, 14, 7}
    assert "| ep | float32 | even | 2.0e-05 | 3.0e-02 | 4.0e-02 |" in text
    last = text.splitlines()[-1]
    assert "where 0.01 is allowed: the block's outputs 2.5e-03, its gradients 3.0e-03," in last
    assert "loss in bfloat16 2.0e-05" in last and "gradients in float32 3.0e-02 (**more**)." in last
    assert last.count("more") == 1
    page = tmp_path / "page.md"
    page.write_text("a\n<!-- tables -->\nold\n<!-- end of tables -->\nb\n", "utf-8")
    files = [tmp_path / "1.json", tmp_path / "2.json"]
    for path, found in zip(files, (block, train), strict=True):
        path.write_text(json.dumps(found), "utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["table", *map(str, files), "--into", str(page)])
        bench.table.main()
    assert page.read_text("utf-8") == f"a\n<!-- tables -->\n\n{text}\n\n<!-- end of tables -->\nb\n"
