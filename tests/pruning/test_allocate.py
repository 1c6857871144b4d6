"""Layer ratios, targets, widths."""

import dataclasses

import numpy as np
import pytest

from pangu_jax.core.errors import InputError
from pangu_jax.core.spec import count
from pangu_jax.models import decoder
from pangu_jax.pruning import allocate, axes
from pangu_jax.pruning.allocate import Limits, Target, layer_ratios, parse, shrink

SIMILAR = np.asarray([0.5, 0.9, 0.8, 0.95, 0.7, 0.85])
FREE = ("groups", "ffn")


def test_ratios_have_the_mean_follow_the_cosines_and_leave_layers_out():
    found = layer_ratios(SIMILAR, 0.25, number=4, alpha=10)
    assert found[[0, 4]].tolist() == [0, 0]
    assert found[found > 0].mean() == pytest.approx(0.25)
    pruned = [1, 2, 3, 5]
    order = np.argsort(SIMILAR[pruned])
    assert (np.diff(found[pruned][order]) > 0).all()
    weights = np.exp(10 * SIMILAR[pruned])
    np.testing.assert_allclose(found[pruned], 0.25 * 4 * weights / weights.sum())


@pytest.mark.parametrize("alpha", [0, 7, 50, 500])
def test_what_is_clamped_goes_to_the_others(alpha):
    found = layer_ratios(SIMILAR, 0.6, alpha=alpha, max_ratio=0.8)
    assert found.mean() == pytest.approx(0.6)
    assert found.max() <= 0.8 + 1e-12
    assert (np.diff(found[np.argsort(SIMILAR)]) >= -1e-12).all()
    with pytest.raises(InputError, match="exceeds"):
        layer_ratios(SIMILAR, 0.9, max_ratio=0.8)


@pytest.mark.parametrize("share", [0.9, 0.7, 0.5])
@pytest.mark.parametrize("equal", [True, False])
def test_a_parameter_target_is_met_within_one_unit(model, share, equal):
    cfg = model(groups=4, heads=2, ffn=48, width=32, layers=4).cfg
    small = shrink(cfg, Target(params=share), prunable_axes=FREE, limits=Limits(equal=equal))
    goal, found = share * axes.parameters(cfg), axes.parameters(small)
    unit = 3 * cfg.width * (len(cfg.layers) if equal else 1)
    assert goal - unit < found <= goal
    assert axes.parameters(cfg) == count(decoder.spec(cfg))
    if equal:
        assert len(set(small.layers)) == 1


def test_flops_are_counted_and_met(model):
    cfg = model(groups=4, heads=2, ffn=48, width=32, layers=3).cfg
    # By hand: q, k, v, o, gate, up, down, the head, and scores over half the context.
    layer = 2 * (32 * 32 + 2 * 32 * 16 + 32 * 32 + 3 * 32 * 48) + 2 * 100 * 32
    assert axes.flops(cfg, 100) == 3 * layer + 2 * 32 * 24
    assert decoder.cache_bytes(cfg) == 3 * 2 * 2 * 16
    small = shrink(cfg, Target(flops=0.7), prunable_axes=FREE, limits=Limits(length=100))
    ratio = axes.flops(small, 100) / axes.flops(cfg, 100)
    assert 0.7 - 3 * 6 * 32 / axes.flops(cfg, 100) < ratio <= 0.7


def test_axes_take_their_own_shares(model):
    cfg = model(groups=4, heads=2, ffn=48, width=32, layers=4).cfg
    target = parse("ffn=0.5,groups=0.75,heads=0.5,hidden=0.75,layers=3")
    small = shrink(cfg, target, prunable_axes=FREE, kept=[0, 1, 3])
    assert (len(small.layers), small.width) == (3, 24)
    assert set(map(axes.sizes, small.layers)) == {axes.Sizes(3, 1, 24)}
    assert parse(str(target)) == target
    same = shrink(cfg, Target(params=1.0), prunable_axes=FREE)
    assert same == cfg


def test_limits_hold(model):
    cfg = model(groups=4, heads=2, size=4, ffn=48, width=32, layers=2).cfg
    for share in (0.9, 0.6, 0.4):
        limits = Limits(multiple=16, heads_divide=True)
        for layer in shrink(cfg, Target(params=share), prunable_axes=FREE, limits=limits).layers:
            size = axes.sizes(layer)
            assert 32 % (size.groups * size.heads) == 0
            assert size.ffn % 16 == 0
    biased = shrink(cfg, Target(params=0.8), prunable_axes=FREE, biased=True)
    layers = tuple(
        dataclasses.replace(
            x,
            attention=dataclasses.replace(x.attention, out_bias=True),
            mlp=dataclasses.replace(x.mlp, out_bias=True),
        )
        for x in biased.layers
    )
    whole = dataclasses.replace(biased, layers=layers)
    assert axes.parameters(whole) <= 0.8 * axes.parameters(cfg)


def test_wide_layers_keep_multiples_of_16_unless_told_otherwise(model):
    wide = model(ffn=320, width=64, layers=1).cfg
    for limits, step in ((Limits(), 16), (Limits(multiple=64), 64), (Limits(multiple=1), 1)):
        (layer,) = shrink(wide, Target(params=0.77), prunable_axes=("ffn",), limits=limits).layers
        channels = axes.sizes(layer).ffn
        assert channels % step == 0 and limits.step(320) == step
        assert (channels % 16 == 0) == (step > 1)
    assert Limits().step(255) == Limits().step(256, 257) == Limits(multiple=64).step(100) == 1


def test_targets_that_make_no_sense_are_refused(model):
    cfg = model().cfg
    with pytest.raises(InputError, match=r"params=0\.1 cannot be met.*leaves 0\."):
        shrink(cfg, Target(params=0.1), prunable_axes=FREE)
    for text, message in (
        ("params=0.5,flops=0.5", "not both"),
        ("size=3", "not one of"),
        ("params=x", "a number"),
        ("params=nan", "finite"),
        ("ffn=0", r"\(0, 1\]"),
        ("params=1.5", r"\(0, 1\]"),
        ("ffn=0.5,ffn=0.9", "given twice"),
    ):
        with pytest.raises(InputError, match=message):
            allocate.parse(text)


def test_layers_are_equal_unless_told_otherwise_and_a_goal_may_be_met_exactly(model):
    cfg = model(groups=4, heads=1, ffn=48, width=32, layers=2).cfg
    found = [
        shrink(cfg, Target(params=0.71), prunable_axes=FREE, **more)
        for more in ({}, {"limits": Limits(equal=False)})
    ]
    assert [len(set(small.layers)) for small in found] == [1, 2]
    half = shrink(cfg, Target(groups=0.5), prunable_axes=())
    share = axes.parameters(half) / axes.parameters(cfg)
    assert share * axes.parameters(cfg) == axes.parameters(half)
    assert shrink(cfg, Target(params=share), prunable_axes=("groups",)) == half
