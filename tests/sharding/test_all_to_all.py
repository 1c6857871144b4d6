"""Pairs that travel to their experts give what one device gives, and what is dropped is counted."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

from pangu_jax.sharding.all_to_all import exchange_pairs, room_needed

DEVICES, T, E, K, D, F = 4, 24, 8, 2, 6, 5


@pytest.fixture(scope="module")
def arrays():
    rng = np.random.default_rng(0)
    x, dy = rng.normal(size=(2, T, D)).astype(np.float32)
    ids = np.argsort(rng.uniform(size=(T, E)), axis=1)[:, :K].astype(np.int32)
    weights = rng.uniform(0.1, 1, (T, K)).astype(np.float32)
    gate, up = rng.normal(size=(2, E, D, F)).astype(np.float32) / 2
    down = rng.normal(size=(E, F, D)).astype(np.float32) / 2
    return x, ids, weights, {"gate": gate, "up": up, "down": down}, dy


def spread(room):
    """The exchange on four devices, compiled: outputs, and pairs that each device dropped."""
    devices = jax.devices()[:DEVICES]
    mesh = jax.make_mesh((DEVICES,), ("expert",), devices=devices, axis_types=(AxisType.Auto,))
    run = partial(exchange_pairs, axis="expert", room=room)

    def counted(*given):
        y, dropped = run(*given)
        return y, dropped[None]

    split = P("expert")
    return jax.jit(jax.shard_map(counted, mesh=mesh, in_specs=split, out_specs=(split, split)))


def naive(x, ids, weights, kernels, dy, keep):
    """Pair by pair in float64: the outputs, and the gradients of tokens and of gate."""
    x, weights = np.float64(x), np.float64(weights)
    y, dx, dgate = np.zeros_like(x), np.zeros_like(x), np.zeros((E, D, F))
    for (t, j), e in np.ndenumerate(ids):
        if not keep[t, j]:
            continue
        gate, up, down = (np.float64(kernels[name][e]) for name in ("gate", "up", "down"))
        a, b = x[t] @ gate, x[t] @ up
        s = 1 / (1 + np.exp(-a))
        y[t] += weights[t, j] * ((a * s * b) @ down)
        dh = weights[t, j] * (down @ dy[t])
        da, db = dh * b * (s + a * s * (1 - s)), dh * a * s
        dx[t] += gate @ da + up @ db
        dgate[e] += np.outer(x[t], da)
    return y, dx, dgate


def kept(ids, room):
    """Which pairs fit: of every device's tokens the first ones of an expert."""
    keep = np.zeros(ids.shape, bool)
    for own in np.split(np.arange(T), DEVICES):
        count = np.zeros(E, int)
        for t in own:
            for j in range(K):
                keep[t, j] = count[ids[t, j]] < room
                count[ids[t, j]] += 1
    return keep


@pytest.mark.parametrize("room", [12, 2, 1])
def test_it_equals_a_loop_over_the_pairs_that_fit(room, arrays):
    x, ids, weights, kernels, dy = arrays
    keep = kept(ids, room)
    run = spread(room)

    def loss(x, kernels):
        y, dropped = run(x, ids, weights, kernels)
        return (y * dy).sum(), (y, dropped)

    (dx, dkernels), (y, dropped) = jax.jit(jax.grad(loss, (0, 1), has_aux=True))(x, kernels)
    for got, want in zip((y, dx, dkernels["gate"]), naive(*arrays, keep), strict=True):
        np.testing.assert_allclose(got, want, atol=1e-5)
    assert (np.asarray(dropped) == (~keep).reshape(DEVICES, -1).sum(1)).all()
    assert (dropped.sum() == 0) == (room == 12)


def test_the_room_that_drops_nothing_is_the_busiest_expert_s(arrays):
    ids = arrays[1]
    needed = [int(room_needed(jnp.asarray(own), E)) for own in np.split(ids, DEVICES)]
    assert kept(ids, max(needed)).all() and not kept(ids, max(needed) - 1).all()


def test_it_sends_by_all_to_all_alone(arrays):
    x, ids, weights, kernels, _ = arrays
    text = spread(3).lower(x, ids, weights, kernels).compile().as_text()
    assert "all-to-all" in text
    assert not any(word in text for word in ("all-gather", "reduce-scatter", "all-reduce"))
