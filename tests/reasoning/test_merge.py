"""Merges of parameters, beside plain loops written from mergekit's definitions."""

import chex
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from pangu_jax.core.errors import InputError
from pangu_jax.core.spec import Spec, ones
from pangu_jax.reasoning import merge as merging
from pangu_jax.reasoning.merge import merge, merge_tensors
from pangu_jax.reasoning.merge_recipe import FROM_BASE, Recipe

RNG = np.random.default_rng(0)
SHAPES = {"a": (5, 7), "b": {"c": (3, 4, 2), "d": (6,)}}
WEIGHTS = (0.5, 1.5, 0.2)


def tree(scale=1.0):
    def made(shape):
        return (scale * RNG.normal(size=shape)).astype(np.float32)

    return jax.tree.map(made, SHAPES, is_leaf=lambda x: isinstance(x, tuple))


BASE = tree()
TREES = [jax.tree.map(lambda b, x: b + x, BASE, tree(0.1)) for _ in range(3)]


def naive(method, base, arrays, weights, scale, density):
    """One tensor, value by value."""
    shape, flat = np.shape(arrays[0]), [np.ravel(x).tolist() for x in arrays]
    size = len(flat[0])
    if method == "mean":
        found = [
            sum(w * x[i] for w, x in zip(weights, flat, strict=True)) / sum(weights)
            for i in range(size)
        ]
        return np.reshape(found, shape)
    if method == "slerp":
        a, b = flat
        lengths = [sum(x * x for x in v) ** 0.5 for v in flat]
        cosine = sum(x * y for x, y in zip(a, b, strict=True)) / lengths[0] / lengths[1]
        angle = np.arccos(cosine)
        one, two = (
            np.sin((1 - scale) * angle) / np.sin(angle),
            np.sin(scale * angle) / np.sin(angle),
        )
        if abs(cosine) > 0.9995:
            one, two = 1 - scale, scale
        return np.reshape([one * x + two * y for x, y in zip(a, b, strict=True)], shape)
    origin = np.ravel(base).tolist()
    changes = [np.subtract(np.ravel(x), np.ravel(base)).tolist() for x in arrays]
    if method == "ties":
        for change in changes:
            order = sorted(range(size), key=lambda i: -abs(change[i]))
            for i in order[max(1, int(density * size)) :]:
                change[i] = 0.0
    found = []
    for i in range(size):
        terms = [(w, w * change[i]) for w, change in zip(weights, changes, strict=True)]
        if method == "ties":
            plus = sum(x for _, x in terms) >= 0
            terms = [(w, x) for w, x in terms if x != 0 and (x > 0) == plus]
            divisor = sum(w for w, _ in terms) or 1.0
        else:
            divisor = 1.0
        found.append(origin[i] + scale * sum(x for _, x in terms) / divisor)
    return np.reshape(found, shape)


@pytest.mark.parametrize("method", ["mean", "task_arithmetic", "slerp", "ties"])
@pytest.mark.parametrize("scale", [1.0, 0.7])
def test_each_rule_is_the_plain_loop(method, scale):
    scale = 1.0 if method == "mean" else scale
    trees = TREES[:2] if method == "slerp" else TREES
    weights = None if method == "slerp" else WEIGHTS
    base = BASE if method in FROM_BASE else None
    found = merge(trees, Recipe(method, scale, 0.4, weights), base=base)
    for (path, got), b, *leaves in zip(
        merging.flatten(found).items(), *map(jax.tree.leaves, (BASE, *trees)), strict=True
    ):
        want = naive(method, b, leaves, weights, scale, 0.4)
        np.testing.assert_allclose(got, want, rtol=0, atol=1e-6, err_msg=path)
        assert got.dtype == np.float32


def test_the_older_name_of_a_rule_is_known():
    assert Recipe("delta", 0.5) == Recipe("task_arithmetic", 0.5)


@pytest.mark.parametrize(("density", "factor"), [(None, "norm"), (0.3, "share")])
def test_dare_keeps_what_the_mask_says_and_makes_up_for_the_rest(density, factor):
    base, arrays = BASE["a"], [t["a"] for t in TREES]
    masks = [RNG.random(base.shape) < 0.3 for _ in arrays]
    kept = []
    for x, mask in zip(arrays, masks, strict=True):
        change = x.astype(float) - base
        up = 1 / 0.3 if factor == "share" else abs(change).sum() / abs(change[mask]).sum()
        kept.append(base + np.where(mask, change * up, 0))
    want = naive("task_arithmetic", base, kept, WEIGHTS, 0.7, None)
    found = merging.dare(base, arrays, masks=masks, density=density, weights=WEIGHTS, scale=0.7)
    np.testing.assert_allclose(found, want, rtol=0, atol=1e-6)


def test_what_dare_drops_depends_on_the_seed_the_model_and_the_tensor_alone():
    base, ups = np.zeros(2000, np.float32), [np.ones(2000, np.float32)] * 2

    def one(seed, name):
        recipe = Recipe("dare", density=0.25, rescale="density", seed=seed)
        return merge_tensors(ups, recipe, base=base, name=name)

    assert (one(0, "x") == one(0, "x")).all()
    assert (one(0, "x") != one(1, "x")).any() and (one(0, "x") != one(0, "y")).any()
    # Each value is 4 in a quarter of the cases, for each model: 0, 2 or 4 in the mean.
    shares = [float((one(0, "x") == v).mean()) for v in (0, 2, 4)]
    np.testing.assert_allclose(shares, [9 / 16, 6 / 16, 1 / 16], atol=0.04)


