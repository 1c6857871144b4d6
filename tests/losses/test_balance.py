import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pangu_jax.losses.balance import load_balancing_loss
from pangu_jax.ops.expert_mlp import expert_mlp
from pangu_jax.ops.routing import router_weights

T, G, SIZE, K = 30, 3, 4, 2


def statistics(ids, probs, mask):
    """load and prob_sum [G, E/G] and the number of tokens, by loops."""
    load, prob_sum = np.zeros((G, SIZE), np.float32), np.zeros((G, SIZE), np.float32)
    for t in range(len(mask)):
        if mask[t]:
            prob_sum += probs[t]
            for g in range(G):
                for e in ids[t, g]:
                    load[g, e] += 1
    return load, prob_sum, np.float32(sum(mask))


def draw(rng, tokens):
    probs = rng.uniform(size=(tokens, G, SIZE))
    probs = probs / probs.sum((1, 2), keepdims=True)
    return np.argsort(-probs, -1)[..., :K], probs


def test_equals_a_double_loop_and_ignores_masked_padding():
    rng = np.random.default_rng(0)
    ids, probs = draw(rng, T)
    want = 0.0
    for i in range(G * SIZE):
        g, e = divmod(i, SIZE)
        f = sum(e in ids[t, g] for t in range(T)) * (G * SIZE) / (G * K * T)
        want += f * sum(probs[t, g, e] for t in range(T)) / T
    real = statistics(ids, probs, np.ones(T, bool))
    assert float(load_balancing_loss(*real, active=G * K)) == pytest.approx(want, rel=1e-5)
    more_ids, more_probs = draw(rng, 9)
    padded = statistics(
        np.concatenate([ids, more_ids]), np.concatenate([probs, more_probs]), [1] * T + [0] * 9
    )
    assert float(load_balancing_loss(*padded, active=G * K)) == pytest.approx(want, rel=1e-5)


def test_is_one_when_uniform_keeps_layers_and_is_finite_without_tokens():
    load = jnp.full((2, G, SIZE), T * K / SIZE)
    prob_sum = jnp.full((2, G, SIZE), T / (G * SIZE))
    got = load_balancing_loss(load, prob_sum, jnp.full(2, float(T)), active=G * K)
    np.testing.assert_allclose(got, [1, 1], rtol=1e-6)
    nothing = load_balancing_loss(load[0] * 0, prob_sum[0] * 0, jnp.float32(0), active=G * K)
    assert float(nothing) == 0


def test_gradients_flow_through_the_probabilities_alone():
    rng = np.random.default_rng(1)
    load, prob_sum, tokens = statistics(*draw(rng, T), np.ones(T, bool))
    by_load, by_prob = jax.grad(
        lambda a, b: load_balancing_loss(a, b, tokens, active=G * K), (0, 1)
    )(load, prob_sum)
    assert not by_load.any()
    np.testing.assert_allclose(by_prob, load * G * SIZE / (G * K * tokens) / tokens, rtol=1e-5)


@pytest.mark.long
def test_two_thousand_steps_even_out_the_loads_inside_groups():
    """A router and experts that fit a function of skewed inputs, with and without the loss."""
    groups, size, width, hidden, tokens = 2, 4, 8, 8, 64
    keys = jax.random.split(jax.random.key(0), 7)
    shapes = {
        "router": (width, groups, size),
        "gate": (groups, size, width, hidden),
        "up": (groups, size, width, hidden),
        "down": (groups, size, hidden, width),
    }
    start = {
        name: jax.random.normal(key, shape) * shape[-2] ** -0.5
        for key, (name, shape) in zip(keys[:4], shapes.items(), strict=True)
    }
    target = jax.random.normal(keys[4], (width, width))
    offset = 1.5 * jax.random.normal(keys[5], (width,))

    def statistics(p, x):
        weights, ids, probs = router_weights(x, p["router"], None, k=1)
        load = jax.nn.one_hot(ids, size).sum((0, 2))
        return weights, ids, load, probs.sum(0)

    def inputs(key):
        return jax.random.normal(key, (tokens, width)) + offset

    def loss(p, x, alpha):
        weights, ids, load, prob_sum = statistics(p, x)
        y = expert_mlp(x, ids, weights, p["gate"], p["up"], p["down"], impl="dense")
        aux = load_balancing_loss(load, prob_sum, jnp.float32(tokens), active=groups)
        return ((y - jnp.tanh(x @ target)) ** 2).mean() + alpha * aux

    def step(alpha, p, key):
        grads = jax.grad(loss)(p, inputs(key), alpha)
        return jax.tree.map(lambda a, g: a - 0.1 * g, p, grads), None

    @jax.jit
    def train(alpha):
        p, _ = jax.lax.scan(
            lambda p, key: step(alpha, p, key), start, jax.random.split(keys[6], 2000)
        )
        load = jax.vmap(lambda key: statistics(p, inputs(key))[2])(jax.random.split(keys[5], 20))
        load = load.sum(0)
        return (load.std(-1) / load.mean(-1)).mean()

    without, with_loss = (float(train(alpha)) for alpha in (0.0, 0.1))
    assert with_loss < 0.5 * without, (without, with_loss)
