"""At least 500 random programs: what lowers matches numpy, what does not says so."""

import collections
import importlib.util
import sys
from pathlib import Path

import jax
import jax.extend.core as jex
import numpy as np
import pytest

from pangu_jax.export.onnx.graph import Unsupported
from pangu_jax.export.onnx.model import convert, load_onnx, to_model

_folder = Path(__file__).with_name("programs")
_spec = importlib.util.spec_from_file_location(
    "random_programs", _folder / "__init__.py", submodule_search_locations=[str(_folder)]
)
programs = importlib.util.module_from_spec(_spec)
sys.modules["random_programs"] = programs  # where its own files look for one another
_spec.loader.exec_module(programs)

pytestmark = pytest.mark.onnx
COUNT, PARTS = 510, 6
OFTEN = "dot_general conv_general_dilated gather pad reduce_sum select_n transpose reshape slice"
OFTEN = [*OFTEN.split(), "sort", "scan", "dynamic_update_slice"]


def run(model, inputs):
    import onnxruntime

    session = onnxruntime.InferenceSession(model.SerializeToString())
    takes = {i.name for i in session.get_inputs()}
    names = [o.name for o in session.get_outputs()]
    given = {n: np.asarray(x) for n, x in inputs.items() if n in takes}
    return dict(zip(names, session.run(names, given), strict=True))


def check(program):
    """The primitives the program used, after its graph was compared with numpy."""
    onnx = load_onnx()
    inputs = program.arguments()
    lowered = convert(program.function, {}, inputs)
    model = to_model(lowered)
    onnx.checker.check_model(model, full_check=True)
    found = run(model, inputs)
    for number in program.results:
        wanted, got = program.values[number], found[f"r{number}"]
        assert got.shape == wanted.shape
        if wanted.dtype.kind in "ib":
            assert got.dtype.kind == wanted.dtype.kind
            np.testing.assert_array_equal(got, wanted)
        else:
            error = np.abs(got - wanted).max(initial=0)
            assert error <= 3e-5 * program.peak, (error, program.peak)
    closed = jax.make_jaxpr(lambda x: program.function({}, **x))(inputs)
    return collections.Counter(names(closed.jaxpr))


def names(jaxpr):
    """The primitives of a program and of the functions it calls: jnp.sort, say, is one."""
    for eqn in jaxpr.eqns:
        yield eqn.primitive.name
        for inner in jex.jaxprs_in_params(eqn.params):
            yield from names(inner)


@pytest.mark.long(but=1)
@pytest.mark.parametrize("part", range(PARTS))
def test_random_programs_match_numpy(part):
    used, depths = collections.Counter(), []
    for seed in range(part, COUNT, PARTS):
        program = programs.random_program(seed)
        try:
            used += check(program)
        except Exception as error:
            raise AssertionError(f"program {seed}: {error}") from error
        depths.append(len(program.steps))
    assert min(depths) >= 3
    assert max(depths) >= 12
    for name in OFTEN:
        assert used[name] >= 3, (name, used)


UNSUPPORTED = {
    "while": lambda x: jax.lax.while_loop(lambda c: c.sum() < 9.0, lambda c: c + 1, x),
    "scatter-add": lambda x: x.at[np.array([0, 0])].add(1.0),
    "lgamma": jax.lax.lgamma,
    "random": lambda x: x + jax.random.normal(jax.random.key(3), x.shape),
    "ragged_dot_general": lambda x: jax.lax.ragged_dot(
        x.reshape(2, 2), x.reshape(1, 2, 2), np.array([2], np.int32)
    ),
    "cumlogsumexp": lambda x: jax.lax.cumlogsumexp(x),
    "and": lambda x: x.astype(int) & 3,
    "sort": lambda x: jax.lax.sort((x, x), num_keys=2)[0],
    "reduce_precision": lambda x: jax.lax.reduce_precision(x, 5, 10),
}


@pytest.mark.parametrize("name", UNSUPPORTED)
def test_what_has_no_form_is_named_with_its_source_line(name):
    with pytest.raises(Unsupported) as error:
        convert(lambda p, x: {"y": UNSUPPORTED[name](x)}, {}, {"x": np.ones(4, np.float32)})
    assert "test_random_programs.py:" in str(error.value)
    assert name.split("_general")[0] in str(error.value)


def test_a_loop_beyond_the_bound_is_refused_with_advice():
    def long(params, x):
        return {"y": jax.lax.scan(lambda c, _: (c * 0.5 + 1, None), x, length=30000)[0]}

    with pytest.raises(Unsupported, match=r"bound of 20000.*loop-free"):
        convert(long, {}, {"x": np.ones(4, np.float32)})


def test_half_precision_arithmetic_is_refused_and_not_approximated():
    half = jax.ShapeDtypeStruct((4,), "bfloat16")
    with pytest.raises(Unsupported, match=r"bfloat16.*float32"):
        convert(lambda p, x: {"y": x * 2}, {}, {"x": half})
