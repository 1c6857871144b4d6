"""The decoder: storage form, packing, padding, cache, remat, sharding on 8 virtual devices."""

import dataclasses
import functools
import math

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pangu_jax.core.config import from_json, to_json
from pangu_jax.core.errors import InputError
from pangu_jax.core.spec import check, count, is_spec
from pangu_jax.core.tree import path_name, select
from pangu_jax.models import decoder, presets, transformer
from pangu_jax.nn import stack
from pangu_jax.nn.attention import AttentionConfig
from pangu_jax.nn.block import LayerConfig
from pangu_jax.nn.how import HOW, How
from pangu_jax.nn.mlp import MlpConfig
from pangu_jax.nn.moe import MoEConfig
from pangu_jax.nn.rotary import rotation
from pangu_jax.sharding.layout import Layout, shardings
from pangu_jax.sharding.mesh import make_mesh
from pangu_jax.sharding.rules import preset

HEADS = AttentionConfig(4, 2, 4, True, True, True, True, qk_norm=True)
DENSE = LayerConfig(HEADS, mlp=MlpConfig(16), norm_place="sandwich")
ROUTED = LayerConfig(HEADS, moe=MoEConfig(16, 8, 1, 8, shared_width=8, router_scale=True))
MIXED = decoder.DecoderConfig(16, 8, (DENSE, ROUTED, ROUTED))


def model(cfg, seed=0):
    """Parameters whose biases, gains and routers are not at their tame initial values."""
    rng = np.random.default_rng(seed)

    def leaf(name, spec):
        gain = 1.0 if name.endswith("scale") else 0.0
        fan = max(1, math.prod(spec.shape[1:-1])) if name.endswith("kernel") else 1
        return jnp.asarray(
            gain + rng.normal(size=spec.shape) * (0.04 + 1 / fan) ** 0.5, jnp.float32
        )

    return jax.tree_util.tree_map_with_path(
        lambda path, spec: leaf(path_name(path), spec), decoder.spec(cfg), is_leaf=is_spec
    )


def tokens(batch, length, vocab=16, seed=0):
    return jnp.asarray(np.random.default_rng(seed).integers(0, vocab, (batch, length)), jnp.int32)


@functools.partial(jax.jit, static_argnames="how")
def apply(params, x, how=HOW):
    """The model MIXED; op by op its programs would be a hundred, each compiled."""
    return decoder.apply(params, x, cfg=MIXED, how=how)


def test_runs_are_maximal_stretches_and_the_configuration_survives_json():
    assert [n for _, n in transformer.run_lengths(MIXED)] == [1, 2]
    spec = decoder.spec(MIXED)
    assert spec["runs"][1]["moe"]["experts"]["gate"]["kernel"].shape == (2, 8, 2, 8, 8)
    assert spec["runs"][1]["moe"]["experts"]["gate"]["kernel"].axes[0] == "layers"
    assert from_json(decoder.DecoderConfig, to_json(MIXED)) == MIXED


@pytest.mark.long
def test_splitting_and_joining_runs_changes_nothing():
    params, x = model(MIXED), tokens(2, 5)
    want = apply(params, x).hidden
    layers = jax.jit(stack.split)(params["runs"])
    assert len(layers) == 3
    rejoined = {**params, "runs": jax.jit(lambda layers: stack.join(layers, [1, 2]))(layers)}
    chex.assert_trees_all_equal(rejoined, params)

    @jax.jit
    def layer_by_layer(params, layers, x):
        h = decoder.embed(params, x, cfg=MIXED)
        turn = rotation(jnp.broadcast_to(jnp.arange(5), (2, 5)), 4, MIXED.rope)
        for layer, weights in zip(MIXED.layers, layers, strict=True):
            one = jax.tree.map(lambda a: a[None], weights)
            h, _ = transformer.apply_run(one, h, turn, None, layer=layer, eps=MIXED.norm_eps)
        return transformer.final_norm(params, h, cfg=MIXED)

    np.testing.assert_allclose(layer_by_layer(params, layers, x), want, atol=1e-5)


