"""Deformable sampling against scalar loops, its gradients against differences."""

import math
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pangu_jax.core.errors import InputError
from pangu_jax.ops.deform_sample import choose, deform_sample

NAMES = ("reference", "taps", "dense")
RNG = np.random.default_rng(0)


def loops(values, numbers, groups, scale):
    """The sampling one number at a time, in float64."""
    batch, height, width, channels = values.shape
    size, out = channels // groups, np.zeros(values.shape)
    for b, r, q, g in np.ndindex(batch, height, width, groups):
        part = numbers[b, r, q, 27 * g : 27 * (g + 1)]
        for k in range(9):
            x = q + scale * (k // 3 - 1 + part[2 * k])
            y = r + scale * (k % 3 - 1 + part[2 * k + 1])
            if not (-1 < x < width and -1 < y < height):
                continue
            for row in (math.floor(y), math.floor(y) + 1):
                for column in (math.floor(x), math.floor(x) + 1):
                    if 0 <= row < height and 0 <= column < width:
                        weight = (1 - abs(y - row)) * (1 - abs(x - column)) * part[18 + k]
                        read = values[b, row, column, g * size : (g + 1) * size]
                        out[b, r, q, g * size : (g + 1) * size] += weight * read
    return out


def example(shape=(2, 4, 3, 4), groups=2, spread=2.0):
    values = RNG.normal(size=shape)
    numbers = spread * RNG.normal(size=(*shape[:3], 27 * groups + 2))
    return values, numbers


@pytest.mark.parametrize("impl", NAMES)
def test_forward_is_the_loops(impl):
    with jax.enable_x64(True):
        for spread, scale in ((0.0, 0.5), (0.3, 0.5), (4.0, 1.0)):
            values, numbers = example(spread=spread)
            numbers[..., 18:27] = RNG.normal(size=(2, 4, 3, 9))  # masks, also where all else is 0
            found = deform_sample(
                jnp.asarray(values), jnp.asarray(numbers), groups=2, scale=scale, impl=impl
            )
            np.testing.assert_allclose(found, loops(values, numbers, 2, scale), atol=1e-12)


@pytest.mark.parametrize("source", ["golden", "released"])
def test_it_is_plain_torch_loops_and_the_released_operator(source, request):
    path = Path(__file__).parents[1] / "golden" / "operators.npz"
    if source == "released":
        path = request.getfixturevalue("data_dir").parent / "fixtures" / "ops_float64.npz"
    with np.load(path, allow_pickle=False) as file:
        figures = {k.removeprefix("dcn/"): file[k] for k in file if k.startswith("dcn/")}
    with jax.enable_x64(True):
        arrays = [jnp.asarray(figures[k]) for k in ("x", "offset_mask")]
        for impl in NAMES:
            run = partial(deform_sample, groups=int(figures["group"]), impl=impl)
            found = jax.jit(run)(*arrays)
            assert np.abs(found - figures["out"]).max() <= 1e-12 * np.abs(figures["out"]).max()


@pytest.mark.parametrize("impl", NAMES)
def test_gradients_are_differences(impl):
    with jax.enable_x64(True):
        values, numbers = example((1, 3, 2, 2), groups=1)
        direction = RNG.normal(size=values.shape)

        def total(v, n):
            return (deform_sample(v, n, groups=1, impl=impl) * direction).sum()

        grads = jax.jit(jax.grad(total, (0, 1)))(jnp.asarray(values), jnp.asarray(numbers))
        for array, grad in zip((values, numbers), grads, strict=True):
            for at in np.ndindex(array.shape):
                kept, sums = array[at], []
                for step in (1e-6, -1e-6):
                    array[at] = kept + step
                    sums.append((loops(values, numbers, 1, 0.5) * direction).sum())
                array[at] = kept
                assert grad[at] == pytest.approx((sums[0] - sums[1]) / 2e-6, abs=1e-7), at


def test_at_whole_places_and_on_the_border_all_forms_take_the_same_side():
    with jax.enable_x64(True):
        values, numbers = example((1, 3, 3, 2), groups=1, spread=0.0)
        numbers[..., 18:27] = RNG.normal(size=(1, 3, 3, 9))
        numbers[0, 0, 0, 1] = -1.0  # tap 0 of the cell (0, 0): height exactly -1
        numbers[0, 2, 0, 2 * 2 + 1] = 1.0  # tap 2 of the cell (2, 0): height exactly 3
        grads = [
            jax.jit(
                jax.grad(
                    lambda v, n, impl=impl: (deform_sample(v, n, groups=1, impl=impl) ** 2).sum(),
                    (0, 1),
                )
            )(jnp.asarray(values), jnp.asarray(numbers))
            for impl in NAMES
        ]
        for other in grads[1:]:
            for a, b in zip(grads[0], other, strict=True):
                np.testing.assert_allclose(a, b, atol=1e-12)
        moves = grads[0][1][0, ..., :18]
        assert moves[0, 0, 1] == moves[2, 0, 5] == 0
        # The derivative from the right: the tap of the cell (1, 1) that lies on it.
        out = loops(values, numbers, 1, 0.5)
        step = (values[0, 2, 1] - values[0, 1, 1]) * 0.5 * numbers[0, 1, 1, 18 + 4]
        assert moves[1, 1, 9] == pytest.approx(float((2 * out[0, 1, 1] * step).sum()))


def test_memory_grows_linearly_and_taps_hold_one_tap():
    def temporaries(variates, impl):
        shape = (2, 8, variates, 32)
        wide = jax.ShapeDtypeStruct((*shape[:3], 56), jnp.float32)

        def loss(v, n):
            return (deform_sample(v, n, groups=2, impl=impl) ** 2).sum()

        step = jax.jit(jax.grad(loss, (0, 1)))
        compiled = step.lower(jax.ShapeDtypeStruct(shape, jnp.float32), wide).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    small, large = temporaries(64, "taps"), temporaries(128, "taps")
    assert large <= 2.2 * small
    # The nine taps' corners alone would be more than this.
    assert large < 9 * 4 * 2 * 8 * 128 * 32 * 4 / 2


def test_the_type_of_the_values_is_kept_and_bad_shapes_are_refused():
    values, numbers = example()
    found = deform_sample(jnp.asarray(values, jnp.bfloat16), jnp.asarray(numbers), groups=2)
    assert found.dtype == jnp.bfloat16
    with pytest.raises(InputError, match="4 channels do not split into 3 groups"):
        deform_sample(jnp.asarray(values), jnp.asarray(numbers), groups=3)
    with pytest.raises(InputError, match="at least 108 numbers for 4 groups"):
        deform_sample(jnp.asarray(values), jnp.asarray(numbers), groups=4)
    with pytest.raises(InputError, match=r"impl of deform_sample must be one of .* got 'fast'"):
        deform_sample(jnp.asarray(values), jnp.asarray(numbers), groups=2, impl="fast")
    assert choose("cpu", (16, 16, 7, 16)) == "dense"
    assert choose("cpu", (16, 24, 321, 32)) == choose("gpu", (16, 24, 321, 32)) == "taps"
