"""The loss of language modeling: padding and document boundaries count for nothing."""

import dataclasses
import itertools
import re
from functools import partial
from unittest.mock import MagicMock

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pangu_jax.checkpoint.open import open_checkpoint
from pangu_jax.core.errors import InputError
from pangu_jax.core.spec import is_spec
from pangu_jax.models import decoder
from pangu_jax.nn import how as how_module
from pangu_jax.nn.attention import AttentionConfig
from pangu_jax.nn.block import LayerConfig
from pangu_jax.nn.how import HOW, How
from pangu_jax.nn.mlp import MlpConfig
from pangu_jax.nn.moe import MoEConfig, RouterStats
from pangu_jax.sharding.layout import Layout
from pangu_jax.sharding.mesh import make_mesh
from pangu_jax.sharding.rules import preset
from pangu_jax.train.language import auxiliary, language_loss, train_language
from pangu_jax.train.loop_config import LoopConfig
from pangu_jax.train.metrics import read_metrics
from pangu_jax.train.optimizer import make_optimizer
from pangu_jax.train.optimizer_config import OptimizerConfig
from pangu_jax.train.step import init_state, make_step
from pangu_jax.train.stop_signal import Stopped

HEADS = AttentionConfig(2, 1, 4)
ROUTED = LayerConfig(HEADS, moe=MoEConfig(8, 4, 1, 4, router_scale=True))
CFG = decoder.DecoderConfig(16, 8, (LayerConfig(HEADS, mlp=MlpConfig(8)), ROUTED, ROUTED))


@pytest.fixture(scope="module")
def params():
    rng = np.random.default_rng(0)
    return jax.tree.map(
        lambda s: jnp.asarray(rng.normal(size=s.shape), jnp.float32),
        decoder.spec(CFG),
        is_leaf=is_spec,
    )


def packed():
    rng = np.random.default_rng(1)
    tokens = rng.integers(0, 16, (2, 8)).astype(np.int32)
    segments = np.array([[1] * 5 + [2] * 3, [1] * 6 + [0] * 2], np.int32)
    positions = np.array([[0, 1, 2, 3, 4, 0, 1, 2], [0, 1, 2, 3, 4, 5, 0, 0]], np.int32)
    labels = np.roll(tokens, -1, 1)
    weights = np.array([[1] * 4 + [0] + [1] * 2 + [0], [1] * 5 + [0] * 3], np.float32)
    return {"tokens": tokens, "labels": labels, "weights": weights,
            "segments": segments, "positions": positions}  # fmt: skip


def of_documents(params):
    """Nats of each document alone in a row, by full logits; what follows it cannot be seen."""
    batch, total = packed(), 0.0
    parts = [(0, slice(0, 5)), (0, slice(5, 8)), (1, slice(0, 6))]
    documents = [batch["tokens"][row, part] for row, part in parts]
    rows = np.stack([np.pad(d, (0, 8 - len(d))) for d in documents])

    @jax.jit
    def log_probabilities(params, rows):
        hidden = decoder.apply(params, rows, cfg=CFG).hidden
        return jax.nn.log_softmax(decoder.logits(params, hidden, cfg=CFG))

    for d, logp in zip(documents, np.asarray(log_probabilities(params, rows)), strict=True):
        total -= sum(logp[i, d[i + 1]] for i in range(len(d) - 1))
    return total


@pytest.mark.parametrize("documents", [None, 2])
def test_packed_rows_give_the_nats_of_their_documents(params, documents):
    loss = jax.jit(language_loss(CFG, aux_weight=0.0, chunk=3, documents=documents))
    total, weight, metrics = loss(params, None, packed(), jax.random.key(0))
    assert float(weight) == 11
    np.testing.assert_allclose(metrics["nats"], of_documents(params), rtol=1e-5)
    np.testing.assert_allclose(total, metrics["nats"], rtol=1e-6)


def test_rows_of_more_documents_than_promised_are_no_number(params):
    total, _, _ = jax.jit(language_loss(CFG, documents=1))(params, None, packed(), None)
    assert np.isnan(total)


def test_on_a_gpu_no_layers_are_looped_over_unless_asked_for(params, monkeypatch):
    monkeypatch.setattr(how_module, "chip", lambda: "gpu")
    for how, unroll in ((HOW, 2), (How(unroll=1), 1)):
        text = str(jax.make_jaxpr(language_loss(CFG, how=how))(params, None, packed(), None))
        assert ("2" in re.findall(r"length=2\n[^\[]*unroll=(\d+)", text)) == (unroll == 2)


def test_the_auxiliary_loss_is_weighed_by_tokens_and_blind_to_padding(params):
    loss = jax.jit(language_loss(CFG, aux_weight=0.5))
    batch = packed()
    total, weight, metrics = loss(params, None, batch, jax.random.key(0))
    np.testing.assert_allclose(total, metrics["nats"] + 0.5 * metrics["aux"], rtol=1e-6)
    changed = {**batch, "tokens": np.where(batch["segments"] > 0, batch["tokens"], 3)}
    again = loss(params, None, changed, jax.random.key(0))
    np.testing.assert_allclose(again[0], total, rtol=1e-6)
    # At least 1 by the inequality of means, and near it for random routing.
    assert 0.9 < float(metrics["aux"] / weight) < 4


