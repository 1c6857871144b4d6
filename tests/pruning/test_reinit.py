"""SLNP and CLAP: where they are exact they are exact, and where not they must fail."""

import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pangu_jax.core.errors import InputError
from pangu_jax.pruning import allocate, plan, reinit
from pangu_jax.pruning.compress import compress
from pangu_jax.pruning.norm_inputs import norm_inputs
from pangu_jax.pruning.plan import LayerPlan
from pangu_jax.pruning.prune import prune
from pangu_jax.pruning.recipe import Recipe

KEPT = (0, 1, 3, 4, 6, 7, 8, 10, 11, 13)


def zero_tail(model, gain=None):
    """A float64 model whose residual never has anything in the channels that are not kept."""
    small = model(width=16, dtype=np.float64, layers=2)
    on = np.isin(np.arange(16), KEPT).astype(float)
    params = jax.tree.map(lambda x: x, small.params)
    params["embed"]["table"] = params["embed"]["table"] * on
    run = params["runs"][0]
    for branch, name in (("attention", "out"), ("mlp", "down")):
        run[branch][name]["kernel"] = run[branch][name]["kernel"] * on
    if gain is not None:
        for name in ("attention_norm", "mlp_norm"):
            run[name]["scale"] = jnp.full_like(run[name]["scale"], gain)
        params["norm"]["scale"] = jnp.full_like(params["norm"]["scale"], gain)
    return dataclasses.replace(small, params=params)


def cut(small, norm, factors=None):
    made = dataclasses.replace(
        plan.identity(small.cfg), hidden=KEPT, norm=norm, norm_factors=factors or {}
    )
    params, cfg = prune(small.params, made, cfg=small.cfg)
    want = small.logits()
    return np.abs(small.logits(params, cfg) - want).max() / np.abs(want).max(), params


def test_dropping_channels_that_are_zero_is_exact_with_the_dimension_factor(model):
    with jax.enable_x64(True):
        small = zero_tail(model)
        assert cut(small, "dim")[0] < 1e-6  # float64 but for float32 in norms and logits
        assert cut(small, "none")[0] > 1e-3
        assert cut(small, "l2")[0] > 1e-5
        factors = reinit.calibrated_factors(
            small.params, small.tokens, np.asarray(KEPT), cfg=small.cfg
        )
        assert factors.keys() == {
            "0/attention_norm", "0/mlp_norm", "1/attention_norm", "1/mlp_norm", "norm",
        }  # fmt: skip
        np.testing.assert_allclose(list(factors.values()), np.sqrt(1.6), rtol=1e-3)
        assert cut(small, "calibrated", factors)[0] < 1e-3


def test_calibrated_factors_are_means_over_all_tokens(model):
    small, kept = model(rows=8), np.asarray(KEPT)
    found = reinit.calibrated_factors(small.params, small.tokens, kept, cfg=small.cfg, batch=3)
    table = np.asarray(small.params["embed"]["table"], np.float64)[small.tokens]
    roots = [np.sqrt((x**2).mean(-1) + small.cfg.norm_eps) for x in (table[..., kept], table)]
    assert found["0/attention_norm"] == pytest.approx((roots[0] / roots[1]).mean(), rel=1e-5)


def test_biases_are_cut_and_not_rescaled(model):
    small = model(out_bias=True)
    bias = small.params["runs"][0]["attention"]["out"]["bias"]
    small.params["runs"][0]["attention"]["out"]["bias"] = bias + 1.0
    _, params = cut(small, "l2")
    want = np.asarray(bias)[:, np.asarray(KEPT)] + 1
    np.testing.assert_array_equal(params["runs"][0]["attention"]["out"]["bias"], want)


def test_l2_keeps_the_norm_of_the_gains_and_is_dim_for_constant_ones(model):
    small = model()
    _, params = cut(small, "l2")
    for name in ("attention_norm", "mlp_norm"):
        before = np.linalg.norm(small.params["runs"][0][name]["scale"], axis=1)
        after = np.linalg.norm(params["runs"][0][name]["scale"], axis=1)
        np.testing.assert_allclose(after, before, rtol=1e-6)
    with jax.enable_x64(True):
        small = zero_tail(model, gain=0.7)
        (_, l2), (_, dim) = cut(small, "l2"), cut(small, "dim")
        chex.assert_trees_all_close(l2, dim, rtol=1e-6)
    with pytest.raises(InputError, match="no calibrated factor"):
        cut(model(), "calibrated")


def quiet(model, *, gains=True, sandwich=False):
    """Layer 0's attention adds nothing, layer 1 has no FFN: layer 1's heads fit into layer 0."""
    small = model(layers=2, seed=4, sandwich=sandwich)
    run = small.params["runs"][0]
    out, down = run["attention"]["out"], run["mlp"]["down"]
    out["kernel"] = out["kernel"].at[0].set(0)
    down["kernel"] = down["kernel"].at[:].set(0)
    if not gains:
        run["attention_norm"]["scale"] = jnp.ones_like(run["attention_norm"]["scale"])
    return small


def merged(cfg, *, correct=True, groups=(), moved=(0, 1, 2, 3)):
    base = plan.identity(cfg)
    heads = ((0, 1),) * (len(groups) + len(moved))
    part = LayerPlan(0, groups, heads, base.layers[0].channels, tuple((1, g) for g in moved))
    return dataclasses.replace(base, layers=(part,), gain_correct=correct)


