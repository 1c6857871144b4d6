"""The whole method: one rank over all layers, and which activations later layers see."""

import chex
import numpy as np
import pytest

from pangu_jax.pruning import stats
from pangu_jax.pruning.allocate import Target
from pangu_jax.pruning.choose import group_scores
from pangu_jax.pruning.compress import compress, plan
from pangu_jax.pruning.fitted import repair
from pangu_jax.pruning.importance import channel_scores
from pangu_jax.pruning.prune import prune
from pangu_jax.pruning.recipe import Recipe


@pytest.mark.parametrize("share", [0.5, 0.1])
def test_a_global_rank_compares_layers_by_their_own_deviation_and_leaves_each_its_best(
    model, share
):
    small = model()
    for branch in small.params["runs"][0].values():  # layer 1 is larger in all: that says nothing
        for leaf in branch.values():
            if isinstance(leaf, dict):
                leaf["kernel"] = leaf["kernel"].at[1].multiply(5.0)
    found = stats.collect(small.params, small.tokens, cfg=small.cfg)
    recipe = Recipe(method="magnitude", allocation="global", repair="none")
    made = plan(found, Target(ffn=share, groups=share), recipe=recipe)
    for scorer, name, number in ((group_scores, "groups", 4), (channel_scores, "channels", 12)):
        ranked = []
        for layer, one in enumerate(found.layers):
            scores = scorer("magnitude", one)
            each = (scores - scores.mean()) / scores.std()
            ranked += [(x != each.max(), -x, layer, unit) for unit, x in enumerate(each)]
        kept = sorted(ranked)[: 2 * max(1, round(share * number))]
        for layer, part in enumerate(made.layers):
            assert getattr(part, name) == tuple(sorted(u for *_, i, u in kept if i == layer))


def test_dense_propagation_scores_every_layer_as_the_dense_model_has_it(model):
    small = model()
    target, plans = Target(ffn=0.5, groups=0.5), {}
    for propagate in ("dense", "pruned"):
        recipe = Recipe(method="wanda-sp", repair="none", propagate=propagate)
        plans[propagate] = compress(
            small.params, small.tokens, cfg=small.cfg, target=target, recipe=recipe
        ).plan
    found = stats.collect(small.params, small.tokens, cfg=small.cfg)
    dense = plan(found, target, recipe=recipe)
    assert plans["dense"].layers == dense.layers
    np.testing.assert_allclose(plans["dense"].scores[1].channels, dense.scores[1].channels)
    first, other = (np.array(plans[name].scores[1].channels) for name in plans)
    assert np.abs(first / other - 1).max() > 0.01
    assert plans["pruned"].scores[0].groups == plans["dense"].scores[0].groups


def test_random_scores_differ_from_layer_to_layer_and_by_the_seed(model):
    small = model()
    found = stats.collect(small.params, small.tokens, cfg=small.cfg)
    for allocation in ("equal", "global"):
        stayed, ranked = [], []
        for seed in (0, 1):
            recipe = Recipe(method="random", repair="none", seed=seed, allocation=allocation)
            made = plan(found, Target(ffn=0.5), recipe=recipe)
            assert made == plan(found, Target(ffn=0.5), recipe=recipe)
            stayed += [layer.channels for layer in made.layers]
            ranked += [layer.groups for layer in made.scores]
        assert len(set(stayed)) == len(set(ranked)) == 4


@pytest.mark.long
def test_a_model_pruned_by_a_plan_is_repaired_from_the_dense_statistics(model):
    small = model()
    target, recipe = Target(ffn=0.5, groups=0.5), Recipe(propagate="dense")
    want = compress(small.params, small.tokens, cfg=small.cfg, target=target, recipe=recipe)
    found = stats.collect(small.params, small.tokens, cfg=small.cfg)
    made = plan(found, target, recipe=recipe)
    pruned, cfg = prune(small.params, made, cfg=small.cfg)
    chex.assert_trees_all_close(repair(pruned, found, made, cfg=cfg)[0], want.params, rtol=1e-5)
