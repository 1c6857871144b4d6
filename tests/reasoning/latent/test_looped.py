"""Layers that run in turns: values and gradients of the loop written out, and of tied copies."""

import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pangu_jax.core.errors import InputError
from pangu_jax.models import encoder, thinker
from pangu_jax.reasoning.latent import looped
from pangu_jax.reasoning.latent.answer import solve
from pangu_jax.reasoning.latent.config import MethodConfig
from pangu_jax.reasoning.latent.curriculum import CurriculumConfig
from pangu_jax.reasoning.latent.loss import thought_loss
from pangu_jax.reasoning.latent.slots import collate

(PHASE,) = looped.METHOD.phases(CurriculumConfig(9), 9)


def in_turns(naive, params, ids, cfg, turns):
    """[T, D] after the final norm."""
    x = params["embed"]["table"][jnp.asarray(ids)]
    for _ in range(turns):
        for run, layer in zip(params["runs"], cfg.layers, strict=True):  # runs of one layer
            x = naive.layer(jax.tree.map(lambda leaf: leaf[0], run), x, layer.attention, cfg)
    return naive.norm(params["norm"]["scale"], x, cfg.norm_eps)


def summed(cfg, batch):
    loss = thought_loss(cfg, start=8, thoughts=0)
    return jax.jit(jax.value_and_grad(lambda params: loss(params, None, batch, None)[0]))


@pytest.fixture(scope="module")
def rows(problems, markers):
    return [looped.METHOD.slots(problem, PHASE, markers, 0) for problem in problems]


def test_loss_and_gradients_are_those_of_a_loop(naive, model, rows):
    params, plain = model
    cfg = looped.model(plain, MethodConfig(turns=2))

    def reference(params):
        nats = 0.0
        for row in rows[1:]:
            states = in_turns(naive, params, [*row.prefix, *row.tail], plain, 2)
            scores = jax.nn.log_softmax(states @ params["head"]["kernel"])
            first = len(row.prefix)
            nats -= sum(scores[first + i - 1, token] for i, token in enumerate(row.tail))
        return nats

    want = jax.jit(jax.value_and_grad(reference))(params)
    found = summed(cfg, collate(rows[1:], start=8, thoughts=0, tail=8))(params)
    np.testing.assert_allclose(found[0], want[0], rtol=1e-5)
    chex.assert_trees_all_close(found[1], want[1], rtol=2e-4, atol=2e-5)


def test_one_turn_is_the_decoder_to_the_bit(model, rows):
    params, plain = model
    batch = collate(rows[1:], start=8, thoughts=0, tail=8)
    one = summed(thinker.ThinkerConfig(plain, turns=1), batch)(params)
    chex.assert_trees_all_equal(one, summed(plain, batch)(params))


@pytest.mark.long
def test_answers_are_those_of_a_loop(naive, model, problems, markers, rows):
    params, plain = model
    deep, cfg = thinker.written_out(params, looped.model(plain, MethodConfig(turns=2)))
    assert len(cfg.layers) == 4 and thinker.written_out(params, plain) == (params, plain)
    written = solve(
        deep, problems, looped.METHOD, PHASE, markers, cfg=cfg, max_new_tokens=3, batch=3
    )
    row, ids = rows[0], written[0].ids

    @jax.jit
    def best(params):
        states = in_turns(naive, params, [*row.prefix, *ids], plain, 2)
        return jnp.argmax(states @ params["head"]["kernel"], -1)[len(row.prefix) - 1 : -1]

    assert ids == tuple(best(params).tolist()) and written[0].thoughts == 0


def test_equal_layers_stay_one_run(model):
    params, plain = model
    equal = dataclasses.replace(plain, layers=(plain.layers[0],) * 2)
    runs = [jax.tree.map(lambda *x: jnp.concatenate(x), *params["runs"])]
    deep, cfg = thinker.written_out({**params, "runs": runs}, thinker.ThinkerConfig(equal, turns=3))
    assert len(deep["runs"]) == 1
    leaf, own = (tree["runs"][0]["mlp"]["up"]["kernel"] for tree in (deep, {"runs": runs}))
    np.testing.assert_array_equal(leaf, np.tile(own, (3, 1, 1)))
    assert len(cfg.layers) == 6


def test_what_cannot_run_in_turns_is_refused(model):
    _, plain = model
    with pytest.raises(InputError, match="turns must be at least 1"):
        thinker.ThinkerConfig(plain, turns=0)
    with pytest.raises(InputError, match="turns must be at least 1"):
        MethodConfig(turns=0)
    with pytest.raises(InputError, match="align must be 0 or more"):
        MethodConfig(align=-1.0)
    bert = encoder.bert_layer(2, 4, 8, "gelu")
    causal = dataclasses.replace(bert, attention=dataclasses.replace(bert.attention, causal=True))
    with pytest.raises(InputError, match="norms before the branches"):
        thinker.ThinkerConfig(dataclasses.replace(plain, layers=(causal,)), turns=2)
