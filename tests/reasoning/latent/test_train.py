"""Training in phases: a tiny model learns to multiply digits, and what is refused."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pangu_jax.core.errors import InputError
from pangu_jax.data.multiplication import multiplication
from pangu_jax.data.word_tokenizer import opened, word_files
from pangu_jax.models import decoder
from pangu_jax.models.presets import byte_model
from pangu_jax.nn.moe import MoEConfig
from pangu_jax.reasoning.latent import train as latent
from pangu_jax.reasoning.latent.answer import solve
from pangu_jax.reasoning.latent.curriculum import ALL, CurriculumConfig, Phase
from pangu_jax.reasoning.latent.registry import METHODS
from pangu_jax.reasoning.latent.score import score
from pangu_jax.reasoning.latent.slots import NAMES, Encoded, encode, markers_of
from pangu_jax.train.loop_config import LoopConfig

QUICK = dataclasses.replace(latent.OPTIMIZER, learning_rate=1e-2, warmup_fraction=0.05)


@pytest.mark.long
def test_a_tiny_model_learns_the_table_of_one_digit():
    problems = [multiplication(a, b, 1) for a in range(1, 6) for b in range(1, 6)]
    with opened(word_files(["0 1 2 3 4 5 6 7 8 9 *"], NAMES)) as tokenizer:
        markers, size = markers_of(tokenizer), tokenizer.vocab_size
        encoded = [encode(problem, tokenizer) for problem in problems]
    cfg = dataclasses.replace(byte_model(32, 1, 2, 1, 16, 64, 32), vocab=size)
    curriculum = CurriculumConfig(200, stage_steps=30, stages=1)
    phases = latent.plan("coconut", encoded, curriculum)
    state = latent.train(
        encoded,
        phases,
        method="coconut",
        markers=markers,
        model=cfg,
        loop=LoopConfig(200),
        batch=25,
        optimizer=QUICK,
        label=None,
    )
    written = solve(
        state.params,
        encoded,
        METHODS["coconut"],
        phases[-1],
        markers,
        cfg=cfg,
        max_new_tokens=6,
        batch=25,
    )
    assert score(written, encoded, 1.0).accuracy > 0.8  # by the commonest product 0.12


@pytest.mark.parametrize("layers,unroll", [(latent.UNROLLED, latent.UNROLLED), (13, None)])
def test_small_models_have_no_loops_on_a_gpu(monkeypatch, markers, problems, layers, unroll):
    seen, cfg = [], byte_model(8, layers, 1, 1, 8, 8, 32)
    spied = dataclasses.replace(METHODS["coconut"], loss=lambda *_, how, **__: seen.append(how))
    monkeypatch.setattr("pangu_jax.nn.how.chip", lambda: "gpu")
    monkeypatch.setattr(latent, "find_method", lambda name: spied)
    monkeypatch.setattr(latent, "train_stages", lambda *_, **__: None)
    phases = latent.plan("coconut", problems, CurriculumConfig(4, stages=1))
    more = {"method": "coconut", "markers": markers, "model": cfg, "batch": 2}
    latent.train(problems, phases, loop=LoopConfig(4), **more)
    assert len(seen) == len(phases) and {how.unroll for how in seen} == {unroll}


def test_every_phase_begins_with_a_fresh_optimizer(model, markers, problems):
    _, cfg = model
    phases = latent.plan("icot", problems, CurriculumConfig(9, stage_steps=2, most_removed=2))
    assert [phase.steps for phase in phases] == [2, 2, 5]
    state = latent.train(
        problems,
        phases,
        method="icot",
        markers=markers,
        model=cfg,
        loop=LoopConfig(9),
        batch=3,
        label=None,
    )
    counts = {int(x) for x in jax.tree.leaves(state.opt_state) if np.ndim(x) == 0}
    assert counts == {5} and int(state.step) == 9


def test_every_phase_warms_up_over_a_share_of_its_own_steps(model, markers, problems, monkeypatch):
    """As a share of the run, most of a short stage would be warm-up, and of a long one little."""
    phases = latent.plan("icot", problems, CurriculumConfig(49, stage_steps=4, most_removed=2))
    stages = []
    monkeypatch.setattr(latent, "train_stages", lambda found, *_, **__: stages.extend(found))
    half = dataclasses.replace(QUICK, warmup_fraction=0.5, weight_decay=0.0)
    more = {"method": "icot", "markers": markers, "model": model[1], "batch": 3}
    latent.train(problems, phases, loop=LoopConfig(49), optimizer=half, **more)
    assert [stage.steps for stage in stages] == [4, 4, 41]
    assert stages[0].optimizer is stages[1].optimizer  # and so share what is compiled
    weights = {"x": jnp.ones(1)}
    for stage, warmup in zip(stages, (2, 2, 20), strict=True):
        rates, state = [], stage.optimizer.init(weights)
        for _ in range(4):
            change, state = stage.optimizer.update(weights, state, weights)
            rates.append(-float(change["x"][0]))
        want = [min(step / warmup, 1) * 1e-2 for step in range(4)]
        np.testing.assert_allclose(rates, want, rtol=1e-5, atol=1e-12)


def test_batches_are_those_of_the_seed_the_phase_and_its_step(
    model, markers, problems, monkeypatch
):
    phases = latent.plan("icot", problems, CurriculumConfig(9, stage_steps=2, most_removed=2))
    more = {"method": "icot", "markers": markers, "model": model[1], "batch": 16}
    stages = []
    monkeypatch.setattr(latent, "train_stages", lambda found, *_, **__: stages.extend(found))
    for seed in (0, 0, 1):
        latent.train(problems, phases, loop=LoopConfig(9, seed=seed), **more)
    found = [[next(stage.batches(step))["tokens"] for step in range(2)] for stage in stages]
    np.testing.assert_array_equal(found[:3], found[3:6])
    questions = [tokens[:, :6].tobytes() for two in found[3:] for tokens in two]
    assert len(set(questions)) == 12  # of two seeds, three phases, and two steps of each


def test_what_cannot_be_trained_is_refused(model, markers, problems):
    _, cfg = model
    experts = MoEConfig(experts=2, groups=1, top_k=1, width=4)
    routed = tuple(dataclasses.replace(x, mlp=None, moe=experts) for x in cfg.layers)
    with pytest.raises(InputError, match="has experts"):
        latent.check_model(dataclasses.replace(cfg, layers=routed))
    dropped = tuple(dataclasses.replace(x, dropout=0.1) for x in cfg.layers)
    with pytest.raises(InputError, match="dropout"):
        latent.check_model(dataclasses.replace(cfg, layers=dropped))
    keeping = (Phase(1), Phase(1, removed_steps=ALL, chain_room=3))
    with pytest.raises(InputError, match="models without windows"):
        latent.check_room(cfg, keeping)
    latent.check_room(cfg, keeping[:1])
    latent.check_room(dataclasses.replace(cfg, layers=cfg.layers[:1]), keeping)
    with pytest.raises(InputError, match="the id 99"):
        latent.check_ids([*problems, Encoded((1,), ((99,),), (1,))], markers, cfg)
    for tokens in (((16,), (), (1,)), ((1,), (), (16,)), ((1,), ((2,), (16, 3)), (1,))):
        with pytest.raises(InputError, match="the id 16, the model's ends at 15"):
            latent.check_ids([Encoded(*tokens), *problems], markers, cfg)
    with pytest.raises(InputError, match="the id 15, the model's ends at 14"):  # a marker
        latent.check_ids(problems, markers, dataclasses.replace(cfg, vocab=15))
    with pytest.raises(InputError, match="empty question or answer"):
        latent.check_ids([Encoded((1,), (), ())], markers, cfg)
    with pytest.raises(InputError, match="no problems"):
        latent.check_ids([], markers, cfg)


def test_a_vocabulary_grows_by_rows_like_the_mean(model):
    params, cfg = model
    grown, new = latent.with_rows(params, cfg, [10, 13], 19)
    assert new.vocab == 24 and decoder.spec(new)["head"]["kernel"].shape == (8, 24)
    for rows, old in (
        (grown["embed"]["table"], params["embed"]["table"]),
        (grown["head"]["kernel"].T, params["head"]["kernel"].T),
    ):
        kept = np.array([*range(10), 11, 12, 14, 15])  # markers that there were are trained ones
        np.testing.assert_array_equal(rows[kept], old[kept])
        np.testing.assert_allclose(
            rows[np.array([10, 13, 16, 23])], old.mean(0) + np.zeros((4, 8)), rtol=1e-6
        )
    same, cfg_again = latent.with_rows(params, cfg, [], 16)
    assert cfg_again == cfg
    np.testing.assert_array_equal(same["embed"]["table"], params["embed"]["table"])
