"""A cache written with each row in its own slot, by scatter and by mask, beside a plain loop."""

import jax.numpy as jnp
import numpy as np
import pytest

from pangu_jax.core.errors import InputError
from pangu_jax.nn.attention import LayerCache, append


@pytest.mark.parametrize("impl", ["scatter", "mask"])
@pytest.mark.parametrize("layer", [0, 2])
def test_each_row_writes_its_own_slot_and_nothing_else(layer, impl):
    rng = np.random.default_rng(0)
    run_key, run_value = rng.normal(size=(2, 3, 4, 6, 2, 5)).astype(np.float32)
    key, value = rng.normal(size=(2, 4, 1, 2, 5)).astype(np.float32)
    slots = np.array([0, 5, 3, 6], np.int32)  # the last one is behind the cache
    given = LayerCache(jnp.asarray(run_key), jnp.asarray(run_value), layer, jnp.asarray(slots))
    cache, keys, values = append(given, jnp.asarray(key), jnp.asarray(value), impl=impl)
    for run, new, found, whole in (
        (run_key, key, keys, cache.key),
        (run_value, value, values, cache.value),
    ):
        wanted = run.copy()
        for row, slot in enumerate(slots[:3]):
            wanted[layer, row, slot] = new[row, 0]
        np.testing.assert_array_equal(whole, wanted)
        np.testing.assert_array_equal(found, wanted[layer])


def test_one_slot_for_all_rows_is_the_same_either_way():
    rng = np.random.default_rng(1)
    run = jnp.asarray(rng.normal(size=(2, 3, 6, 2, 4)), jnp.float32)
    new = jnp.asarray(rng.normal(size=(3, 1, 2, 4)), jnp.float32)
    plain = append(LayerCache(run, run, 1, 4), new, new)
    for impl in ("scatter", "mask"):
        rows = append(LayerCache(run, run, 1, jnp.full(3, 4, jnp.int32)), new, new, impl=impl)
        np.testing.assert_array_equal(plain[0].key, rows[0].key)
        np.testing.assert_array_equal(plain[2], rows[2])
    with pytest.raises(InputError, match="one new token, got 2"):
        append(LayerCache(run, run, 1, jnp.zeros(3, jnp.int32)), jnp.zeros((3, 2, 2, 4)), new)
