"""Meshes: sizes, axis types, the command line's form."""

import jax
import pytest
from jax.sharding import AxisType

from pangu_jax.core.errors import InputError
from pangu_jax.sharding.mesh import AXES, make_mesh, parse_mesh


def test_axes_have_one_set_of_names_and_are_auto():
    mesh = make_mesh(fsdp=4, tensor=2)
    assert mesh.axis_names == AXES
    assert dict(mesh.shape) == {"data": 1, "fsdp": 4, "tensor": 2, "expert": 1}
    assert mesh.axis_types == (AxisType.Auto,) * 4


def test_one_size_may_be_the_rest():
    assert make_mesh(data=-1, expert=2).shape["data"] == 4


def test_fewer_devices_may_be_named():
    assert make_mesh(tensor=2, devices=jax.devices()[:2]).size == 2


@pytest.mark.parametrize(
    ("sizes", "words"),
    [
        ({"data": 3}, "data 3 x fsdp 1 x tensor 1 x expert 1.*8 devices"),
        ({"data": -1, "fsdp": -1}, "at most one -1"),
        ({"data": 0, "fsdp": 8}, "must be positive"),
    ],
)
def test_sizes_that_do_not_fit_are_named(sizes, words):
    with pytest.raises(InputError, match=words):
        make_mesh(**sizes)


def test_the_command_line_form_reads_back():
    assert parse_mesh("fsdp=4,tensor=2") == {"fsdp": 4, "tensor": 2}
    assert parse_mesh("") == {}


@pytest.mark.parametrize(
    "text", ["fsdp", "fsdp=x", "rows=2", "fsdp=0", "fsdp=4;tensor=2", "fsdp=--2", "fsdp=²"]
)
def test_a_malformed_mesh_is_refused(text):
    with pytest.raises(InputError, match="must read like"):
        parse_mesh(text)
