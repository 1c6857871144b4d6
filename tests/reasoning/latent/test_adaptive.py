"""Layers that tokens may skip: values and gradients of a loop over tokens' choices."""

import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pangu_jax.core.errors import InputError
from pangu_jax.models import thinker
from pangu_jax.nn.attention import AttentionConfig
from pangu_jax.nn.block import LayerConfig
from pangu_jax.nn.moe import MoEConfig
from pangu_jax.reasoning.latent import adaptive, looped
from pangu_jax.reasoning.latent.answer import solve
from pangu_jax.reasoning.latent.config import MethodConfig
from pangu_jax.reasoning.latent.curriculum import CurriculumConfig
from pangu_jax.reasoning.latent.loss import thought_loss
from pangu_jax.reasoning.latent.score import scores
from pangu_jax.reasoning.latent.slots import collate
from pangu_jax.reasoning.latent.train import train
from pangu_jax.train.loop_config import LoopConfig
from pangu_jax.train.optimizer_config import OptimizerConfig

OWN = MethodConfig(turns=2, depth=0.2, steer=3.0)
(PHASE,) = adaptive.METHOD.phases(CurriculumConfig(9), 9)


@pytest.fixture(scope="module")
def routed(model):
    """The decoder of all tests in two turns, with routers that are often in doubt."""
    params, plain = model
    cfg = adaptive.model(plain, OWN)
    kernel = np.random.default_rng(1).normal(size=(2, plain.width, 1, 2))
    return {**params, "depth": {"kernel": jnp.asarray(kernel, jnp.float32)}}, cfg


@pytest.fixture(scope="module")
def rows(problems, markers):
    return [adaptive.METHOD.slots(problem, PHASE, markers, 0) for problem in problems]


def loop(naive, params, ids, cfg):
    """[T, D] after the final norm, and of each later layer which tokens ran and how likely."""
    plain, number, ran, likely = cfg.decoder, 0, [], []
    x = params["embed"]["table"][jnp.asarray(ids)]
    for turn in range(cfg.turns):
        for run, layer in zip(params["runs"], plain.layers, strict=True):  # runs of one layer
            y = naive.layer(jax.tree.map(lambda leaf: leaf[0], run), x, layer.attention, plain)
            if turn:
                score = x @ params["depth"]["kernel"][number, :, 0]
                chance = jax.nn.sigmoid(score[:, 0] - score[:, 1])
                ran.append(score[:, 0] >= score[:, 1])
                likely.append(chance)
                y = jnp.where(ran[-1][:, None], x + chance[:, None] * (y - x), x)
                number += 1
            x = y
    hidden = naive.norm(params["norm"]["scale"], x, plain.norm_eps)
    return hidden, jnp.stack(ran), jnp.stack(likely)


def test_loss_and_gradients_are_those_of_a_loop(naive, routed, rows):
    params, cfg = routed

    def reference(params):
        nats, ran, likely, weight = 0.0, [], [], 0
        for row in rows:
            hidden, *found = loop(naive, params, [*row.prefix, *row.tail], cfg)
            for whole, part in zip((ran, likely), found, strict=True):
                whole.append(part)
            scores = jax.nn.log_softmax(hidden @ params["head"]["kernel"])
            first, weight = len(row.prefix), weight + len(row.tail)
            nats -= sum(scores[first + i - 1, token] for i, token in enumerate(row.tail))
        share = jnp.concatenate(ran, 1).mean(1)
        pull = 2 * jax.lax.stop_gradient(share - OWN.depth) * jnp.concatenate(likely, 1).mean(1)
        apart = OWN.steer * weight * jnp.square(share - OWN.depth).mean()
        return nats + OWN.steer * weight * pull.mean(), (nats + apart, share)

    (_, (want, share)), slope = jax.jit(jax.value_and_grad(reference, has_aux=True))(params)
    assert ((share > 0.1) & (share < 0.9)).all()  # so that both sides are tried
    loss = adaptive.depth_loss(cfg, start=8, thoughts=0, feedback="", own=OWN)
    batch = collate(rows, start=8, thoughts=0, tail=8)
    found, slopes = jax.jit(jax.value_and_grad(lambda p: loss(p, None, batch, None)[0]))(params)
    np.testing.assert_allclose(found, want, rtol=1e-5)
    chex.assert_trees_all_close(slopes, slope, rtol=3e-4, atol=5e-5)
    assert np.abs(slopes["depth"]["kernel"]).min() > 0


