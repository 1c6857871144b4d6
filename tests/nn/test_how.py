"""How a model is computed: what is unknown is refused, what is known can be a static argument."""

import chex
import jax
import jax.numpy as jnp
import pytest

from pangu_jax.core.errors import InputError
from pangu_jax.export.implementations import export_forms
from pangu_jax.nn import how as how_module
from pangu_jax.nn.how import HOW, OPERATORS, How, in_training


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (
            {"impl": {"atention": "cudnn"}},
            "an operator in impl must be one of attention, .*, got 'atention'",
        ),
        (
            {"impl": {"attention": "flash"}},
            "impl of attention must be one of reference, cudnn, cudnn_packed, got 'flash'",
        ),
        (
            {"impl": {"attention": ""}},
            "impl of attention must be one of reference, cudnn, cudnn_packed, got ''",
        ),
        ({"impl": {"attention": ["cudnn"]}}, "impl of attention must be one of reference"),
        ({"impl": "cudnn"}, "an implementation by operator, got 'cudnn'; known operators: att"),
        ({"layout": "fsdp"}, "layout must be a Layout or None, got 'fsdp'"),
        ({"remat": "some"}, "remat policy must be one of full, dots, got 'some'"),
        ({"unroll": 0}, "unroll"),
        ({"dtype": "float33"}, "'float33' is not a type of numbers"),
        ({"dtype": "int32"}, "must be of a float type, got int32"),
    ],
)
def test_what_is_unknown_is_refused(options, words):
    with pytest.raises(InputError, match=words):
        How(**options)


def test_equal_values_are_one_static_argument():
    cast = chex.assert_max_traces(lambda x, how: x.astype(how.dtype), 1)
    run = jax.jit(cast, static_argnames="how")
    impl = {"attention": "reference", "expert_mlp": "dense"}
    for how in (How(impl=impl, dtype="bfloat16"), How(impl=dict(impl), dtype=jnp.bfloat16)):
        assert run(jnp.ones(3), how=how).dtype == jnp.bfloat16
    assert How() == How(impl={}) == HOW != How(remat="full")


def test_every_operator_that_has_a_form_for_export_can_be_told():
    how = How(impl=export_forms())
    assert all(how.implementation(name) == form for name, form in export_forms().items())
    assert set(export_forms()) == set(OPERATORS)
    assert HOW.implementation("attention") is None


def test_training_on_a_gpu_has_no_loop_over_layers_unless_it_asks_for_one(monkeypatch):
    assert in_training(HOW) == HOW
    monkeypatch.setattr(how_module, "chip", lambda: "hopper")
    assert in_training(HOW).unroll == how_module.UNROLLED
    assert in_training(HOW, 3).unroll == 3
    assert in_training(How(unroll=1)) == How(unroll=1)
