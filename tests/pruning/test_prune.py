"""Slicing: exactness, masks, groups that stay together, plans that are refused."""

import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pangu_jax.core.errors import InputError
from pangu_jax.core.spec import count
from pangu_jax.core.tree import flatten
from pangu_jax.models import decoder, transformer
from pangu_jax.nn.stack import split
from pangu_jax.pruning import allocate, axes, plan
from pangu_jax.pruning.compress import compress
from pangu_jax.pruning.plan import LayerPlan
from pangu_jax.pruning.plan_steps import compose
from pangu_jax.pruning.plan_steps import split as split_plan
from pangu_jax.pruning.prune import prune
from pangu_jax.pruning.recipe import Recipe


def pick(rng, number, keep):
    return tuple(np.sort(rng.permutation(number)[:keep]).tolist())


def random_plan(cfg, seed, *, hidden=None, layers=None, heads=None):
    """A plan whose layers all differ."""
    rng = np.random.default_rng(seed)
    base = plan.identity(cfg)
    parts = []
    for part in base.layers if layers is None else [base.layers[i] for i in layers]:
        size = base.sizes[part.layer]
        groups = pick(rng, size.groups, rng.integers(1, size.groups + 1))
        number = heads or size.heads
        each = tuple(pick(rng, size.heads, number) for _ in groups)
        channels = pick(rng, size.ffn, rng.integers(1, size.ffn))
        parts.append(LayerPlan(part.layer, groups, each, channels))
    kept = base.hidden if hidden is None else pick(rng, cfg.width, hidden)
    return dataclasses.replace(base, layers=tuple(parts), hidden=kept)


def masked(params, cfg, made):
    """The dense model in float64 numpy with rows of dropped units zero, RMS over kept channels.

    Written from the definition of the model: it shares no code with it.
    """
    get = lambda tree, name: np.asarray(flatten(tree)[name], np.float64)  # noqa: E731
    on = np.zeros(cfg.width)
    on[list(made.hidden)] = 1

    def norm(x, gain):
        x = x * on
        return x / np.sqrt((x**2).sum(-1, keepdims=True) / on.sum() + cfg.norm_eps) * gain * on

    layers = split(params["runs"])

    def forward(tokens):
        x = get(params, "embed/table")[tokens] * on
        length = len(tokens)
        for part in made.layers:
            w, a = layers[part.layer], cfg.layers[part.layer].attention
            z = norm(x, get(w, "attention_norm/scale"))
            half = a.head_dim // 2
            angle = np.arange(length)[:, None] * 10000.0 ** (-np.arange(half) / half)
            cos, sin = np.cos(angle), np.sin(angle)

            def turn(v, cos=cos, sin=sin, half=half):
                first, second = v[:, :half], v[:, half:]
                return np.concatenate([first * cos - second * sin, second * cos + first * sin], -1)

            for n, g in enumerate(part.groups):
                key = turn(z @ get(w, "attention/key/kernel")[:, g])
                value = z @ get(w, "attention/value/kernel")[:, g]
                for h in part.heads[n]:
                    query = turn(z @ get(w, "attention/query/kernel")[:, g, h])
                    scores = query @ key.T / np.sqrt(a.head_dim)
                    scores[np.triu_indices(length, 1)] = -np.inf
                    p = np.exp(scores - scores.max(-1, keepdims=True))
                    mixed = p / p.sum(-1, keepdims=True) @ value
                    x = x + mixed @ get(w, "attention/out/kernel")[g, h] * on
            z = norm(x, get(w, "mlp_norm/scale"))
            c = list(part.channels)
            gate = z @ get(w, "mlp/gate/kernel")[:, c]
            up = z @ get(w, "mlp/up/kernel")[:, c]
            x = x + (gate / (1 + np.exp(-gate)) * up) @ get(w, "mlp/down/kernel")[c] * on
        return norm(x, get(params, "norm/scale")) @ get(params, "head/kernel")

    return forward


