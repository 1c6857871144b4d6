"""Grouped products equal a loop over rows, whatever the experts' shares."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pangu_jax.core.errors import InputError
from pangu_jax.ops.grouped_matmul import grouped_matmul, grouped_outer, has_kernel

R, E, D, F = 13, 4, 6, 5
COUNTS = {"mixed": [3, 0, 9, 1], "one": [0, 13, 0, 0], "ends empty": [0, 6, 7, 0]}


@pytest.fixture(scope="module")
def arrays():
    rng = np.random.default_rng(0)
    return tuple(rng.normal(size=shape).astype(np.float32) for shape in ((R, D), (R, F), (E, D, F)))


@pytest.fixture(scope="module")
def products():
    """Every implementation that runs here, compiled once."""

    def run(left, right, kernels, counts, impl):
        turned = kernels.swapaxes(1, 2)
        return (
            grouped_matmul(left, kernels, counts, impl=impl),
            grouped_matmul(left, turned, counts, transpose=True, impl=impl),
            grouped_outer(left, right, counts, impl=impl),
        )

    return {impl: jax.jit(partial(run, impl=impl)) for impl in ("ragged_dot", "reference")}


@pytest.mark.parametrize("case", COUNTS)
@pytest.mark.parametrize("impl", ["ragged_dot", "reference"])
def test_products_equal_a_loop_over_rows(impl, case, arrays, products):
    left, right, kernels = arrays
    expert = np.repeat(np.arange(E), COUNTS[case])
    plain = np.stack([left[r] @ kernels[e] for r, e in enumerate(expert)])
    outer = np.zeros((E, D, F))
    for r, e in enumerate(expert):
        outer[e] += np.outer(left[r], right[r])
    got = products[impl](left, right, kernels, jnp.asarray(COUNTS[case], jnp.int32))
    for a, b in zip(got, (plain, plain, outer), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)


def test_kernels_are_for_16_bit_numbers_of_whole_lines():
    assert has_kernel(jnp.bfloat16, 5120, 1344) and has_kernel(jnp.float16, 64)
    assert not has_kernel(jnp.float32, 5120, 1344) and not has_kernel(jnp.bfloat16, 5120, 1350)
    counts = jnp.asarray([R, 0, 0, 0], jnp.int32)
    for impl, words in (("mosaic", "take 16-bit numbers"), ("fast", "impl of grouped_matmul")):
        with pytest.raises(InputError, match=words):
            grouped_matmul(jnp.ones((R, D)), jnp.ones((E, D, F)), counts, impl=impl)