def test_packed_documents_equal_documents_alone():
    params, x = model(MIXED), tokens(1, 9)
    segments = jnp.array([[1, 1, 1, 1, 2, 2, 2, 0, 0]])
    positions = jnp.array([[0, 1, 2, 3, 0, 1, 2, 0, 0]])
    run = jax.jit(lambda p, x, s, q: decoder.apply(p, x, cfg=MIXED, segments=s, positions=q))
    packed = run(params, x, segments, positions)
    for part in (slice(0, 4), slice(4, 7)):
        alone = apply(params, x[:, part]).hidden
        np.testing.assert_allclose(packed.hidden[:, part], alone, atol=1e-5)
    assert float(packed.router[1].tokens[0]) == 7
    assert float(packed.router[1].load[0].sum()) == 7 * 8
    changed = run(params, x.at[0, 8].add(1), segments, positions)
    np.testing.assert_array_equal(changed.hidden[:, :7], packed.hidden[:, :7])
    np.testing.assert_array_equal(changed.router[1].load, packed.router[1].load)


@pytest.mark.long
def test_remat_and_unrolling_change_no_gradient():
    cfg = dataclasses.replace(MIXED, layers=(ROUTED, ROUTED))
    params, x = model(cfg), tokens(2, 5)

    def loss(params, policy, unroll=1):
        how = How(remat=policy, unroll=unroll)
        return (decoder.apply(params, x, cfg=cfg, how=how).hidden ** 2).sum()

    want = jax.jit(jax.grad(lambda p: loss(p, None)))(params)
    for policy, unroll in (("full", 1), ("dots", 2)):
        got = jax.jit(jax.grad(functools.partial(loss, policy=policy, unroll=unroll)))(params)
        for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
            np.testing.assert_allclose(a, b, atol=1e-5 * max(1.0, np.abs(b).max()))
    with pytest.raises(InputError, match=r"remat policy must be one of .* got 'some'"):
        loss(params, "some")


def test_tied_logits_use_the_table_and_an_unknown_id_is_not_silent():
    cfg = dataclasses.replace(MIXED, tied=True)
    params = model(cfg)
    assert "head" not in params
    hidden = jax.jit(lambda p, x: decoder.apply(p, x, cfg=cfg).hidden)(params, tokens(1, 3))
    want = np.asarray(hidden) @ np.asarray(params["embed"]["table"]).T
    scores = functools.partial(decoder.logits, params, cfg=cfg)
    np.testing.assert_allclose(scores(hidden), want, atol=1e-5)
    half = jax.ShapeDtypeStruct(hidden.shape, jnp.bfloat16)
    assert jax.eval_shape(scores, half).dtype == jnp.float32
    assert np.isnan(decoder.embed(params, jnp.array([[99]]), cfg=cfg)).all()


def test_bfloat16_activations_stay_near_float32_ones():
    params, x = model(MIXED), tokens(2, 5)
    want, got = apply(params, x), apply(params, x, How(dtype=jnp.bfloat16))
    assert got.hidden.dtype == jnp.bfloat16
    assert got.router[1].prob_sum.dtype == jnp.float32
    # The mean: where rounding flips a router's choice, one token differs more.
    want = np.asarray(want.hidden)
    error = np.abs(np.asarray(got.hidden, np.float32) - want).mean()
    assert error / np.abs(want).mean() < 0.05


def test_a_tree_that_does_not_fit_is_named():
    params = model(MIXED)
    params["runs"][1]["moe"]["router"]["scale"] = jnp.ones((2, 8, 3))
    with pytest.raises(InputError, match=r"runs/1/moe/router/scale has shape \(2, 8, 3\)"):
        check(decoder.spec(MIXED), params)


def test_the_published_configuration_counts_exactly():
    """Test 3 of the specification: nothing is allocated."""
    cfg = presets.preset("pangu-pro-moe")
    assert count(decoder.spec(cfg)) == 71_988_781_056
    assert decoder.count_active(cfg) == 16_498_139_136