def test_the_identity_plan_changes_no_bit(model):
    small = model(query_bias=True, qk_norm=True)
    params, cfg = prune(small.params, plan.identity(small.cfg), cfg=small.cfg)
    assert cfg == small.cfg
    chex.assert_trees_all_equal(params, small.params)
    assert count(params) == count(small.params)
    np.testing.assert_array_equal(small.logits(params), small.logits())


@pytest.mark.parametrize(("hidden", "heads"), [(None, None), (11, None), (9, 1)])
def test_slicing_equals_masking(model, hidden, heads):
    """Every axis at once, layers that differ from one another, and one layer gone."""
    small = model(layers=3)
    made = random_plan(small.cfg, 1, hidden=hidden, layers=[0, 2], heads=heads)
    params, cfg = prune(small.params, made, cfg=small.cfg)
    want = masked(small.params, small.cfg, made)
    found = small.logits(params, cfg)
    for row in range(2):
        np.testing.assert_allclose(found[row], want(small.tokens[row]), atol=1e-5)
    assert np.abs(found - small.logits()).max() > 0.1


@pytest.mark.parametrize("groups", [4, 1])
def test_a_unit_that_adds_nothing_can_go_without_a_trace(model, groups):
    heads = 8 // groups
    with jax.enable_x64(True):
        small = model(groups=groups, heads=heads, dtype=np.float64)
        run = small.params["runs"][0]
        out, down = run["attention"]["out"], run["mlp"]["down"]
        base = plan.identity(small.cfg)
        if groups > 1:
            out["kernel"] = out["kernel"].at[:, 2].set(0)
            parts = [
                dataclasses.replace(p, groups=(0, 1, 3), heads=p.heads[:3]) for p in base.layers
            ]
        else:
            out["kernel"] = out["kernel"].at[:, 0, 5].set(0)
            kept = tuple(h for h in range(8) if h != 5)
            parts = [dataclasses.replace(p, heads=(kept,)) for p in base.layers]
        down["kernel"] = down["kernel"].at[:, 7].set(0)
        channels = tuple(c for c in range(12) if c != 7)
        parts = tuple(dataclasses.replace(p, channels=channels) for p in parts)
        params, cfg = prune(small.params, dataclasses.replace(base, layers=parts), cfg=small.cfg)
        assert np.abs(small.logits(params, cfg) - small.logits()).max() < 1e-13


@pytest.mark.long
def test_a_strong_group_survives_whole(model):
    """Its key, value, query and out slices come from one original group."""
    small = model(groups=3, heads=2, seed=3, layers=1)
    run = small.params["runs"][0]
    for name in ("value", "out"):
        at = (slice(None), slice(None), 1) if name == "value" else (slice(None), 1)
        kernel = run["attention"][name]["kernel"]
        run["attention"][name]["kernel"] = kernel.at[at].multiply(10.0)
    for method in ("slimllm", "minitron", "taylor"):
        found = compress(
            small.params,
            small.tokens,
            cfg=small.cfg,
            target=allocate.Target(groups=1 / 3),
            recipe=Recipe(method=method, repair="none"),
        )
        assert [part.groups for part in found.plan.layers] == [(1,)], method
        attention = found.params["runs"][0]["attention"]
        for name, axis in (("query", 2), ("key", 2), ("value", 2), ("out", 1)):
            whole = np.take(np.asarray(run["attention"][name]["kernel"]), [1], axis)
            np.testing.assert_array_equal(attention[name]["kernel"], whole)


def test_every_leaf_with_a_named_axis_shrinks(model):
    small = model(query_bias=True, key_bias=True, value_bias=True, out_bias=True, qk_norm=True)
    made = random_plan(small.cfg, 5, hidden=10, heads=1)
    made = dataclasses.replace(
        made,
        layers=tuple(
            dataclasses.replace(p, groups=(0, 3), heads=((0,), (1,)), channels=(1, 5, 6))
            for p in made.layers
        ),
    )
    before = flatten(small.params)
    params, cfg = prune(small.params, made, cfg=small.cfg)
    new = {"kv_heads": 2, "q_per_kv": 1, "mlp": 3, "embed": 10}
    for axis, size in new.items():
        found = axes.leaves_along(decoder.spec(small.cfg), axis)
        assert found
        for path, dimensions in found.items():
            for dimension in dimensions:
                assert flatten(params)[path].shape[dimension] == size
                assert before[path].shape[dimension] > size
    assert len(transformer.run_lengths(cfg)) == 1


