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
    given = LayerCache(*map(jnp.asarray, old), jnp.asarray(slots))
    cache = append(given, *map(jnp.asarray, new), impl=impl)
    for before, rows, found in zip(old, new, (cache.key, cache.value), strict=True):
        wanted = before.copy()
        for row, slot in enumerate(slots[:3]):
            wanted[row, slot] = rows[row, 0]
        np.testing.assert_array_equal(found, wanted)


@pytest.mark.parametrize("impl", ["scatter", "mask"])
def test_one_slot_for_all_rows_is_the_same_in_every_form(impl):
    rng = np.random.default_rng(1)
    old = jnp.asarray(rng.normal(size=(3, 6, 2, 4)), jnp.float32)
    new = jnp.asarray(rng.normal(size=(3, 1, 2, 4)), jnp.float32)
    alone = append(LayerCache(old, old, 4), new, 2 * new)
    rows = append(LayerCache(old, old, jnp.full(3, 4, jnp.int32)), new, 2 * new, impl=impl)
    for found in (alone, rows):
        np.testing.assert_array_equal(found.key, old.at[:, 4].set(new[:, 0]))
        np.testing.assert_array_equal(found.value, old.at[:, 4].set(2 * new[:, 0]))
    with pytest.raises(InputError, match="one new token, got 2"):
        append(LayerCache(old, old, jnp.zeros(3, "i4")), jnp.zeros((3, 2, 2, 4)), new)
