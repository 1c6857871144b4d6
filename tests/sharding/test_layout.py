"""Layouts: rule tables to shardings, constraints, sharded initialization."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from pangu_jax.core.errors import InputError
from pangu_jax.core.spec import Normal, Spec
from pangu_jax.core.spec import init as init_leaves
from pangu_jax.sharding.layout import (
    Layout,
    batch_sharding,
    constrain,
    init,
    shardings,
    whole,
)
from pangu_jax.sharding.mesh import make_mesh
from pangu_jax.sharding.rules import Rules, preset


def layout(rules, **sizes):
    return Layout(make_mesh(**sizes), preset(rules))


def partition(axes, shape, where):
    return shardings({"x": Spec(shape, axes)}, where)["x"].spec


def test_presets_join_and_split_the_batch_over_all_their_axes():
    rules = preset("fsdp+tensor+expert")
    assert rules.activations["batch"] == ("data", "fsdp", "expert")
    assert rules.params["embed"] == ("fsdp",)
    assert rules.params["expert_mlp"] == ("tensor", "expert")
    assert rules.params["group"] == ("expert",)
    with pytest.raises(InputError, match="unknown sharding rules 'zero'"):
        preset("fsdp+zero")


@pytest.mark.parametrize("names", ["fsdp", ("fsdp", "tensr")])
def test_rules_refuse_a_mesh_axis_that_there_is_not(names):
    with pytest.raises(InputError, match="split embed over must be one of data, fsdp, tensor, exp"):
        Rules({"embed": names}, {})
    with pytest.raises(InputError, match="logical axis of the rules must be one of batch"):
        Rules({}, {"bach": ("data",)})


def test_layouts_are_hashable_so_that_jit_takes_them_as_static():
    one, same = layout("fsdp+tensor", fsdp=4, tensor=2), layout("tensor+fsdp", fsdp=4, tensor=2)
    assert one == same
    assert hash(one) == hash(same)
    assert one != layout("fsdp", fsdp=4, tensor=2)


def test_parameters_split_by_their_axes():
    where = layout("fsdp+tensor", fsdp=4, tensor=2)
    assert partition(("embed", "mlp"), (8, 6), where) == P(("fsdp",), ("tensor",))
    assert partition(("vocab", "embed"), (10, 8), where) == P(("tensor",), ("fsdp",))


def test_a_mesh_axis_serves_one_dimension_and_the_next_takes_what_the_first_cannot():
    where = layout("tensor", data=2, tensor=4)
    axes = ("embed", "kv_heads", "q_per_kv", "head_dim")
    assert partition(axes, (8, 4, 4, 2), where) == P(None, ("tensor",), None, None)
    assert partition(axes, (8, 2, 4, 2), where) == P(None, None, ("tensor",), None)
    experts = layout("expert", expert=8)
    axes = ("group", "expert", "embed", "expert_mlp")
    assert partition(axes, (8, 2, 4, 16), experts) == P(("expert",), None, None, None)
    assert partition(axes, (1, 16, 4, 16), experts) == P(None, None, None, ("expert",))


def test_what_does_not_divide_is_whole_and_reported():
    where = layout("tensor", data=2, tensor=4)
    spec = {"a": {"kernel": Spec((8, 6), ("embed", "mlp"))}}
    assert shardings(spec, where)["a"]["kernel"].spec == P(None, None)
    assert whole(spec, where) == ["a/kernel: mlp of 6 is not split into 4"]


def test_constrain_splits_activations_and_is_nothing_without_a_layout():
    where = layout("fsdp+tensor", fsdp=4, tensor=2)
    x = jnp.ones((8, 3, 4))
    assert constrain(x, ("batch", "length", "mlp"), None) is x
    y = jax.jit(lambda x: constrain(x, ("batch", "length", "mlp"), where))(x)
    assert y.sharding.spec == P("fsdp", None, "tensor")
    odd = jax.jit(lambda x: constrain(x, ("batch", "length", "mlp"), where))(jnp.ones((3, 3, 4)))
    assert odd.sharding.spec == P(None, None, "tensor")
    assert batch_sharding((8, 5), where).spec == P(("fsdp",), None)


def test_initial_values_do_not_depend_on_the_layout_and_are_truly_split():
    spec = {"w": Spec((16, 8), ("embed", "mlp"), Normal(1.0)), "b": Spec((8,), ("mlp",))}
    where = layout("fsdp+tensor", fsdp=4, tensor=2)
    split = init(spec, key=jax.random.key(3), layout=where)
    plain = init_leaves(spec, key=jax.random.key(3))
    np.testing.assert_array_equal(split["w"], plain["w"])
    assert [s.data.shape for s in split["w"].addressable_shards] == [(4, 4)] * 8
