"""Products by parts are float32 products."""

import jax
import jax.numpy as jnp
import numpy as np

from pangu_jax.ops import routing
from pangu_jax.ops.split_matmul import split_matmul

rng = np.random.default_rng(0)
X = jnp.asarray(rng.normal(size=(9, 33)), jnp.bfloat16)
KERNEL = (rng.normal(size=(33, 12)) * 10.0 ** rng.integers(-6, 4, (33, 12))).astype(np.float32)
DY = rng.normal(size=(9, 12)).astype(np.float32)


def test_values_and_gradients_are_those_of_float64_products():
    y, back = jax.vjp(jax.jit(split_matmul), X, jnp.asarray(KERNEL))
    dx, dkernel = back(jnp.asarray(DY))
    x, kernel, dy = (np.asarray(v, np.float64) for v in (X, KERNEL, DY))
    scale = np.abs(x) @ np.abs(kernel)
    assert (np.abs(y - x @ kernel) / scale).max() < 1e-6
    assert (np.abs(dkernel - x.T @ dy) / (np.abs(x.T) @ np.abs(dy))).max() < 1e-6
    assert dx.dtype == jnp.bfloat16
    exact = dy @ kernel.T  # rounded once, to eight bits
    error = np.abs(np.asarray(dx, np.float64) - exact) - 2.0**-8 * np.abs(exact)
    assert (error / (np.abs(dy) @ np.abs(kernel.T))).max() < 1e-4


def test_it_maps_over_seeds():
    kernels = jnp.stack([jnp.asarray(KERNEL), 2 * jnp.asarray(KERNEL)])
    got = jax.vmap(split_matmul, (None, 0))(X, kernels)
    np.testing.assert_array_equal(got[0], split_matmul(X, kernels[0]))
    np.testing.assert_allclose(got[1], 2 * got[0], rtol=1e-6)


def test_gpus_route_by_it(monkeypatch):
    kernel = jnp.asarray(rng.normal(size=(33, 3, 4)), jnp.float32)
    want = routing.router_weights(X, kernel, None, k=1)
    monkeypatch.setattr(routing, "chip", lambda: "hopper")
    got = routing.router_weights(X, kernel, None, k=1)
    for a, b in zip(got, want, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)
    text = str(jax.make_jaxpr(lambda x: routing.router_weights(x, kernel, None, k=1))(X))
    assert "HIGHEST" not in text