def test_a_layer_merged_into_an_idle_one_computes_the_same(model):
    small = quiet(model)
    params, cfg = prune(small.params, merged(small.cfg), cfg=small.cfg)
    assert len(cfg.layers) == 1
    np.testing.assert_allclose(small.logits(params, cfg), small.logits(), atol=2e-5)
    params, cfg = prune(small.params, merged(small.cfg, correct=False), cfg=small.cfg)
    assert np.abs(small.logits(params, cfg) - small.logits()).max() > 1e-2
    # With equal gains there is nothing to correct.
    small = quiet(model, gains=False)
    params, cfg = prune(small.params, merged(small.cfg, correct=False), cfg=small.cfg)
    np.testing.assert_allclose(small.logits(params, cfg), small.logits(), atol=2e-5)


def test_keeping_the_layers_own_groups_is_dropping_the_next(model):
    small = model(layers=3)
    base = plan.identity(small.cfg)
    plain = dataclasses.replace(base, layers=(base.layers[0], base.layers[2]))
    own = reinit.merge_layers([np.ones(4) * 9, np.ones(4), np.ones(4)], [1])
    assert own == {0: [(0, g) for g in range(4)], 2: [(2, g) for g in range(4)]}
    a, cfg = prune(small.params, plain, cfg=small.cfg)
    want = jax.tree.map(lambda x: x[jnp.asarray([0, 2])], small.params["runs"][0])
    chex.assert_trees_all_equal(a["runs"][0], want)


@pytest.mark.long
@pytest.mark.parametrize("sandwich", [False, True])
def test_a_removed_layer_whose_groups_all_lose_is_dropped_without_a_trace(model, sandwich):
    """The whole pipeline, corrections and all, then does what leaving the layer out does."""
    small = model(layers=3, seed=2, sandwich=sandwich)
    run = small.params["runs"][0]
    for branch, name in (("attention", "out"), ("mlp", "down")):
        post = run.get(f"{branch}_post_norm")
        leaf, key = (run[branch][name], "kernel") if post is None else (post, "scale")
        leaf[key] = leaf[key].at[1].multiply(1e-3)
    found, plain = (
        compress(
            small.params,
            small.tokens,
            cfg=small.cfg,
            target=allocate.parse("layers=2"),
            recipe=Recipe(method="pangu-light", repair="none", clap=clap),
        )
        for clap in (True, False)
    )
    assert [part.layer for part in found.plan.layers] == [0, 2]
    assert not any(part.moved for part in found.plan.layers)
    want = {**small.params, "runs": [jax.tree.map(lambda x: x[jnp.asarray([0, 2])], run)]}
    for made in (found, plain):
        jax.tree.map(np.testing.assert_array_equal, made.params, want)


def test_groups_are_ranked_in_one_list():
    scores = [np.asarray([5.0, 1, 3]), np.asarray([4.0, 2, 9]), np.asarray([0.0, 8, 1])]
    assert reinit.merge_layers(scores, [1]) == {
        0: [(0, 0), (1, 0), (1, 2)],
        2: [(2, 0), (2, 1), (2, 2)],
    }
    assert reinit.merge_layers(scores, [1, 2]) == {0: [(0, 0), (1, 2), (2, 1)]}
    assert reinit.merge_layers(scores, [0]).keys() == {1, 2}  # nobody before it takes its groups


@pytest.mark.parametrize("sandwich", [False, True])
def test_the_pipeline_drops_the_idle_layer_and_moves_its_groups(model, sandwich):
    small = model(layers=3, seed=2, sandwich=sandwich)
    run = small.params["runs"][0]
    for branch, name in (("attention", "out"), ("mlp", "down")):
        kernel = run[branch][name]["kernel"]
        run[branch][name]["kernel"] = kernel.at[1].multiply(1e-3 if not sandwich else 1.0)
    if sandwich:
        for name in ("attention_post_norm", "mlp_post_norm"):
            run[name]["scale"] = run[name]["scale"].at[1].multiply(1e-3)
    found = compress(
        small.params,
        small.tokens,
        cfg=small.cfg,
        target=allocate.parse("layers=2"),
        recipe=Recipe(method="pangu-light", repair="none"),
    )
    assert [part.layer for part in found.plan.layers] == [0, 2]
    np.testing.assert_allclose(small.logits(found.params, found.cfg), small.logits(), atol=0.2)


@pytest.mark.long
def test_groups_that_move_are_scaled_for_the_norm_they_come_behind(model):
    """The norm after layer 0 divides by r_0 what that of layer 1 divided by r_1."""
    small = model(layers=3, seed=2, sandwich=True)
    run = small.params["runs"][0]
    out = run["attention"]["out"]
    out["kernel"] = out["kernel"].at[0, 2:].multiply(1e-2)
    for name, factor in (("attention_post_norm", 0.2), ("mlp_post_norm", 1e-3)):
        run[name]["scale"] = run[name]["scale"].at[1].multiply(factor)
    found = compress(
        small.params,
        small.tokens,
        cfg=small.cfg,
        target=allocate.parse("layers=2"),
        recipe=Recipe(method="pangu-light", repair="none"),
    )
    first, last = found.plan.layers
    assert (first.layer, last.layer, first.groups) == (0, 2, (0, 1)) and len(first.moved) == 2
    r = {
        name: float(jnp.sqrt((x**2).mean(-1) + small.cfg.norm_eps).mean())
        for name, x in norm_inputs(small.params, jnp.asarray(small.tokens), cfg=small.cfg)
    }
    ratio = r["0/attention_post_norm"] / r["1/attention_post_norm"]
    assert abs(np.log(ratio)) > 0.05
    gains = run["attention_post_norm"]["scale"]
    kernel = found.params["runs"][0]["attention"]["out"]["kernel"]
    for place, (_, group) in enumerate(first.moved, start=2):
        want = out["kernel"][1, group] * (gains[1] / gains[0]) * ratio
        np.testing.assert_allclose(kernel[0, place], want, rtol=1e-4)
