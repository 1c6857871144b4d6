"""A routed layer over devices equals one device's, and says little between them."""

import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pangu_jax.core.errors import InputError
from pangu_jax.core.spec import init
from pangu_jax.nn.how import How
from pangu_jax.nn.moe import MoEConfig, moe, moe_spec
from pangu_jax.sharding.expert import expert_split
from pangu_jax.sharding.layout import Layout, batch_sharding, shardings
from pangu_jax.sharding.mesh import make_mesh
from pangu_jax.sharding.rules import Rules, preset

GROUPS, WIDTH = 4, 16
CFG = MoEConfig(16, GROUPS, 2, 8, router_scale=True)
SPEC = moe_spec(WIDTH, CFG)
# Rules and mesh; groups on every device, fewer devices than groups, more, and hybrids.
LAYOUTS = {
    "a group a device": ("expert", {"data": 2, "expert": 4}),
    "two groups a device, experts in parts": ("expert+tensor", {"expert": 2, "tensor": 4}),
    "more devices than groups": ("expert", {"expert": 8}),
    "width in parts": ("fsdp+expert", {"fsdp": 2, "expert": 4}),
    "groups over tensor, hidden units over data": ("h2p", {"data": 2, "tensor": 4}),
    "copies": ("ddp", {"data": 8}),
}


def place(name):
    rules, sizes = LAYOUTS[name]
    return Layout(make_mesh(**sizes), preset(rules))


def draw(batch):
    rng = np.random.default_rng(batch)
    x = rng.normal(size=(batch, 3, WIDTH)).astype(np.float32)
    mask = rng.uniform(size=(batch, 3)) < 0.8
    return x, mask, rng.normal(size=x.shape).astype(np.float32)


def values(params, x, mask, dy, layout=None):
    """Sums, statistics, and the gradients of parameters and tokens."""

    def loss(params, x):
        y, stats = moe(params, x, mask, cfg=CFG, how=How(layout))
        return (y * dy).sum() + (stats.prob_sum**2).sum() / x.shape[0], (y, stats)

    (_, out), grads = jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)(params, x)
    return out, grads


@pytest.fixture(scope="module")
def params():
    return init(SPEC, key=jax.random.key(0))


@pytest.fixture(scope="module")
def alone(params):
    run = jax.jit(values)
    return {batch: run(params, *draw(batch)) for batch in (8, 13)}


@pytest.mark.long(but=2)
@pytest.mark.parametrize("batch", [8, 13])
@pytest.mark.parametrize("name", LAYOUTS)
def test_every_layout_gives_what_one_device_gives(name, batch, params, alone):
    where = place(name)
    placed = jax.device_put(params, shardings(SPEC, where))
    got = jax.jit(partial(values, layout=where))(placed, *draw(batch))
    np.testing.assert_array_equal(got[0][1].ids, alone[batch][0][1].ids)
    np.testing.assert_array_equal(got[0][1].load, alone[batch][0][1].load)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(alone[batch]), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5 * max(1.0, float(jnp.abs(b).max())))


def test_the_hierarchical_layout_splits_every_kernel_over_all_devices():
    spec = moe_spec(WIDTH, MoEConfig(16, GROUPS, 2, 8, shared_width=8))
    where = shardings(spec, place("groups over tensor, hidden units over data"))
    placed = jax.device_put(init(spec, key=jax.random.key(0)), where)
    for name in ("experts", "shared"):
        for kernel in jax.tree.leaves(placed[name]):
            assert kernel.addressable_shards[0].data.size == kernel.size // 8
    experts = placed["experts"]["gate"]["kernel"].addressable_shards[0].data
    assert experts.shape == (1, 4, WIDTH, 4)  # one group of four, half of the hidden units


def exchanged(name, params, *, batch=8):
    """How often a compiled forward pass has each kind of exchange of more than a few numbers."""
    where = place(name)
    x, mask, _ = draw(batch)
    run = jax.jit(
        lambda p, x: moe(p, x, mask, cfg=CFG, how=How(where))[0],
        in_shardings=(shardings(SPEC, where), batch_sharding(x.shape, where)),
    )
    text = run.lower(params, x).compile().as_text()
    kinds = "all-gather|all-reduce|reduce-scatter|all-to-all|ragged-all-to-all|collective-permute"
    found = re.findall(rf"= (.*?) ({kinds})(?:-start)?\(", text)
    size = x.size // batch * batch // 8  # one device's tokens
    counts: dict[str, int] = {}
    for shape, kind in found:
        numbers = [int(np.prod([int(n) for n in dims.split(",") if n] or [1]))
                   for dims in re.findall(r"\[([\d,]*)\]", shape)]  # fmt: skip
        if max(numbers) >= size:
            counts[kind] = counts.get(kind, 0) + 1
    return counts


def test_grouped_experts_need_a_gather_and_a_scatter_and_copies_nothing(params):
    found = exchanged("a group a device", params)
    assert found.pop("reduce-scatter") == 1
    assert set(found) == {"all-gather"}, "no all-to-all, no sums of whole activations"
    assert exchanged("copies", params) == {}


def test_rules_that_split_the_experts_of_a_group_are_refused():
    kernels = {name: leaf["kernel"] for name, leaf in SPEC["experts"].items()}
    for table, words in (
        ({"expert": ("expert",)}, "by the axes group and expert_mlp, not by expert"),
        ({"embed": ("expert",), "expert_mlp": ("expert",)}, "different mesh axes"),
    ):
        where = Layout(make_mesh(expert=4, data=2), Rules(table, {"batch": ("expert",)}))
        with pytest.raises(InputError, match=words):
            expert_split(8, kernels, where)
