"""Sandwich norms folded into the projections before them."""

import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pangu_jax.core.errors import InputError
from pangu_jax.nn.norm import rms_norm
from pangu_jax.pruning import absorb as room
from pangu_jax.pruning.absorb import absorb, fold_pre_norms
from pangu_jax.pruning.norm_inputs import norm_inputs


def test_the_gains_of_the_norms_before_fold_exactly(model):
    small = model(sandwich=True, query_bias=True)
    params = fold_pre_norms(small.params, cfg=small.cfg)
    assert (np.asarray(params["runs"][0]["mlp_norm"]["scale"]) == 1).all()
    np.testing.assert_allclose(small.logits(params), small.logits(), atol=2e-5)


def test_where_the_rms_is_constant_absorption_is_exact():
    """u of fixed norm: gamma * u / r is W diag(c gamma) with c = 1 / r."""
    rng = np.random.default_rng(0)
    u = rng.normal(size=(50, 8))
    u *= 3 / np.sqrt((u**2).mean(-1, keepdims=True))
    gain = rng.normal(size=8)
    r = np.sqrt((u**2).mean(-1))
    sums = np.asarray([r.sum(), (r * r).sum(), (1 / r).sum()])
    want = np.asarray(rms_norm({"scale": jnp.asarray(gain)}, jnp.asarray(u), eps=0.0))
    for stat in room.STATS.values():
        np.testing.assert_allclose(stat(sums, 50) * gain * u, want, rtol=1e-5)


def test_the_error_is_the_one_on_tokens_and_least_squares_is_least():
    rng = np.random.default_rng(1)
    u = rng.normal(size=(400, 8)) * rng.lognormal(0, 0.5, size=(400, 1))
    r = np.sqrt((u**2).mean(-1))
    sums = np.asarray([r.sum(), (r * r).sum(), (1 / r).sum()])
    errors = {}
    for name, stat in room.STATS.items():
        c = stat(sums, 400)
        y = u / r[:, None]
        measured = ((y - c * u) ** 2).sum() / (y**2).sum()
        errors[name] = room.relative_error(sums, 400, c)
        assert errors[name] == pytest.approx(measured, rel=1e-9)
    assert errors["lsq"] == pytest.approx(r.var() / (r**2).mean(), rel=1e-9)
    assert errors["lsq"] < min(errors["mean_rms"], errors["mean_inv"])


def test_a_model_whose_branches_have_constant_size_loses_nothing(model):
    """Each branch's output is its bias, large, and next to nothing else."""
    small = model(sandwich=True, out_bias=True)
    params = jax.tree.map(lambda x: x, small.params)
    run = params["runs"][0]
    layer = dataclasses.replace(
        small.cfg.layers[0], mlp=dataclasses.replace(small.cfg.layers[0].mlp, out_bias=True)
    )
    cfg = dataclasses.replace(small.cfg, layers=(layer,) * 2)
    for branch, name in (("attention", "out"), ("mlp", "down")):
        bias = np.random.default_rng(5).normal(size=(2, 16)).astype(np.float32)
        kernel = run[branch][name]["kernel"] * 1e-4
        run[branch][name] = {"kernel": kernel, "bias": jnp.asarray(bias)}
    new, new_cfg, errors = absorb(params, small.tokens, cfg=cfg, max_rel_err=1e-5)
    assert not any(x.norm_place == "sandwich" for x in new_cfg.layers)
    assert max(errors.values()) < 1e-5
    np.testing.assert_allclose(small.logits(new, new_cfg), small.logits(params, cfg), atol=5e-3)


def test_norms_that_vary_too_much_stay(model):
    small = model(sandwich=True)
    new, cfg, errors = absorb(small.params, small.tokens, cfg=small.cfg, max_rel_err=0.0)
    assert cfg == small.cfg
    assert len(errors) == 4
    for name, x in norm_inputs(small.params, jnp.asarray(small.tokens), cfg=small.cfg):
        if "post" in name:
            r = np.sqrt((np.asarray(x, float) ** 2).mean(-1) + small.cfg.norm_eps)
            assert errors[name] == pytest.approx(r.var() / (r**2).mean(), rel=1e-3), name
    chex.assert_trees_all_equal(new, small.params)
    _, cfg, _ = absorb(small.params, small.tokens, cfg=small.cfg, max_rel_err=1.0)
    assert not any(x.norm_place == "sandwich" for x in cfg.layers)
    with pytest.raises(InputError, match="nothing to absorb"):
        absorb(model().params, small.tokens, cfg=model().cfg)
    with pytest.raises(InputError, match="stat"):
        absorb(small.params, small.tokens, cfg=small.cfg, stat="median")
