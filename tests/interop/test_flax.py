"""The flax adapters: a MoGE block inside a Linen model and inside an NNX model."""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from pangu_jax.core.spec import count, init
from pangu_jax.interop.flax import Adapted, LinenAdapter, NnxAdapter
from pangu_jax.models import decoder, presets
from pangu_jax.nn.attention import AttentionConfig
from pangu_jax.nn.moe import MoEConfig, moe, moe_spec

CFG = MoEConfig(experts=4, groups=2, top_k=1, width=8, shared_width=8, router_scale=True)
MOE = Adapted(partial(moe_spec, 16, CFG), partial(moe, cfg=CFG))


class LinenModel(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.Dense(16)(x)
        y, stats = LinenAdapter(MOE, name="moge")(x)
        return nn.Dense(1)(x + y), stats


class NnxModel(nnx.Module):
    def __init__(self, rngs):
        self.into = nnx.Linear(3, 16, rngs=rngs)
        self.moge = NnxAdapter(MOE, rngs=rngs)
        self.out = nnx.Linear(16, 1, rngs=rngs)

    def __call__(self, x):
        x = self.into(x)
        y, stats = self.moge(x)
        return self.out(x + y), stats


@pytest.fixture
def x():
    return jnp.asarray(np.random.default_rng(0).normal(size=(2, 5, 3)), jnp.float32)


@pytest.mark.long
def test_linen_has_one_variable_a_leaf_with_its_axes_and_the_function_s_value(x):
    model = LinenModel()
    boxed = model.init(jax.random.key(0), x)["params"]
    gate = boxed["moge"]["experts"]["gate"]["kernel"]
    assert gate.names == ("group", "expert", "embed", "expert_mlp")
    assert count(nn.meta.unbox(boxed["moge"])) == count(moe_spec(16, CFG))
    partition = nn.get_partition_spec(boxed)["moge"]["experts"]["gate"]["kernel"]
    assert tuple(partition) == ("group", "expert", "embed", "expert_mlp")
    params = nn.meta.unbox(boxed)
    got, _ = model.apply({"params": params}, x)
    hidden = x @ params["Dense_0"]["kernel"] + params["Dense_0"]["bias"]
    want = hidden + moe(params["moge"], hidden, cfg=CFG)[0]
    want = want @ params["Dense_1"]["kernel"] + params["Dense_1"]["bias"]
    np.testing.assert_allclose(got, want, atol=1e-6)


@pytest.mark.long
def test_nnx_has_one_variable_a_leaf_with_its_axes_and_the_function_s_value(x):
    model = NnxModel(nnx.Rngs(0))
    gate = model.moge.params["experts"]["gate"]["kernel"]
    assert gate.get_metadata()["out_sharding"] == ("group", "expert", "embed", "expert_mlp")
    _, state = nnx.split(model)
    assert len(jax.tree.leaves(state["moge"])) == len(jax.tree.leaves(moe_spec(16, CFG)))
    got, _ = nnx.jit(lambda m, x: m(x))(model, x)
    params = jax.tree.map(
        lambda v: v[...], model.moge.params, is_leaf=lambda v: isinstance(v, nnx.Variable)
    )
    hidden = model.into(x)
    np.testing.assert_allclose(got, model.out(hidden + moe(params, hidden, cfg=CFG)[0]), atol=1e-6)


def test_linen_trains(x):
    model, tx = LinenModel(), optax.sgd(0.02)
    params = nn.meta.unbox(model.init(jax.random.key(0), x)["params"])
    target = x.sum(-1, keepdims=True)

    @jax.jit
    def step(params, state):
        loss, grads = jax.value_and_grad(
            lambda p: jnp.mean((model.apply({"params": p}, x)[0] - target) ** 2)
        )(params)
        updates, state = tx.update(grads, state)
        return optax.apply_updates(params, updates), state, loss, grads

    state, losses = tx.init(params), []
    for _ in range(20):
        params, state, loss, grads = step(params, state)
        losses.append(float(loss))
    assert losses[-1] < 0.5 * losses[0]
    assert float(jnp.abs(grads["moge"]["router"]["kernel"]).max()) > 0


def test_nnx_trains(x):
    model = NnxModel(nnx.Rngs(0))
    optimizer = nnx.Optimizer(model, optax.sgd(0.02), wrt=nnx.Param)
    target = x.sum(-1, keepdims=True)

    @nnx.jit
    def step(model, optimizer):
        loss, grads = nnx.value_and_grad(lambda m: jnp.mean((m(x)[0] - target) ** 2))(model)
        optimizer.update(model, grads)
        return loss

    losses = [float(step(model, optimizer)) for _ in range(20)]
    assert losses[-1] < 0.5 * losses[0]


@pytest.mark.long
def test_a_whole_decoder_with_its_runs_becomes_a_module():
    cfg = presets.uniform(
        11, 8, 2, AttentionConfig(1, 2, 4), moe=MoEConfig(experts=4, groups=2, top_k=1, width=4)
    )
    pair = Adapted(partial(decoder.spec, cfg), partial(decoder.apply, cfg=cfg))
    tokens = jnp.arange(6).reshape(1, 6)
    want_params = init(decoder.spec(cfg), key=jax.random.key(1))

    linen = LinenAdapter(pair)
    variables = nn.meta.unbox(linen.init(jax.random.key(0), tokens))
    assert jax.tree.structure(variables["params"]) == jax.tree.structure(want_params)
    got = linen.apply({"params": want_params}, tokens).hidden
    np.testing.assert_allclose(got, decoder.apply(want_params, tokens, cfg=cfg).hidden, atol=1e-6)

    module = NnxAdapter(pair, rngs=nnx.Rngs(0))
    assert module(tokens).hidden.shape == (1, 6, 8)
