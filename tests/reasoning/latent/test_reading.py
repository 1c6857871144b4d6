"""One scan over a cache gives what the whole model gives, computed again for every thought."""

import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pangu_jax.core import spec
from pangu_jax.models import decoder
from pangu_jax.models.transformer import by_layer
from pangu_jax.nn.attention import AttentionConfig
from pangu_jax.nn.block import LayerConfig
from pangu_jax.nn.how import How
from pangu_jax.nn.mlp import MlpConfig
from pangu_jax.reasoning.latent import coconut, cot
from pangu_jax.reasoning.latent.curriculum import Phase
from pangu_jax.reasoning.latent.loss import thought_loss
from pangu_jax.reasoning.latent.reading import read
from pangu_jax.reasoning.latent.slots import collate
from pangu_jax.train.language import language_loss

START, TAIL = 8, 10


def rows_of(problems, markers, phase, method=coconut.METHOD):
    return [method.slots(problem, phase, markers, 0) for problem in problems]


def batch_of(rows, thoughts, start=START, tail=TAIL):
    return collate(rows, start=start, thoughts=thoughts, tail=tail)


def summed(cfg, thoughts, **how):
    feedback = {"feedback": "hidden"} if thoughts else {}
    loss = thought_loss(cfg, start=START, thoughts=thoughts, how=How(**how), **feedback)
    return lambda params, batch: loss(params, None, batch, jax.random.key(0))[0]


@pytest.fixture(scope="module")
def found(model, problems, markers):
    """Loss and gradients with two thoughts."""
    params, cfg = model
    rows = rows_of(problems[:2], markers, Phase(1, slots=2, removed_steps=1))
    step = jax.jit(jax.value_and_grad(summed(cfg, 2)))
    return step(params, batch_of(rows, 2)), rows


def reference(naive, model, rows, **more):
    params, cfg = model

    @jax.jit
    def every(params):
        return sum(naive.row_loss(params, row, 2, cfg, **more) for row in rows)

    return jax.value_and_grad(every)(params)


def test_values_and_gradients_are_those_of_a_pass_for_each_thought(naive, model, found):
    (loss, grads), rows = found
    wanted = reference(naive, model, rows)
    np.testing.assert_allclose(loss, wanted[0], rtol=1e-5)
    chex.assert_trees_all_close(grads, wanted[1], rtol=1e-4, atol=1e-5)


def test_a_gap_is_left_between_positions(naive, model, problems, markers):
    params, cfg = model
    rows, gaps = rows_of(problems, markers, Phase(1), cot.COT), [0, 2, 5]
    batch = collate(rows, start=START, thoughts=0, tail=TAIL, gaps=np.array(gaps))
    loss, grads = jax.jit(jax.value_and_grad(summed(cfg, 0)))(params, batch)

    @jax.jit
    def every(params):
        given = zip(rows, gaps, strict=True)
        return sum(naive.row_loss(params, row, 0, cfg, gap) for row, gap in given)

    wanted = jax.value_and_grad(every)(params)
    np.testing.assert_allclose(loss, wanted[0], rtol=1e-5)
    chex.assert_trees_all_close(grads, wanted[1], rtol=1e-4, atol=1e-5)

    noted = []  # layer by layer, as probes read
    more = {"cfg": cfg, "start": START, "thoughts": 0}
    layered = read(by_layer(params), batch, note=noted.append, **more).hidden
    seen = batch["segments"] > 0
    whole = read(params, batch, **more).hidden
    np.testing.assert_allclose(layered[seen], whole[seen], rtol=1e-4, atol=1e-5)
    assert len(noted) == len(cfg.layers)


@pytest.mark.long
def test_the_last_thought_predicts_where_nothing_stands_behind_it(naive, model, problems, markers):
    params, cfg = model
    rows = rows_of(problems[:2], markers, Phase(1, 2, 1, unmarked=True))
    loss, grads = jax.jit(jax.value_and_grad(summed(cfg, 2)))(params, batch_of(rows, 2))
    wanted = reference(naive, model, rows)
    np.testing.assert_allclose(loss, wanted[0], rtol=1e-5)
    chex.assert_trees_all_close(grads, wanted[1], rtol=1e-4, atol=1e-5)


@pytest.mark.long
def test_a_loop_over_equal_layers_is_the_layers_one_by_one(naive, problems, markers):
    cfg = decoder.DecoderConfig(
        16, 8, (LayerConfig(AttentionConfig(1, 2, 4), mlp=MlpConfig(8)),) * 3, max_length=64
    )
    params = spec.init(decoder.spec(cfg), key=jax.random.key(0))
    assert len(params["runs"]) == 1
    rows = rows_of(problems[:1], markers, Phase(1, slots=2, removed_steps=1))
    loss, grads = jax.jit(jax.value_and_grad(summed(cfg, 2)))(params, batch_of(rows, 2))
    wanted = reference(naive, (params, cfg), rows)
    np.testing.assert_allclose(loss, wanted[0], rtol=1e-5)
    chex.assert_trees_all_close(grads, wanted[1], rtol=1e-4, atol=1e-5)
    layers = jax.jit(summed(cfg, 2))(by_layer(params), batch_of(rows, 2))
    np.testing.assert_allclose(layers, loss, rtol=1e-6)


