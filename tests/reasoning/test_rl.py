"""Reinforcement learning in one process: synchronous at 0, bounded above, and it learns."""

import dataclasses
import functools
import os
import signal

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from pangu_jax.checkpoint.store import Store
from pangu_jax.core.errors import InputError
from pangu_jax.core.spec import init
from pangu_jax.decode.engine import Engine, Request, answers
from pangu_jax.decode.sampling_config import SamplingConfig
from pangu_jax.losses.policy import DAPO, GRPO, advantages
from pangu_jax.models import decoder
from pangu_jax.nn.attention import AttentionConfig
from pangu_jax.nn.block import LayerConfig
from pangu_jax.nn.how import HOW, How
from pangu_jax.nn.mlp import MlpConfig
from pangu_jax.reasoning import rl, rl_journal, rl_resume, schedule
from pangu_jax.reasoning.rl_trainer import make_score
from pangu_jax.reasoning.rollout import Rollout, make_batch
from pangu_jax.reasoning.sampler import sample_key
from pangu_jax.reasoning.schedule_state import Ended, Graded, ScheduleConfig, Updated
from pangu_jax.sharding.layout import Layout
from pangu_jax.sharding.mesh import make_mesh
from pangu_jax.sharding.rules import preset
from pangu_jax.train.policy import answer_loss
from pangu_jax.train.step import init_state, make_step
from pangu_jax.train.stop_signal import Stopped

MODEL = decoder.DecoderConfig(13, 16, (LayerConfig(AttentionConfig(2, 1, 4), mlp=MlpConfig(24)),))
STOP, WANTED = 3, 7
OPTIMIZER = optax.adam(2e-2)
SYNC = rl.RlConfig(
    ScheduleConfig(0, batch=3, group=4, slots=5),
    policy=GRPO,
    updates=50,
    length=16,
    max_new_tokens=9,
    temperature=0.9,
    stop_ids=(STOP,),
)


def model():
    return init(decoder.spec(MODEL), key=jax.random.key(0))


def prompt(group):
    return [1, 2 + group % 3, 5][: 2 + group % 2]


def reward(question, found):
    return [float(np.mean(answer.ids == WANTED)) for answer in found]


@functools.cache
def run(cfg):
    seen = []
    state = rl.train(
        *(model(), prompt, reward),
        **dict(model=MODEL, cfg=cfg, optimizer=OPTIMIZER, on_update=seen.append),
    )
    return jax.device_get(state.params), seen


def changed(schedule, **changes):
    return dataclasses.replace(
        SYNC, schedule=dataclasses.replace(SYNC.schedule, **schedule), **changes
    )


STALE = changed({"staleness": 3, "slots": 48}, policy=DAPO, updates=36)


def request(cfg, key, group, sample):
    key = jax.random.fold_in(jax.random.fold_in(key, group), sample)
    heat = SamplingConfig(cfg.temperature)
    return Request(prompt(group), cfg.max_new_tokens, heat, cfg.stop_ids, key)


@pytest.mark.parametrize("sample", [0, 5, 7, 8, 21])
def test_the_key_of_a_sample_is_its_own(sample):
    want = request(SYNC, jax.random.key(4), 9, sample).key
    for _ in range(2):
        found = sample_key(4, 9, sample)
        np.testing.assert_array_equal(jax.random.key_data(found), jax.random.key_data(want))