def test_the_top_k_twin_has_the_same_sizes():
    cfg = presets.preset("moge-tiny")
    twin = presets.as_topk(cfg)
    assert count(decoder.spec(cfg)) == count(decoder.spec(twin))
    assert decoder.count_active(cfg) == decoder.count_active(twin)
    assert twin.layers[0].moe.groups == 1
    with pytest.raises(InputError, match="unknown model preset"):
        presets.preset("gpt")


LAYOUTS = {
    "ddp": {"data": 8},
    "fsdp": {"fsdp": 8},
    "tensor": {"data": 2, "tensor": 4},
    "expert": {"expert": 8},
    "fsdp+tensor": {"fsdp": 4, "tensor": 2},
    "expert+tensor": {"expert": 4, "tensor": 2},
    "fsdp+expert": {"fsdp": 2, "expert": 4},
    "ddp+expert": {"data": 2, "expert": 4},
    "expert+tensor, wide": {"expert": 2, "tensor": 4},
    "tensor, all": {"tensor": 8},
}
# Together they have every axis.
FAST = {"fsdp+tensor", "ddp+expert"}


def layout(name):
    return Layout(make_mesh(**LAYOUTS[name]), preset(name.split(",")[0]))


@pytest.fixture(scope="module")
def unsharded():
    params, x = model(MIXED), tokens(8, 4)
    segments = jnp.ones((8, 4), jnp.int32).at[3, 2:].set(0)
    return params, x, segments, *jax.jit(forward)(params, x, segments)


def forward(params, x, segments, layout=None):
    """Logits, router choices, and the gradient of a scalar of the logits."""

    def loss(params):
        out = decoder.apply(params, x, cfg=MIXED, segments=segments, how=How(layout))
        scores = decoder.logits(params, out.hidden, cfg=MIXED, how=How(layout))
        return (scores**2 * (segments > 0)[..., None]).mean(), (scores, out.router[1])

    (_, (scores, router)), grads = jax.value_and_grad(loss, has_aux=True)(params)
    return scores, router, grads


@pytest.mark.long
@pytest.mark.parametrize(
    "rules", [pytest.param(n, marks=[pytest.mark.slow] * (n not in FAST)) for n in LAYOUTS]
)
def test_sharded_equals_unsharded_in_values_choices_and_gradients(rules, unsharded):
    params, x, segments, scores, router, grads = unsharded
    where = layout(rules)
    placed = jax.device_put(params, shardings(decoder.spec(MIXED), where))
    got = jax.jit(lambda p, x, s: forward(p, x, s, where))(placed, x, segments)
    np.testing.assert_allclose(got[0], scores, atol=1e-5, rtol=1e-5)
    np.testing.assert_array_equal(got[1].ids, router.ids)
    np.testing.assert_array_equal(got[1].load, router.load)
    for a, b in zip(jax.tree.leaves(got[2]), jax.tree.leaves(grads), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5 * max(1.0, np.abs(b).max()))


@pytest.mark.parametrize(
    ("rules", "name", "parts"),
    [
        ("fsdp", ".*", 8),
        ("expert", "runs/1/moe/(experts|router)/.*", 8),
        ("expert+tensor", "runs/1/moe/experts/.*", 8),
        ("tensor", "runs/./attention/(query|key|value|out)/kernel|head/kernel|embed/table", 4),
    ],
)
def test_each_device_holds_its_part_and_no_more(rules, name, parts):
    where = layout(rules)
    params = jax.device_put(model(MIXED), shardings(decoder.spec(MIXED), where))
    chosen = select(params, name)
    if rules == "fsdp":  # what has no model-width axis is whole: per-head norms and biases
        chosen = {n: x for n, x in chosen.items() if 8 in x.shape[1:] and "attention" not in n}
        chosen = {n: x for n, x in chosen.items() if not n.endswith("router/scale")}
    assert chosen
    for leaf_name, leaf in chosen.items():
        held = {shard.data.nbytes for shard in leaf.addressable_shards}
        assert held == {leaf.nbytes // parts}, leaf_name
        assert math.prod(leaf.shape) * 4 == leaf.nbytes
