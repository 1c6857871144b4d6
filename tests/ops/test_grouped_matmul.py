"""Grouped products equal a loop over rows, whatever the experts' shares."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pangu_jax.core.errors import InputError
from pangu_jax.ops.grouped_matmul import (
    alignment,
    grouped_matmul,
    grouped_outer,
    grouped_swiglu,
    has_kernel,
)

R, E, D, F = 13, 4, 6, 5
COUNTS = {"mixed": [3, 0, 9, 1], "one": [0, 13, 0, 0], "ends empty": [0, 6, 4, 0]}


def draw(rows, experts, width, hidden, dtype=np.float32):
    """Two arrays of rows of either width, and two kernels."""
    rng = np.random.default_rng(rows)
    shapes = [(rows, width)] * 2 + [(rows, hidden)] * 2 + [(experts, width, hidden)] * 2
    return tuple(jnp.asarray(rng.normal(size=s) / 4, dtype) for s in shapes)


def products(left, other, right, second, gate, up, counts, keep=True, **options):
    """Every product of sorted rows, one after the other."""
    summed = partial(grouped_matmul, (left, other), counts=counts, **options)
    return (
        *grouped_swiglu(left, gate, up, counts, keep=keep, **options),
        summed((gate, up)),
        grouped_matmul((right,), (gate,), counts, transpose=True, **options),
        *grouped_outer(left, (right, second), counts, **options),
    )


def naive(left, other, right, second, gate, up, counts):
    """The same, row by row in float64; rows behind the last expert's are missing."""
    left, other, right, second, gate, up = (
        np.asarray(v, np.float64) for v in (left, other, right, second, gate, up)
    )
    expert = np.repeat(np.arange(len(counts)), counts)
    a, b, summed, back = [], [], [], []
    outer = np.zeros((2, *gate.shape))
    for r, e in enumerate(expert):
        a.append(left[r] @ gate[e])
        b.append(left[r] @ up[e])
        summed.append(a[-1] + other[r] @ up[e])
        back.append(gate[e] @ right[r])
        outer[0, e] += np.outer(left[r], right[r])
        outer[1, e] += np.outer(left[r], second[r])
    a, b = np.stack(a), np.stack(b)
    return a / (1 + np.exp(-a)) * b, a, b, np.stack(summed), np.stack(back), *outer


@pytest.fixture(scope="module")
def compiled():
    """Every implementation that runs here, compiled once."""
    return {impl: jax.jit(partial(products, impl=impl)) for impl in ("ragged_dot", "reference")}


@pytest.mark.parametrize("case", COUNTS)
@pytest.mark.parametrize("impl", ["ragged_dot", "reference"])
def test_products_equal_a_loop_over_rows(impl, case, compiled):
    arrays = draw(R, E, D, F)
    got = compiled[impl](*arrays, jnp.asarray(COUNTS[case], jnp.int32))
    for a, b in zip(got, naive(*arrays, COUNTS[case]), strict=True):
        np.testing.assert_allclose(a[: len(b)], b, atol=1e-5)


@pytest.mark.skipif(
    jax.__version_info__ < (0, 11), reason="before 0.11 the interpreter stops at an array's edge"
)
@pytest.mark.parametrize(
    ("align", "counts", "widths", "keep"),
    [
        (64, [64, 0, 64], (48, 144), True),  # edges: zeros are read, and nothing is written
        (128, [128, 128], (64, 96), False),
        pytest.param(64, [64, 0, 128], (96, 288), False, marks=pytest.mark.slow),
        pytest.param(128, [128, 0, 128], (160, 544), True, marks=pytest.mark.slow),
        pytest.param(128, [0, 384, 0], (144, 512), True, marks=pytest.mark.slow),
    ],
)
def test_kernels_equal_a_loop_over_rows_without_races(align, counts, widths, keep, monkeypatch):
    """The interpreter fills memory that nobody wrote with NaN, and watches who reads and writes."""
    from jax._src.pallas.mosaic_gpu.interpret import gpu_callbacks

    from pangu_jax.ops.kernels import grouped_matmul_mosaic as kernels_of_ours

    mosaic_gpu = kernels_of_ours.plgpu
    monkeypatch.setattr(kernels_of_ours, "_multiprocessors", lambda: 2)
    rows = sum(counts) + align  # the last ones are nobody's
    arrays = draw(rows, len(counts), *widths, dtype=jnp.bfloat16)
    interpreter = mosaic_gpu.InterpretGPUParams(detect_races=True)
    with mosaic_gpu.force_gpu_interpret_mode(interpreter):
        got = products(
            *arrays, jnp.asarray(counts, jnp.int32), align=align, keep=keep, impl="mosaic"
        )
        jax.block_until_ready(got)
    assert not gpu_callbacks.get_races().races_found
    want = naive(*arrays, counts)
    for a, b in zip(got, want if keep else (want[0], *want[3:]), strict=True):
        a = np.asarray(a, np.float64)[: len(b)]
        assert np.linalg.norm(a - b) < 3e-3 * np.linalg.norm(b)
        if len(b) == len(counts):
            assert not a[np.array(counts) == 0].any()


@pytest.mark.long(but=1)
@pytest.mark.parametrize(("align", "widths"), [(64, (768, 224)), (128, (80, 256))])
def test_kernels_lower_for_their_chip(align, widths):
    """To the chip's own calls; no chip is needed for that."""
    arrays = draw(256, 3, *widths, dtype=jnp.bfloat16)
    exported = jax.export.export(
        jax.jit(partial(products, align=align, impl="mosaic")),
        platforms=["cuda"],
        disabled_checks=[jax.export.DisabledSafetyCheck.custom_call("mosaic_gpu_v2")],
    )(*arrays, jnp.zeros(3, jnp.int32))
    assert exported.mlir_module().count("@mosaic_gpu_v2") == 4


def test_kernels_take_16_bit_numbers_in_whole_tiles():
    assert has_kernel(jnp.bfloat16, 5120, 1344) and has_kernel(jnp.float16, 16)
    assert not has_kernel(jnp.float32, 5120, 1344) and not has_kernel(jnp.bfloat16, 5120, 1350)
    assert alignment("mosaic", 96 * 64, 64) == 128 and alignment("mosaic", 95 * 64, 64) == 64
    assert alignment("ragged_dot", 131072, 64) == 1
    arrays = draw(R, E, D, F)
    bad = [
        ({"impl": "mosaic"}, arrays, "take 16-bit numbers"),
        ({"impl": "fast"}, arrays, "impl of grouped products"),
        ({"impl": "mosaic", "align": 64}, draw(70, E, 16, 16, jnp.bfloat16), "multiples of 64"),
    ]
    for options, given, words in bad:
        with pytest.raises(InputError, match=words):
            products(*given, jnp.asarray([R, 0, 0, 0], jnp.int32), **options)
