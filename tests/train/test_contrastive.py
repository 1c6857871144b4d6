"""Contrastive training: every pair meets the whole batch, however it is cut into microbatches."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from pangu_jax.core.errors import InputError
from pangu_jax.core.spec import Normal, Spec
from pangu_jax.losses.contrastive import info_nce
from pangu_jax.train.contrastive import contrastive_loss
from pangu_jax.train.step import init_state, make_step

SPEC = {
    "into": {"kernel": Spec((6, 16), ("embed", "mlp"), Normal(0.5))},
    "out": {"kernel": Spec((16, 4), ("mlp", "embed"), Normal(0.5))},
}


def embed(params, inputs, key):
    del key
    hidden = jnp.tanh(inputs["x"] @ params["into"]["kernel"])
    out = hidden @ params["out"]["kernel"]
    return out / jnp.linalg.norm(out, axis=-1, keepdims=True)


def pairs(rows=8):
    rng = np.random.default_rng(0)
    shapes = {"queries": (rows, 6), "documents": (rows, 6), "negatives": (rows, 2, 6)}
    drawn = {n: {"x": rng.normal(size=s).astype(np.float32)} for n, s in shapes.items()}
    return {**drawn, "weights": np.where(np.arange(rows) == 3, 0, 1).astype(np.float32)}


SGD, LOSS = optax.sgd(1.0), contrastive_loss(embed)  # the same ones are compiled once


def trained(accumulate, batch, loss=LOSS):
    step = make_step(loss, SGD, accumulate=accumulate)
    state = init_state(SPEC, SGD, key=jax.random.key(0))
    return step(state, batch, jax.random.key(1))


def test_it_is_the_loss_of_all_embeddings_at_once():
    batch, params = pairs(), init_state(SPEC, optax.sgd(1.0), key=jax.random.key(0)).params
    vectors = [embed(params, batch[n], None) for n in ("queries", "documents", "negatives")]
    nats, weight, right = info_nce(*vectors, batch["weights"])
    _, metrics = trained(1, batch)
    assert weight == metrics["weight"] == 7
    assert float(metrics["loss"]) == pytest.approx(float(nats / weight), rel=1e-5)
    assert float(metrics["accuracy"]) == pytest.approx(float(right / weight))


def test_queries_documents_and_negatives_draw_with_keys_of_their_own():
    keys = []

    def noted(params, inputs, key):
        del params
        keys.append(tuple(jax.random.key_data(key).tolist()))
        return inputs["x"]

    contrastive_loss(noted).embed(None, None, pairs(), jax.random.key(0))
    assert len(keys) == len(set(keys)) == 3


@pytest.mark.parametrize("accumulate", [2, 4])
def test_cached_gradients_are_those_of_the_whole_batch(accumulate):
    want = trained(1, pairs())
    chex.assert_trees_all_close(trained(accumulate, pairs()), want, rtol=1e-5, atol=1e-5)
    with pytest.raises(InputError, match="accumulate 3 must divide the batch of 8"):
        trained(3, pairs())


def test_a_microbatch_embeds_alike_forward_and_backward():
    """Dropout's draws are the same when backward embeds again: else the gradient is another's."""

    def noisy(params, inputs, key):
        return embed(params, {"x": inputs["x"] * jax.random.uniform(key, (6,))}, None)

    batch, loss = pairs(), contrastive_loss(noisy, temperature=1.0)
    cached = trained(4, batch, loss)
    params = init_state(SPEC, optax.sgd(1.0), key=jax.random.key(0)).params
    keys = jax.random.split(jax.random.fold_in(jax.random.key(1), 0), 4)
    cut = jax.tree.map(lambda x: x.reshape(4, 2, *x.shape[1:]), batch)

    def value(params):
        parts = [
            loss.embed(params, None, jax.tree.map(lambda x, i=i: x[i], cut), keys[i])
            for i in range(4)
        ]
        found = jax.tree.map(lambda *x: jnp.concatenate(x), *parts)
        return loss.compare(found, None, batch)[0] / 7

    want = jax.tree.map(lambda p, g: p - g, params, jax.jit(jax.grad(value))(params))
    chex.assert_trees_all_close(cached[0].params, want, rtol=1e-5, atol=1e-6)


def test_memory_is_that_of_a_microbatch():
    wide = {
        "into": {"kernel": Spec((6, 4096), ("embed", "mlp"))},
        "out": {"kernel": Spec((4096, 4), ("mlp", "embed"))},
    }
    batch, sizes = {n: pairs(256)[n] for n in ("queries", "documents")}, {}
    for accumulate in (1, 16):
        optimizer = optax.sgd(1.0)
        state = init_state(wide, optimizer, key=jax.random.key(0))
        step = make_step(contrastive_loss(embed), optimizer, accumulate=accumulate)
        compiled = step.lower(state, batch, jax.random.key(1)).compile()
        sizes[accumulate] = compiled.memory_analysis().temp_size_in_bytes
    assert sizes[16] < sizes[1] / 5


def test_a_temperature_that_is_none_is_refused():
    with pytest.raises(InputError, match="temperature must be above 0, got 0"):
        contrastive_loss(embed, temperature=0)
