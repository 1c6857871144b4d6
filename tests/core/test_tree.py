"""Names of leaves."""

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pangu_jax.core.errors import InputError
from pangu_jax.core.tree import (
    check_all_finite,
    check_finite,
    content_hash,
    flatten,
    join,
    map_named,
    path_name,
    select,
    split,
)


@flax.struct.dataclass
class State:
    params: dict
    step: int


TREE = {"runs": [{"norm": 1, "attention": {"key": 2}}, {"norm": 3}], "embed": (4, None)}


def test_paths_follow_the_tree_in_its_own_order():
    flat = flatten(TREE)
    assert flat == {
        "embed/0": 4,
        "runs/0/attention/key": 2,
        "runs/0/norm": 1,
        "runs/1/norm": 3,
    }
    assert list(flat.values()) == jax.tree.leaves(TREE)


def test_dataclass_fields_are_names():
    assert flatten(State({"a": 1}, 2)) == {"params/a": 1, "step": 2}


def test_a_leaf_alone_has_the_empty_name():
    assert flatten(5) == {"": 5}
    assert path_name(()) == ""


def test_is_leaf_stops_the_walk():
    found = flatten(TREE, is_leaf=lambda node: isinstance(node, list))
    assert list(found) == ["embed/0", "runs"]


def test_select_matches_whole_paths():
    assert select(TREE, r"runs/\d+/norm") == {"runs/0/norm": 1, "runs/1/norm": 3}
    assert select(TREE, "norm") == {}
    assert select(TREE, ".*key") == {"runs/0/attention/key": 2}


def test_map_named_gives_path_and_leaves():
    tree = {"a": [np.ones(2), np.zeros(2)]}
    out = map_named(lambda name, x, y: (name, x.sum() + y.sum()), tree, tree)
    assert out == {"a": [("a/0", 4.0), ("a/1", 0.0)]}


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
@pytest.mark.parametrize("value", [np.nan, -np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_named(dtype, value):
    array = np.full((3, 2**17), jnp.finfo(dtype).max, dtype)
    array[0, :2] = jnp.finfo(dtype).tiny, -jnp.finfo(dtype).max
    check_finite("ok", array)
    check_finite("ok", np.zeros((), dtype))
    check_finite("ok", np.zeros((0, 3), dtype))
    array[2, -1] = value
    ours = [] if dtype == "float64" else [jnp.asarray(array)]
    for same in (array, array.T, array[2, -1:], *ours):
        with pytest.raises(InputError, match=r"^file: weight holds NaN or infinity$"):
            check_finite("file: weight", same)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_are_refused_by_name(value):
    good = {"a": np.float64(1e300) * np.ones(2), "b": [jnp.ones(3, jnp.bfloat16), jnp.int32(3)]}
    check_all_finite(good, "x")
    for bad in (np.array([1, value]), jnp.array([[value, 0]], jnp.bfloat16)):
        with pytest.raises(InputError, match="x: b/2 holds NaN or infinity"):
            check_all_finite({**good, "b": [*good["b"], bad]}, "x")


def test_a_tree_that_is_split_by_paths_is_joined_again():
    tree = {"a": {"kernel": 1, "bias": 2}, "runs": [{"kernel": 3}, (4, {"kernel": 5})]}
    chosen, others = split(tree, ".*/kernel")
    assert flatten(chosen) == {"a/kernel": 1, "runs/0/kernel": 3, "runs/1/1/kernel": 5}
    assert flatten(others) == {"a/bias": 2, "runs/1/0": 4}
    assert join(chosen, others) == join(others, chosen) == tree
    everything, nothing = split(tree, None)
    assert everything == tree and not jax.tree.leaves(nothing)
    assert join(everything, nothing) == tree
    with pytest.raises(InputError, match=r"'kernel' matches no .*; there are a/bias, a/kernel, "):
        split(tree, "kernel")
    with pytest.raises(InputError, match=r"'\(' is no regular expression"):
        split(tree, "(")


def test_a_tree_is_known_by_its_content():
    tree = {"a": np.arange(6, dtype=np.int32).reshape(2, 3), "b": [jnp.ones(2, jnp.bfloat16)]}
    known = content_hash(tree)
    assert len(known) == 64
    same = {"b": [np.asarray(tree["b"][0])], "a": np.asfortranarray(tree["a"])}
    assert content_hash(same) == known
    for other in ({"a": tree["a"] + 1}, {"a": tree["a"].reshape(3, 2)}, {"c": np.float32(0)},
                  {"a": tree["a"].astype(np.uint32)},
                  {"b": [jnp.zeros(2, jnp.bfloat16)]}):  # fmt: skip
        assert content_hash({**tree, **other}) != known