def test_donated_parameters_give_the_same_model(model):
    small = model()
    made = random_plan(small.cfg, 2)
    want, cfg = prune(small.params, made, cfg=small.cfg)
    want = jax.tree.map(np.array, want)
    found, _ = prune(jax.tree.map(jnp.copy, small.params), made, cfg=small.cfg, donate=True)
    chex.assert_trees_all_equal(found, want)


@pytest.mark.long
def test_a_plan_survives_json_and_splits_into_depth_and_width(model, tmp_path):
    small = model(layers=4)
    found = compress(
        small.params,
        small.tokens,
        cfg=small.cfg,
        target=allocate.parse("layers=3,ffn=0.6,groups=0.75,hidden=0.8"),
        recipe=Recipe(method="pangu-light", repair="none"),
    )
    assert any(part.moved for part in found.plan.layers)
    plan.save(found.plan, tmp_path / "plan.json")
    again = plan.load(tmp_path / "plan.json")
    assert again == found.plan
    params, cfg = prune(small.params, again, cfg=small.cfg)
    assert cfg == found.cfg
    chex.assert_trees_all_equal(params, found.params)
    depth, width = split_plan(again)
    whole = compose(depth, width)
    assert (whole.layers, whole.hidden) == (again.layers, again.hidden)
    assert plan.digest(params) == plan.digest(found.params) != plan.digest(small.params)


def test_what_is_no_plan_is_refused(model, tmp_path):
    cfg = model().cfg
    base = plan.identity(cfg)
    first = base.layers[0]
    for part, message in (
        (dataclasses.replace(first, channels=(1, 99)), "99 is not within"),
        (dataclasses.replace(first, channels=(1, 1)), "ascend without repeats"),
        (dataclasses.replace(first, channels=()), "nothing stays"),
        (dataclasses.replace(first, groups=(0, 1)), "heads must list"),
        (dataclasses.replace(first, heads=((0,), (0, 1), (0,), (0,))), "equally many"),
        (dataclasses.replace(first, groups=(2, 1, 0, 3)), "ascend"),
    ):
        with pytest.raises(InputError, match=message):
            dataclasses.replace(base, layers=(part, base.layers[1]))
    for moved, message in (
        (((5, 0),), "there is no group 0 of layer 5"),
        (((1, 4),), "there is no group 4 of layer 1"),
        (((1, 0), (1, 0)), "moved twice"),
    ):
        heads = first.heads[:1] * (len(first.groups) + len(moved))
        part = dataclasses.replace(first, moved=moved, heads=heads)
        with pytest.raises(InputError, match=message):
            dataclasses.replace(base, layers=(part,))
    with pytest.raises(InputError, match="layer 1 stays, so its groups cannot move"):
        part = dataclasses.replace(first, moved=((1, 0),), heads=first.heads[:1] * 5)
        dataclasses.replace(base, layers=(part, base.layers[1]))
    with pytest.raises(InputError, match="hidden"):
        dataclasses.replace(base, hidden=(0, 16))
    other = model(ffn=8)
    with pytest.raises(InputError, match=r"FFN 12.*FFN 8"):
        prune(other.params, base, cfg=other.cfg)
    with pytest.raises(InputError, match="another checkpoint"):
        plan.check_hash(dataclasses.replace(base, model_hash="0" * 16), model().params)
    (tmp_path / "plan.json").write_text("{}")
    with pytest.raises(InputError, match="lacks the field"):
        plan.load(tmp_path / "plan.json")
