"""Specs: initial values, counts, bytes, checks."""

import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from pangu_jax.core import spec as specs
from pangu_jax.core.errors import InputError
from pangu_jax.core.spec import Constant, Normal, Spec, abstract, check, count, init, nbytes
from pangu_jax.core.tree import flatten, map_named

KEY = jax.random.key(0)
SPEC = {
    "embed": {"table": Spec((40, 50), ("vocab", "embed"), Normal(0.02))},
    "runs": [
        {"scale": Spec((3, 8), ("layers", "embed"), specs.ones)},
        {"kernel": Spec((2, 40, 50), ("layers", None, "mlp"), Normal(0.02))},
    ],
    "bias": Spec((), ()),
    "start": Spec((4,), ("state",), Constant(-1.5), jnp.bfloat16),
}


def test_shapes_and_axes_agree_or_the_spec_is_refused():
    with pytest.raises(ValueError, match=r"shape \(2, 3\) and axes \('embed',\) differ in length"):
        Spec((2, 3), ("embed",))
    with pytest.raises(InputError, match="logical axis must be one of batch, length, embed"):
        Spec((3,), ("embd",))


def test_initial_values():
    params = init(SPEC, key=KEY)
    assert jax.tree.structure(params) == jax.tree.structure(SPEC, is_leaf=specs.is_spec)
    for name, leaf in flatten(params).items():
        wanted = flatten(SPEC)[name]
        assert (leaf.shape, leaf.dtype) == (wanted.shape, wanted.dtype), name
    assert np.all(params["runs"][0]["scale"] == 1)
    assert params["bias"] == 0
    assert np.all(params["start"] == -1.5)
    table = np.asarray(params["embed"]["table"])
    # 2000 draws: the mean is within 4 standard errors, the deviation within 10 %.
    assert abs(table.mean()) < 4 * 0.02 / 2000**0.5
    assert abs(table.std() / 0.02 - 1) < 0.1


def test_a_leaf_depends_on_key_and_path_alone():
    whole = init(SPEC, key=KEY)
    part = init({"embed": SPEC["embed"]}, key=KEY)
    np.testing.assert_array_equal(whole["embed"]["table"], part["embed"]["table"])
    again = jax.jit(lambda key: init(SPEC, key=key))(KEY)
    chex.assert_trees_all_close(again, whole, rtol=1e-6)
    other = init(SPEC, key=jax.random.key(1))
    twin = init({"embed": {"tables": SPEC["embed"]["table"]}}, key=KEY)
    for table in (other["embed"]["table"], twin["embed"]["tables"]):
        assert abs(np.corrcoef(np.ravel(table), np.ravel(whole["embed"]["table"]))[0, 1]) < 0.1


@pytest.mark.parametrize("dtype", [jnp.bfloat16, "bfloat16", np.dtype("float32")])
def test_another_storage_type_rounds_the_same_draws(dtype):
    params = init(SPEC, key=KEY, dtype=dtype)
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype(dtype)}
    exact = init(SPEC, key=KEY)
    chex.assert_trees_all_equal(params, jax.tree.map(lambda leaf: leaf.astype(dtype), exact))


def test_values_do_not_depend_on_the_sharding():
    mesh = jax.make_mesh((8,), ("fsdp",), axis_types=(jax.sharding.AxisType.Auto,))
    where = map_named(
        lambda name, s: NamedSharding(
            mesh, PartitionSpec("fsdp" if name == "embed/table" else None)
        ),
        SPEC,
    )
    where = map_named(
        lambda name, s, w: NamedSharding(mesh, PartitionSpec()) if s.shape == () else w, SPEC, where
    )
    params = jax.jit(lambda key: init(SPEC, key=key), out_shardings=where)(KEY)
    table = params["embed"]["table"]
    assert {s.data.shape for s in table.addressable_shards} == {(5, 50)}
    expected = init(SPEC, key=KEY)["embed"]["table"]
    np.testing.assert_allclose(table, expected, rtol=1e-6)


def test_counts_are_exact_integers():
    assert count(SPEC) == 2000 + 24 + 4000 + 1 + 4
    assert count(init(SPEC, key=KEY)) == count(SPEC)
    assert count({}) == 0
    huge = Spec((3, 2**40, 2**40), (None, None, None))
    assert count(huge) == 3 * 2**80


def test_bytes_follow_the_types():
    assert nbytes(SPEC) == 4 * (2000 + 24 + 4000 + 1) + 2 * 4
    assert nbytes(SPEC, jnp.bfloat16) == 2 * count(SPEC)
    assert nbytes(init(SPEC, key=KEY)) == nbytes(SPEC)
    assert nbytes(abstract(SPEC, jnp.int8)) == count(SPEC)


def test_abstract_has_shapes_and_no_memory():
    huge = {"a": Spec((2**40, 2**20), (None, "embed"))}
    assert abstract(huge)["a"] == jax.ShapeDtypeStruct((2**40, 2**20), jnp.float32)
    assert abstract(huge, jnp.bfloat16)["a"].dtype == jnp.bfloat16


def test_stack_puts_layers_first():
    leaf = specs.stack(SPEC["embed"], 5)["table"]
    assert leaf.shape == (5, 40, 50)
    assert leaf.axes == ("layers", "vocab", "embed")
    assert (
        dataclasses.replace(leaf, shape=(40, 50), axes=("vocab", "embed")) == SPEC["embed"]["table"]
    )


def test_check_returns_what_fits():
    params = init(SPEC, key=KEY)
    assert check(SPEC, params) is params
    assert check(SPEC, abstract(SPEC, jnp.bfloat16)) is not None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda p: p.pop("bias"), r"^a\.npz lack bias of shape \(\)$"),
        (lambda p: p["runs"].pop(), r"^a\.npz lack runs/1/kernel of shape \(2, 40, 50\)$"),
        (lambda p: p.update(bias=None), r"^a\.npz lack bias"),
        (lambda p: p["embed"].update(extra=np.zeros(2)), r"a\.npz have a leaf embed/extra that"),
        (
            lambda p: p["runs"][0].update(scale=np.zeros((8, 3))),
            r"^a\.npz: runs/0/scale has shape \(8, 3\), the configuration says \(3, 8\)$",
        ),
        (lambda p: p.update(bias=np.zeros((1,))), r"bias has shape \(1,\), .* says \(\)"),
    ],
)
def test_check_names_the_leaf(change, message):
    params = jax.tree.map(np.asarray, init(SPEC, key=KEY))
    change(params)
    with pytest.raises(InputError, match=message):
        check(SPEC, params, "a.npz")