def plain(cfg):
    """Samples a batch, updates, and so on; rows are made one by one."""
    b, n, key = cfg.schedule.batch, cfg.schedule.group, jax.random.key(cfg.seed)
    state = init_state(decoder.spec(MODEL), OPTIMIZER, key=key, params=model())
    loss = answer_loss(MODEL, cfg.policy, temperature=cfg.temperature)
    step = make_step(loss, OPTIMIZER, accumulate=cfg.accumulate)
    score = make_score(MODEL, temperature=cfg.temperature, accumulate=cfg.accumulate, how=HOW)
    engine, first, number = Engine(model(), cfg=MODEL, slots=3, length=16, stops=1), model(), 0
    for _ in range(cfg.updates):
        engine.update(state.params)
        places, found, rewards = [], {}, []
        while len(rewards) < b:
            groups = range(number, number + b - len(rewards))
            number = groups.stop
            asked = [request(cfg, key, group, sample) for group in groups for sample in range(n)]
            made = dict(answers(engine, asked))
            for place, group in enumerate(groups):
                mine = [made[place * n + sample] for sample in range(n)]
                told = reward(group, mine)
                if cfg.schedule.replace_equal_groups and len(set(told)) == 1:
                    continue
                found |= {len(places) + sample: answer for sample, answer in enumerate(mine)}
                places += [(group, sample) for sample in range(n)]
                rewards.append(told)
        gain, counts = jax.jit(advantages)(jnp.array(rewards), jnp.ones((b, n), bool))
        names = ("tokens", "labels", "segments", "behavior", "mask")
        assert len(places) == b * n
        batch = {x: np.zeros((b * n, 16), "i4" if x in names[:3] else "f4") for x in names}
        for row, (group, _) in enumerate(places):
            ids, begin = [*prompt(group), *found[row].ids.tolist()], len(prompt(group)) - 1
            for t in range(len(ids) - 1):
                batch["tokens"][row, t], batch["labels"][row, t] = ids[t], ids[t + 1]
                batch["segments"][row, t] = 1
                if t >= begin:
                    batch["behavior"][row, t] = found[row].sampled_log_probs[t - begin]
                    batch["mask"][row, t] = counts[row // n, row % n]
        if not batch["mask"].any():
            continue  # nothing to learn: the weights stay as they are
        if cfg.policy.kl:
            batch["reference"] = score(first, batch)
        state, _ = step(state, {**batch, "advantage": np.asarray(gain).reshape(-1)}, key)
    return jax.device_get(state.params)


@pytest.mark.long
def test_a_bound_of_zero_is_plain_synchronous_training_bit_for_bit():
    found, seen = run(SYNC)
    want = plain(SYNC)
    for x, y in zip(jax.tree.leaves(found), jax.tree.leaves(want), strict=True):
        np.testing.assert_array_equal(x, y)
    assert all(update["ages"] == [0, 0, 0] for update in seen)


@pytest.mark.long
def test_it_is_so_with_microbatches_a_reference_and_groups_that_are_replaced():
    policy = dataclasses.replace(DAPO, kl=0.05)
    more = {"policy": policy, "updates": 12, "accumulate": 3}
    cfg = changed({"replace_equal_groups": True}, **more)
    found, seen = run(cfg)
    chex.assert_trees_all_equal(found, plain(cfg))
    assert seen[-1]["dropped"] > 0 and seen[-1]["kl"] > 0


@pytest.mark.long
def test_it_learns_what_is_rewarded():
    for cfg in (SYNC, STALE):
        rewards = [update["reward"] for update in run(cfg)[1]]
        assert np.mean(rewards[:5]) < 0.3 and np.mean(rewards[-5:]) > 0.7


def test_older_answers_are_used_up_to_the_bound_and_corrected():
    seen = run(STALE)[1]
    ages = np.concatenate([update["ages"] for update in seen])
    assert ages.max() == 3 and [update["step"] for update in seen] == list(range(1, 37))
    assert max(update["weight_ratio"] for update in seen[1:]) != 1
    assert not any(update["stale_tokens"] for update in seen)


def test_a_run_repeats_bit_for_bit():
    cfg = dataclasses.replace(STALE, updates=8)
    found = run(cfg)[0]
    run.cache_clear()
    for x, y in zip(jax.tree.leaves(found), jax.tree.leaves(run(cfg)[0]), strict=True):
        np.testing.assert_array_equal(x, y)


@pytest.mark.long
def test_on_several_devices_it_is_the_same_run_and_goes_on_as_one(tmp_path):
    """To rounding: the answers, and what they are trained to."""
    layout = Layout(make_mesh(data=2, fsdp=2, tensor=2), preset("fsdp+tensor"))
    plan = ScheduleConfig(1, batch=3, group=4, slots=8)
    cfg = dataclasses.replace(SYNC, schedule=plan, updates=5, save_every=2)
    want, told = [], []
    alone = rl.train(
        model(), prompt, reward, model=MODEL, cfg=cfg, optimizer=OPTIMIZER, on_update=want.append
    )

    def stopped(line):
        told.append(line)
        if len(told) == 3:
            os.kill(os.getpid(), signal.SIGTERM)

    more = {"model": MODEL, "cfg": cfg, "optimizer": OPTIMIZER, "how": How(layout)}
    with pytest.raises(Stopped):
        rl.train(model(), prompt, reward, folder=tmp_path, on_update=stopped, **more)
    again = []
    state = rl.train(model(), prompt, reward, folder=tmp_path, on_update=again.append, **more)
    found = {line["step"]: line for line in [*told, *again]}
    for line in want[:3]:  # later ones hang on which answers ran when it was stopped
        for name in ("reward", "tokens", "ages"):
            assert found[line["step"]][name] == pytest.approx(line[name])
    kernel = state.params["runs"][0]["attention"]["query"]["kernel"]
    assert not kernel.is_fully_replicated
    assert int(state.step) == int(alone.step) == 5


def untimed(seen):
    timed = ("seconds", "generator_idle", "trainer_idle", "lost", "tokens_per_second")
    return [{k: v for k, v in line.items() if k not in timed} for line in seen]


class Killed(Exception):
    pass


def killed():
    raise Killed


def interrupted(cfg, folder, dies, error):
    """Ended after the fifth update, two after the last checkpoint, and gone on with."""
    rest = dict(model=MODEL, cfg=cfg, optimizer=OPTIMIZER, folder=folder)

    with pytest.raises(error):
        rl.train(model(), prompt, reward, **rest, on_update=lambda x: x["step"] == 5 and dies())
    seen = []

    def checked(group, found):  # versions go on from the last checkpoint's
        assert min(answer.versions.min() for answer in found) >= 3
        return reward(group, found)

    state = rl.train(model(), prompt, checked, **rest, on_update=seen.append)
    return jax.device_get(state.params), seen


def test_answers_are_kept_as_they_are(tmp_path):
    answer = dict(answers(Engine(model(), cfg=MODEL, slots=1, length=16), [Request([1], 4)]))[0]
    cfg = ScheduleConfig(staleness=1, batch=2, group=1, slots=3)
    plan, _ = schedule.begin(cfg)
    for event in (Ended(0, 0), Graded(0), Ended(2, 0), Graded(2, (1.0,))):
        plan, _ = schedule.step(plan, event)
    plan, _ = schedule.step(plan, Updated())
    plan, _ = schedule.step(plan, Ended(1, 0))
    kept = {1: Rollout([1], 7, {0: answer}), 3: Rollout([1], 3)}
    state = init_state(decoder.spec(MODEL), OPTIMIZER, key=jax.random.key(0))
    with Store(tmp_path) as store:
        rl_resume.save(store, rl_resume.Snapshot(plan, state, kept), {})
        store.wait()
        found = rl_resume.restore(store, decoder.spec(MODEL), OPTIMIZER, cfg, {})
        rollouts = found.rollouts
        assert found.plan == plan and rollouts[3] == kept[3] and rollouts[1].rewards is None
        assert rollouts[1].question == 7
        for x, y in zip(
            dataclasses.astuple(rollouts[1].answers[0]), dataclasses.astuple(answer), strict=True
        ):
            np.testing.assert_array_equal(x, y)
        rl_resume.save(store, rl_resume.Snapshot(plan, state, {3: kept[3]}), {})
        with pytest.raises(InputError, match="lacks answers or rewards of group 1"):
            rl_resume.restore(store, decoder.spec(MODEL), OPTIMIZER, cfg, {})
    with pytest.raises(InputError, match="as many"):
        rl_journal.SavedAnswer(0, (1,), (0.5,), (), (0,), "stop")
    with pytest.raises(InputError, match="from 0 to"):
        rl_journal.SavedAnswer(0, (2**31,), (0.5,), (0.5,), (0,), "stop")


def test_a_synchronous_run_that_was_killed_ends_in_the_same_bits(tmp_path):
    cfg = dataclasses.replace(SYNC, updates=8, save_every=3)
    found, seen = interrupted(cfg, tmp_path, killed, Killed)
    want, uninterrupted = run(cfg)
    for x, y in zip(jax.tree.leaves(found), jax.tree.leaves(want), strict=True):
        np.testing.assert_array_equal(x, y)
    assert untimed(seen) == untimed(uninterrupted)
    assert (tmp_path / "rollouts" / "6.json").exists()
    (tmp_path / "rollouts" / "8.json").write_text("{}")
    with pytest.raises(InputError, match=r"8\.json lacks the field"):
        rl.train(
            model(), prompt, reward, model=MODEL, cfg=cfg, optimizer=OPTIMIZER, folder=tmp_path
        )


def test_a_run_ahead_that_was_told_to_stop_loses_no_group_and_keeps_its_bound(tmp_path):
    cfg = dataclasses.replace(STALE, updates=8, save_every=3)
    told = lambda: os.kill(os.getpid(), signal.SIGTERM)  # noqa: E731
    _, seen = interrupted(cfg, tmp_path, told, Stopped)
    assert (tmp_path / "rollouts" / "5.json").exists()
    assert [update["step"] for update in seen] == list(range(1, 9))
    groups = sorted(group for update in seen for group in update["groups"])
    assert len(set(groups)) == len(groups) == 24 and groups[-1] < 36
    assert max(age for update in seen for age in update["ages"]) <= 3
    spec = decoder.spec(MODEL)
    with Store(tmp_path) as store:
        found = rl_resume.restore(store, spec, OPTIMIZER, cfg.schedule, {})
        plan, rollouts = found.plan, found.rollouts
        assert {g.number for g in (*plan.ready, *plan.training)} <= set(rollouts)
        with pytest.raises(InputError, match="another schedule"):
            rl_resume.restore(store, spec, OPTIMIZER, SYNC.schedule, {})


def sampled(temperature, cfg=MODEL, how=HOW):
    """Rows as they are trained on, and the scores that the engine sampled them at."""
    params = init(decoder.spec(cfg), key=jax.random.key(0))
    engine = Engine(params, cfg=cfg, slots=3, length=16, stops=1, how=how)
    ask = SamplingConfig(temperature)
    asked = [Request(prompt(i), 9, ask, (STOP,), jax.random.key(i)) for i in range(8)]
    found = dict(answers(engine, asked))
    groups = [Rollout(prompt(i), i, {0: found[i]}, np.zeros(1)) for i in range(8)]
    return params, make_batch(groups).arrays, found


CAPPED = AttentionConfig(2, 1, 4, window=3, softcap=0.5)
WINDOWED = dataclasses.replace(
    MODEL,
    layers=(LayerConfig(CAPPED, mlp=MlpConfig(24)), MODEL.layers[0]),
    logit_softcap=0.7,
)


@pytest.mark.long(but=1)
@pytest.mark.parametrize(
    "temperature, cfg, dtype, off",
    [
        (1.0, MODEL, None, 1e-4),
        (0.6, MODEL, None, 1e-4),
        (0.8, WINDOWED, None, 1e-4),
        (0.8, WINDOWED, "bfloat16", 0.02),
    ],
)
def test_the_trainer_scores_tokens_as_the_sampler_did(temperature, cfg, dtype, off):
    how = How(dtype=dtype)
    params, batch, found = sampled(temperature, cfg, how)
    scores = make_score(cfg, temperature=temperature, accumulate=1, how=how)(params, batch)
    parts = make_score(cfg, temperature=temperature, accumulate=4, how=how)(params, batch)
    np.testing.assert_allclose(parts, scores, atol=off / 10)
    scores = np.asarray(scores)
    for row in range(8):
        first, count = len(prompt(row)) - 1, len(found[row].ids)
        here = slice(first, first + count)
        np.testing.assert_array_equal(batch["behavior"][row, here], found[row].sampled_log_probs)
        np.testing.assert_allclose(scores[row, here], found[row].sampled_log_probs, atol=off)


def test_order_and_padding_of_a_batch_do_not_matter_through_the_model():
    params, batch, _ = sampled(1.0)
    batch["advantage"] = np.linspace(-1, 2, 8, dtype=np.float32)
    batch["mask"] = np.where(batch["behavior"] != 0, 1.0, 0.0).astype(np.float32)
    batch["behavior"] += np.linspace(-0.3, 0.3, batch["mask"].size).reshape(8, -1)
    loss = jax.jit(lambda params, batch: answer_loss(MODEL, GRPO)(params, None, batch, None)[:2])
    want = loss(params, batch)
    order = np.random.default_rng(0).permutation(8)
    junk = {"tokens": 5, "labels": 6, "behavior": 9.0}
    other = {
        k: np.pad(v[order], ((0, 0), (0, 5))[: v.ndim], constant_values=junk.get(k, 0))
        for k, v in batch.items()
    }
    other["advantage"] = batch["advantage"][order]
    np.testing.assert_allclose(loss(params, other), want, rtol=1e-6, atol=1e-6)
    assert abs(want[0]) > 0.01


def test_batches_mask_what_counts_for_nothing_and_what_is_too_old():
    ask = [Request([1, 2], 4, SamplingConfig(1.0), key=jax.random.key(i)) for i in range(4)]
    found = dict(answers(Engine(model(), cfg=MODEL, slots=4, length=16), ask))
    old = dataclasses.replace(found[0], versions=np.array([0, 0, 1, 2], np.int32))
    groups = [
        Rollout([1, 2], 0, {0: old, 1: found[1]}, np.array([1.0, 0.0])),
        Rollout([1, 2], 0, {1: found[3], 0: found[2]}, np.array([np.nan, 1.0])),
    ]
    made = make_batch(groups, oldest=1)
    np.testing.assert_array_equal(made.arrays["mask"].sum(-1), [2, 0, 0, 0])
    np.testing.assert_array_equal(make_batch(groups).arrays["mask"].sum(-1), [4, 4, 0, 0])
    np.testing.assert_array_equal(made.arrays["labels"][2, 1:5], found[2].ids)
    assert not make_batch(groups, mask_truncated=True).arrays["mask"].any()
    facts = made.facts
    assert facts["stale_tokens"] == 2 + 3 * 4 and facts["masked_groups"] == 0.5
    assert facts["unusable"] == 0.25 and facts["reward"] == pytest.approx(2 / 3)


def test_partial_rollouts_and_dynamic_sampling_run():
    more = {"staleness": 1, "partial": True, "replace_equal_groups": True, "slots": 48, "batch": 1}
    seen = run(changed(more, policy=DAPO, updates=12))[1]
    assert len(seen) == 12 and all(update["masked_groups"] == 0 for update in seen)


@pytest.mark.long
def test_a_kl_term_holds_the_policy_where_it_began(tmp_path):
    far = {}
    for kl in (1e-9, 10.0):
        cfg = changed({}, policy=dataclasses.replace(GRPO, kl=kl), updates=12, save_every=4)
        seen = run(cfg)[1]
        assert seen[0]["kl"] == pytest.approx(0, abs=1e-6)
        far[kl] = np.mean([update["kl"] for update in seen[6:]])
    assert 0 < far[10.0] < 0.2 * far[1e-9]
    found, _ = interrupted(cfg, tmp_path, killed, Killed)
    for x, y in zip(jax.tree.leaves(found), jax.tree.leaves(run(cfg)[0]), strict=True):
        np.testing.assert_array_equal(x, y)


def test_what_cannot_be_is_refused():
    with pytest.raises(InputError, match="temperature"):
        rl.RlConfig(temperature=0.0)
    with pytest.raises(InputError, match="accumulate 7"):
        rl.RlConfig(accumulate=7)
    rest = {"model": MODEL, "optimizer": OPTIMIZER}
    with pytest.raises(InputError, match=r"group 0: .*room for 16"):
        rl.train(model(), lambda group: [1] * 9, reward, cfg=SYNC, **rest)
    with pytest.raises(InputError, match=r"group 0: .*rewards for 4 answers"):
        rl.train(model(), prompt, lambda group, found: [1.0], cfg=SYNC, **rest)
    with pytest.raises(InputError, match="a group needs 2 answers"):
        changed({"group": 1})
    how = How(Layout(make_mesh(data=8), preset("ddp")))
    with pytest.raises(InputError, match="12 answers of a microbatch do not divide by the 8 parts"):
        rl.train(model(), prompt, reward, cfg=SYNC, how=how, **rest)
    with pytest.raises(InputError, match="5 slots do not divide by the 8 parts"):
        rl.train(model(), prompt, reward, cfg=changed({"batch": 4}), how=how, **rest)


def test_where_all_rewards_are_equal_a_run_ends_with_what_it_has(tmp_path):
    same = lambda group, found: [float(group % 2)] * len(found)  # noqa: E731
    rest = {"model": MODEL, "optimizer": OPTIMIZER, "folder": tmp_path}
    with pytest.raises(rl.NothingToLearn, match=r"each, 0\.500 on average") as end:
        rl.train(
            model(), prompt, same, cfg=changed({"replace_equal_groups": True}, updates=2), **rest
        )
    first = jax.device_get(model())
    chex.assert_trees_all_equal(jax.device_get(end.value.state.params), first)


def test_where_nothing_can_be_judged_a_run_ends_with_an_error_and_not_as_learned(tmp_path):
    """Groups without rewards are no equal ones, and they are counted through a kill."""
    cfg, calls = changed({"replace_equal_groups": True}, updates=2), []

    def some(group, found):
        if len(calls) == 30:
            raise Killed
        calls.append(group)
        return [np.nan if group % 4 else 1.0] * len(found)

    rest = {"model": MODEL, "cfg": cfg, "optimizer": OPTIMIZER, "folder": tmp_path}
    with pytest.raises(Killed):
        rl.train(model(), prompt, some, **rest)
    calls.insert(0, "again")
    for _ in range(2):
        with pytest.raises(InputError, match=r"60 groups .* have no rewards, as none") as end:
            rl.train(model(), prompt, some, **rest)
        assert not isinstance(end.value, rl.NothingToLearn)
    assert 80 <= len(calls) < 86


def test_long_answers_lose_some_of_their_reward_and_groups_are_told_apart_without():
    cfg = changed({"replace_equal_groups": True}, overlong=0.5, updates=1, policy=DAPO)
    given = {}

    def rewards(group, found):
        given[group] = [float(group % 2 and i == 0) for i in range(len(found))]
        return given[group]

    seen = []
    more = {"model": MODEL, "optimizer": OPTIMIZER, "on_update": seen.append}
    rl.train(model(), prompt, rewards, cfg=cfg, **more)
    assert all(group % 2 for group in seen[0]["groups"]), "of others all rewards are 0"
    assert seen[0]["replaced"] > 0 and seen[0]["graded_reward"] < 0.25
    assert seen[0]["reward"] < 0.25, "what is long has lost some of it"


def test_a_run_goes_on_with_its_own_settings_alone(tmp_path):
    cfg = changed({}, updates=1)
    rest = {"model": MODEL, "optimizer": OPTIMIZER, "folder": tmp_path}
    rl.train(model(), prompt, reward, cfg=cfg, **rest)
    other = dataclasses.replace(cfg, temperature=0.5, updates=2)
    with pytest.raises(InputError, match=r"another temperature: 0\.9, not 0\.5"):
        rl.train(model(), prompt, reward, cfg=other, **rest)