def test_where_all_run_surely_it_is_looped_and_where_none_does_one_turn(routed, rows):
    params, cfg = routed
    batch = collate(rows, start=8, thoughts=0, tail=8)

    def nats(params, cfg):
        return float(thought_loss(cfg, start=8, thoughts=0)(params, None, batch, None)[0])

    def steered(params, amount):
        """The embedding's first number is huge, and tells the routers what to do."""
        table = params["embed"]["table"].at[:, 0].set(1e3)
        kernel = jnp.zeros_like(params["depth"]["kernel"]).at[:, 0, 0, 0].set(amount)
        return {**params, "embed": {"table": table}, "depth": {"kernel": kernel}}

    runs, stays = steered(params, 1.0), steered(params, -1.0)
    full = looped.model(cfg.decoder, OWN)
    np.testing.assert_allclose(nats(runs, cfg), nats(runs, full), rtol=1e-5)
    assert nats(stays, cfg) == nats(stays, cfg.decoder) != nats(stays, full)


@pytest.mark.long
def test_answers_are_those_of_a_loop_and_depth_is_counted(naive, routed, problems, markers, rows):
    params, cfg = routed
    deep, plain = thinker.written_out(params, cfg)
    assert [layer.skippable for layer in plain.layers] == [False, False, True, True]
    asked = {"cfg": plain, "max_new_tokens": 3, "batch": 2}
    written = solve(deep, problems, adaptive.METHOD, PHASE, markers, **asked)
    ran = tokens = 0
    for row, answer in zip(rows, written, strict=True):
        ids = [*row.prefix, *answer.ids]
        hidden, chosen, _ = jax.jit(lambda p, ids=ids: loop(naive, p, ids, cfg))(params)
        best = jnp.argmax(hidden @ params["head"]["kernel"], -1)[len(row.prefix) - 1 : -1]
        assert answer.ids == tuple(best.tolist())
        ran, tokens = ran + int(chosen.sum()), tokens + len(ids)
    found = scores(deep, problems, adaptive.METHOD, PHASE, markers, **asked)[""]
    assert found.layers == pytest.approx(2 + ran / tokens)


@pytest.mark.long
@pytest.mark.parametrize("depth", [0.25, 0.75])
def test_shares_come_to_what_is_asked_for(depth, model, problems, markers):
    _, plain = model
    own = MethodConfig(turns=3, depth=depth, steer=10.0)
    cfg = adaptive.model(plain, own)
    state = train(
        problems,
        adaptive.METHOD.phases(CurriculumConfig(150), 9),
        method="adaptive",
        markers=markers,
        model=cfg,
        loop=LoopConfig(150),
        batch=8,
        own=own,
        optimizer=OptimizerConfig(learning_rate=1e-2, schedule="constant"),
        label=None,
    )
    deep, plain = thinker.written_out(state.params, cfg)
    asked = {"cfg": plain, "max_new_tokens": 4, "batch": 3}
    found = scores(deep, problems, adaptive.METHOD, PHASE, markers, **asked)[""]
    assert found.accuracy == 1 and abs((found.layers - 2) / 4 - depth) < 0.12


def test_what_cannot_be_skipped_is_refused(model):
    _, plain = model
    with pytest.raises(InputError, match="no layer that a token may skip"):
        adaptive.model(plain, dataclasses.replace(OWN, turns=1))
    with pytest.raises(InputError, match="depth must be a share"):
        MethodConfig(depth=1.5)
    with pytest.raises(InputError, match="experts can't be skippable"):
        LayerConfig(AttentionConfig(1, 2, 4), moe=MoEConfig(4, 2, 1, 8), skippable=True)