@pytest.mark.long
def test_thoughts_that_are_written_out_are_those_of_the_loop(model, found):
    (loss, grads), rows = found
    params, cfg = model
    step = jax.value_and_grad(summed(cfg, 2, unroll=64))
    batch = batch_of(rows, 2)
    assert str(jax.make_jaxpr(step)(params, batch)).count("unroll=2")
    again, others = jax.jit(step)(params, batch)
    np.testing.assert_allclose(again, loss, rtol=1e-6)
    chex.assert_trees_all_close(others, grads, rtol=1e-4, atol=1e-5)


@pytest.mark.long
def test_a_gradient_that_stops_at_a_thought_would_be_seen(naive, model, found):
    (loss, grads), rows = found
    cut = reference(naive, model, rows, step=lambda _, state: jax.lax.stop_gradient(state))
    np.testing.assert_allclose(loss, cut[0], rtol=1e-5)
    table = grads["embed"]["table"] - cut[1]["embed"]["table"]
    for row in rows:  # the question's own rows, through the first thought
        assert float(jnp.abs(table[jnp.asarray(row.prefix)]).max()) > 1e-2


@pytest.mark.long
def test_thoughts_that_are_computed_again_give_the_same(model, found):
    (loss, grads), rows = found
    params, cfg = model
    again = jax.jit(jax.value_and_grad(summed(cfg, 2, remat="full")))
    chex.assert_trees_all_close(
        again(params, batch_of(rows, 2)), (loss, grads), rtol=1e-5, atol=1e-6
    )


@pytest.mark.long
@pytest.mark.parametrize("unmarked", [False, True])
def test_a_row_of_fewer_thoughts_is_as_in_a_batch_of_its_own(
    naive, model, problems, markers, unmarked
):
    params, cfg = model
    phases = {n: Phase(1, n, 1, unmarked=unmarked) for n in range(3)}
    counts = (2, 1, 0)
    rows = [
        coconut.slots(problem, phases[n], markers, 0)
        for problem, n in zip(problems, counts, strict=True)
    ]
    short = [dataclasses.replace(row, thoughts=n) for row, n in zip(rows, counts, strict=True)]
    batch = batch_of([rows[0], *short[1:]], 2)
    loss, grads = jax.jit(jax.value_and_grad(summed(cfg, 2)))(params, batch)

    @jax.jit
    def every(params):
        return sum(naive.row_loss(params, row, n, cfg) for row, n in zip(rows, counts, strict=True))

    wanted = jax.value_and_grad(every)(params)
    np.testing.assert_allclose(loss, wanted[0], rtol=1e-5)
    chex.assert_trees_all_close(grads, wanted[1], rtol=1e-4, atol=1e-5)


@pytest.mark.long
def test_half_precision_is_near(model, found):
    (loss, _), rows = found
    params, cfg = model
    half = jax.jit(jax.value_and_grad(summed(cfg, 2, dtype="bfloat16")))
    near, grads = half(params, batch_of(rows, 2))
    np.testing.assert_allclose(near, loss, rtol=0.03)
    assert {leaf.dtype for leaf in jax.tree.leaves(grads)} == {jnp.dtype("float32")}


def test_padding_and_other_rows_change_nothing(model, found):
    (loss, _), rows = found
    params, cfg = model
    wide = thought_loss(cfg, start=START + 3, thoughts=2, feedback="hidden")
    batch = batch_of(rows[::-1], 2, start=START + 3, tail=TAIL + 4)
    batch["tokens"] = np.where(batch["segments"] > 0, batch["tokens"], 5)
    total, weight, _ = jax.jit(wide)(params, None, batch, jax.random.key(0))
    np.testing.assert_allclose(total, loss, rtol=1e-5)
    assert weight == sum(len(row.tail) - row.given for row in rows)


@pytest.mark.parametrize("method", [coconut.METHOD, cot.COT])
def test_without_thoughts_it_is_the_language_models_loss_to_the_bit(
    model, problems, markers, method
):
    params, cfg = model
    batch = batch_of(rows_of(problems, markers, Phase(1), method), 0)
    plain = language_loss(cfg)
    ours = jax.jit(jax.value_and_grad(summed(cfg, 0)))(params, batch)
    want = jax.jit(
        jax.value_and_grad(lambda params, batch: plain(params, None, batch, jax.random.key(0))[0])
    )(params, batch)
    chex.assert_trees_all_equal(ours, want)


def test_a_batch_may_end_with_its_thoughts(model, problems, markers):
    params, cfg = model
    rows = rows_of(problems, markers, Phase(1, slots=2))
    whole = jax.jit(lambda p, b: read(p, b, cfg=cfg, start=START, thoughts=2))
    long = whole(params, batch_of(rows, 2))
    bare = [type(row)(row.prefix, (), 0) for row in rows]
    short = whole(params, batch_of(bare, 2, tail=0))
    assert short.hidden.shape == (3, START + 2, 8) and short.thoughts.shape == (3, 2, 8)
    np.testing.assert_allclose(short.thoughts, long.thoughts, rtol=1e-5, atol=1e-6)
    # The first thought is the state of the column before it.
    np.testing.assert_array_equal(long.thoughts[:, 0], long.hidden[:, START - 1])
    np.testing.assert_array_equal(long.thoughts[:, 1], long.hidden[:, START])