def test_of_a_sum_of_zero_ties_elects_plus():
    base, arrays = np.zeros(1, np.float32), [np.float32([x]) for x in (1, -3, 2)]
    assert merging.ties(base, arrays, density=1.0) == 1.5


def test_a_scale_of_one_is_the_mean_and_of_zero_the_base_bitwise():
    base = {"x": np.float32([-0.0, 1, 2])}
    trees = [{"x": np.float32([1, 2, v])} for v in (3, 4, 5)]
    same = merge(trees, Recipe("task_arithmetic"), base=base)["x"]
    np.testing.assert_allclose(same, merge(trees, Recipe("mean"))["x"], atol=1e-6)
    for method in FROM_BASE:
        found = merge(trees, Recipe(method, 0.0), base=base)["x"]
        assert found.tobytes() == base["x"].tobytes()


@pytest.mark.parametrize("method", ["mean", "task_arithmetic"])
def test_the_order_of_the_trees_changes_nothing(method):
    base = BASE if method == "task_arithmetic" else None
    one = merge(TREES, Recipe(method), base=base)
    two = merge(TREES[::-1], Recipe(method), base=base)
    chex.assert_trees_all_equal(one, two)


def test_types_ties_and_counts_are_kept():
    half = [jnp.bfloat16(v) * jnp.ones(3, jnp.bfloat16) for v in (1.0, 1.0078125, 1.0078125)]
    trees = [{"in": x, "out": x, "step": jnp.int32(i)} for i, x in enumerate(half)]
    found = merge(trees, Recipe("mean"))
    # Summed in bfloat16 it would be 1.0: 3.015625 is none.
    assert found["in"].dtype == ml_dtypes.bfloat16 and float(found["in"][0]) == 1.0078125
    assert found["in"] is found["out"] and found["step"] == 2


def test_nearly_parallel_opposite_and_empty_tensors_have_an_arc():
    a = np.float32([1, 2, 3])
    for b in (a * 1.001, -a, np.zeros(3, np.float32)):
        np.testing.assert_allclose(merging.slerp(a, b, t=0.25), 0.75 * a + 0.25 * b, atol=0.9)
    np.testing.assert_allclose(merging.slerp(a, -a, t=0.25), 0.5 * a)
    assert np.isfinite(merging.slerp(a * 0, a * 0, t=0.5)).all()


def test_layers_and_experts_are_tensors_of_their_own():
    axes = ("layers", "group", "expert", "embed")
    spec = {"runs": [{"x": Spec((2, 1, 2, 6), axes, ones)}], "y": Spec((6,), ("embed",), ones)}

    def made():
        x, y = (RNG.normal(size=size).astype(np.float32) for size in ((2, 1, 2, 6), 6))
        return {"runs": [{"x": x}], "y": y}

    base, *trees = made(), made(), made()
    for recipe, origin in ((Recipe("ties", density=0.5), base), (Recipe("slerp", 0.3), None)):
        found = merge(trees, recipe, base=origin, spec=spec)
        for at in np.ndindex(2, 1, 2):
            parts = [t["runs"][0]["x"][at] for t in trees]
            part = None if origin is None else base["runs"][0]["x"][at]
            want = merge_tensors(parts, recipe, base=part, name="x")
            np.testing.assert_array_equal(found["runs"][0]["x"][at], want)


@pytest.mark.parametrize(
    ("trees", "options", "base", "message"),
    [
        (TREES[:1], {"method": "mean"}, None, "at least two models, got 1"),
        (TREES, {"method": "slerp"}, None, "slerp is between two models, got 3"),
        (TREES, {"method": "ties"}, None, "method ties takes a base"),
        (TREES, {"method": "mean"}, BASE, "method mean takes no base"),
        (TREES, {"method": "mean", "weights": (1.0,)}, None, "there are 1 weights for 3 models"),
        (TREES, {"method": "mean", "weights": (1.0, -1.0, 0.0)}, None, "add up to more than 0"),
        (TREES, {"method": "mean", "scale": 0.5}, None, "a mean has no scale"),
        (
            TREES,
            {"method": "task_arithmetic", "scale": float("nan")},
            BASE,
            "scale must be at least 0",
        ),
        (TREES[:2], {"method": "slerp", "scale": 1.5}, None, "for slerp at most 1; got 1.5"),
        (TREES, {"method": "ties", "density": 0.0}, BASE, "density must be above 0"),
        (
            TREES,
            {"method": "best"},
            None,
            "method must be one of mean, task_arithmetic, slerp, ties, dare, delta, got 'best'",
        ),
        ([TREES[0], {**TREES[1], "a": np.ones(2)}], {"method": "mean"}, None, "a has shape"),
        ([TREES[0], {"a": TREES[1]["a"]}], {"method": "mean"}, None, "tree 2 lacks b/c"),
        (
            [{"x": np.float16([60000])}, {"x": np.float16([65000])}],
            {"method": "task_arithmetic", "scale": 3.0},
            {"x": np.float16([1])},
            r"x\[\] has values beyond the range of float16",
        ),
    ],
)
def test_what_cannot_be_merged_is_one_sentence(trees, options, base, message):
    with pytest.raises(InputError, match=message):
        merge(trees, Recipe(**options), base=base)