def test_the_auxiliary_loss_is_the_mean_over_routed_layers_however_they_are_stacked():
    rng = np.random.default_rng(2)
    other = LayerConfig(HEADS, moe=MoEConfig(8, 2, 2, 4))
    cfg = decoder.DecoderConfig(16, 8, (*CFG.layers, other))
    router, each = [None], []
    for layer, count in ((ROUTED, 2), (other, 1)):
        groups, active = layer.moe.groups, layer.moe.groups * layer.moe.top_k
        load, prob_sum = rng.random((2, count, groups, 8 // groups), np.float32)
        router.append(RouterStats(load, prob_sum, np.full(count, 5, np.float32), None))
        for f, p in zip(load, prob_sum, strict=True):
            each.append(8 / active * np.vdot(f, p) / 5**2)
    assert float(auxiliary(router, cfg)) == pytest.approx(sum(each) / 3, rel=1e-5)


def test_a_dense_model_has_no_auxiliary_loss(params):
    dense = decoder.DecoderConfig(16, 8, CFG.layers[:1])
    own = {**params, "runs": params["runs"][:1]}
    total, _, metrics = jax.jit(language_loss(dense))(own, None, packed(), jax.random.key(0))
    assert set(metrics) == {"nats"} and float(total) == float(metrics["nats"])


@pytest.mark.slow
@pytest.mark.parametrize(
    "sizes",
    [
        {"expert": 8},
        {"expert": 4, "tensor": 2},
        {"expert": 2, "tensor": 4},
        {"tensor": 8},
        {"data": 2, "expert": 4},
    ],
    ids=str,
)
def test_one_step_of_routed_layers_is_the_same_on_every_layout(sizes):
    """Also of 13 rows, which no number of devices divides, some of them padding."""
    routed = LayerConfig(AttentionConfig(4, 2, 4), moe=MoEConfig(16, 8, 1, 8, router_scale=True))
    cfg = decoder.DecoderConfig(16, 8, (routed, routed))
    # Gradients of the size of rounding, which Adam would blow up, count little beside this eps.
    settings = OptimizerConfig(learning_rate=3e-4, eps=1e-4, warmup_fraction=0)
    batch = {name: np.tile(x, (7, 1))[:13] for name, x in packed().items()}
    found = {}
    for place in (None, Layout(make_mesh(**sizes), preset("expert+tensor"))):
        optimizer = make_optimizer(settings, 4)
        step = make_step(language_loss(cfg, how=How(place)), optimizer)
        state = init_state(decoder.spec(cfg), optimizer, key=jax.random.key(0), layout=place)
        before = jax.device_get(state.params)
        state, metrics = step(state, batch, jax.random.key(1))
        found[place] = jax.device_get((state.params, metrics))
    moved = jax.tree.map(lambda a, b: np.abs(a - b).max(), before, found[None][0])
    assert max(jax.tree.leaves(moved)) > 1e-4
    one, other = found.values()
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), one[0], other[0])
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), one[1], other[1])


def test_a_training_leaves_a_checkpoint_and_goes_on_from_it(tmp_path):
    cfg = decoder.DecoderConfig(16, 8, CFG.layers[:1])
    asked = []

    def batches(step):
        asked.append(step)
        return itertools.repeat(packed())

    options = {"optimizer": OptimizerConfig(learning_rate=1e-2), "how": How(dtype=jnp.float32)}
    first = train_language(cfg, batches, tmp_path, loop=LoopConfig(4), **options)
    again = train_language(cfg, batches, tmp_path, loop=LoopConfig(4), **options)
    assert asked == [0]
    found, its_cfg, _ = open_checkpoint(str(tmp_path))
    assert its_cfg == cfg
    for other in (again, found):
        chex.assert_trees_all_equal(first, other)
    losses = [x["loss"] for x in read_metrics(tmp_path / "metrics.jsonl") if "loss" in x]
    assert len(losses) == 4 and losses[-1] < losses[0]


def test_a_layout_reaches_the_state_and_the_batches_too(tmp_path, monkeypatch):
    place, seen = Layout(make_mesh(fsdp=2, devices=jax.devices()[:2]), preset("fsdp")), {}

    def train(loss, spec, batches, **given):
        seen.update(given)
        raise Stopped(0)

    monkeypatch.setattr("pangu_jax.train.language.train", train)
    cfg = decoder.DecoderConfig(16, 8, CFG.layers[:1])
    with pytest.raises(Stopped):
        train_language(cfg, itertools.repeat, tmp_path, loop=LoopConfig(4), how=How(place))
    assert seen["layout"] is place


def test_a_training_is_not_gone_on_with_by_other_settings(tmp_path, monkeypatch):
    monkeypatch.setattr("pangu_jax.train.language.train", lambda *_, **__: MagicMock())
    cfg, loop = decoder.DecoderConfig(16, 8, CFG.layers[:1]), LoopConfig(4)
    run = partial(train_language, cfg, itertools.repeat, tmp_path)
    run(loop=loop)
    run(loop=dataclasses.replace(loop, checkpoint_every=7), how=How(remat="full"))
    for name, changes in {
        "steps": {"loop": LoopConfig(5)},
        "optimizer": {"loop": loop, "optimizer": OptimizerConfig(b2=0.9)},
        "aux_weight": {"loop": loop, "aux_weight": 0.5},
        "dtype": {"loop": loop, "how": How(dtype="bfloat16")},
    }.items():
        with pytest.raises(InputError, match=f"a run with another {name}"):
            run(**changes)
    with pytest.raises(InputError, match="a run with another model"):
        train_language(CFG, itertools.repeat, tmp_path, loop=loop)
    with pytest.raises(TypeError, match="layuot"):
        run(loop=loop, layuot=None)
