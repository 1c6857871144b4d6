"""A cache written with each row in its own slot, by scatter and by mask, beside a plain loop."""

import jax.numpy as jnp
import numpy as np
import pytest

from pangu_jax.core.errors import InputError
from pangu_jax.nn.attention import LayerCache, append


@pytest.mark.parametrize("impl", ["scatter", "mask"])
def test_each_row_writes_its_own_slot_and_nothing_else(impl):
    rng = np.random.default_rng(0)
    old = rng.normal(size=(2, 4, 6, 2, 5)).astype(np.float32)
    new = rng.normal(size=(2, 4, 1, 2, 5)).astype(np.float32)
    slots = np.array([0, 5, 3, 6], np.int32)  # the last one is behind the cache
    given = LayerCache(*map(jnp.asarray, old), None, jnp.asarray(slots))
    cache, keys, values = append(given, *map(jnp.asarray, new), impl=impl)
    for before, rows, found, whole in zip(
        old, new, (keys, values), (cache.key, cache.value), strict=True
    ):
        wanted = before.copy()
        for row, slot in enumerate(slots[:3]):
            wanted[row, slot] = rows[row, 0]
        np.testing.assert_array_equal(whole, wanted)
        np.testing.assert_array_equal(found, wanted)


@pytest.mark.parametrize("impl", ["scatter", "mask"])
def test_one_slot_for_all_rows_is_the_same_in_every_form(impl):
    rng = np.random.default_rng(1)
    run = jnp.asarray(rng.normal(size=(2, 3, 6, 2, 4)), jnp.float32)
    new = jnp.asarray(rng.normal(size=(3, 1, 2, 4)), jnp.float32)
    in_run = append(LayerCache(run, run, 1, 4), new, new)
    alone = append(LayerCache(run[1], run[1], None, 4), new, new)
    rows = append(LayerCache(run[1], run[1], None, jnp.full(3, 4, jnp.int32)), new, new, impl=impl)
    for found in (alone, rows):
        np.testing.assert_array_equal(in_run[0].key[1], found[0].key)
        np.testing.assert_array_equal(in_run[2], found[2])
    np.testing.assert_array_equal(in_run[0].key[0], run[0])
    with pytest.raises(InputError, match="one new token, got 2"):
        append(LayerCache(run[1], run[1], None, jnp.zeros(3, "i4")), jnp.zeros((3, 2, 2, 4)), new)
