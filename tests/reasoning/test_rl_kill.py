"""Reinforcement learning with a scripted sampler: kills, ages, masks and lengths, no decoding."""

import collections
import dataclasses
import os
import signal

import chex
import jax
import numpy as np
import optax
import pytest

from pangu_jax.checkpoint.store import Store
from pangu_jax.core.errors import InputError
from pangu_jax.core.spec import init
from pangu_jax.decode.engine import Answer
from pangu_jax.losses.policy import DAPO
from pangu_jax.models import decoder
from pangu_jax.nn.attention import AttentionConfig
from pangu_jax.nn.block import LayerConfig
from pangu_jax.nn.how import How
from pangu_jax.nn.mlp import MlpConfig
from pangu_jax.reasoning import rl
from pangu_jax.reasoning.curriculum import CurriculumConfig
from pangu_jax.reasoning.reward import Route, Sample, Score, SourceHealth, grade
from pangu_jax.reasoning.rl_trainer import Trainer
from pangu_jax.reasoning.sampler import Sampled
from pangu_jax.reasoning.schedule_state import ScheduleConfig
from pangu_jax.train.stop_signal import Stopped

MODEL = decoder.DecoderConfig(13, 8, (LayerConfig(AttentionConfig(1, 1, 8), mlp=MlpConfig(8)),))
OPTIMIZER = optax.adam(1e-2)


class Scripted:
    """Each poll makes a token of every sample; lengths are told by group and sample."""

    shares_device = True

    def __init__(self, lengths, params, *, version, **rest):
        del rest
        self.lengths, self.version, self.running = lengths, version, {}
        self.weights = {version: jax.device_get(params)}
        self.started, self.polls, self.safe, self.given = [], 0, set(), set()

    def start(self, group, sample, request):
        self.started.append((group, sample))
        self.running[group, sample] = []

    def update(self, params):
        self.version += 1
        self.weights[self.version] = jax.device_get(params)

    def poll(self, *, wake=True):
        self.polls += 1
        self.safe |= self.given  # what a poll gave is taken in before the next one
        found = []
        for place, made in sorted(self.running.items()):
            made.append(self.version)
            if len(made) == self.lengths(*place):
                rng = np.random.default_rng(place)
                scores = np.full(len(made), -2.5, np.float32)
                ids = rng.integers(1, 13, len(made)).astype(np.int32)
                versions = np.array(made, np.int32)
                found.append(Sampled(*place, Answer(ids, scores, scores, versions, "stop")))
        for one in found:
            del self.running[one.group, one.sample]
            self.given.add((one.group, one.sample))
        return found

    def close(self):
        pass


def uneven(group, sample):
    """Lengths by prompt: of three in four a few tokens, of the others many."""
    rng = np.random.default_rng([group, sample])
    return int(rng.integers(1, 8) if group % 4 else rng.integers(20, 30))


def reward(group, found):
    return [float(np.mean(answer.ids < 5)) for answer in found]


def config(updates=8, length=64, **schedule):
    plan = ScheduleConfig(**({"staleness": 3, "batch": 2, "group": 2, "slots": 12} | schedule))
    sizes = {"length": length, "max_new_tokens": length - 4, "save_every": 5}
    return rl.RlConfig(plan, DAPO, updates=updates, **sizes)


def train(cfg, *, sampler=Scripted, lengths=uneven, reward=reward, prompt=lambda g: [1, 2], **rest):
    """The state, the figures and the samplers of a run, or how it ended."""
    made, seen = [], []

    def make(params, **sizes):
        made.append(sampler(lengths, params, **sizes))
        return made[-1]

    params = init(decoder.spec(MODEL), key=jax.random.key(0))
    rest = {"on_update": seen.append} | rest
    state = end = None
    try:
        state = rl.train(
            *(params, prompt, reward),
            **dict(model=MODEL, cfg=cfg, optimizer=OPTIMIZER, sampler=make, **rest),
        )
    except (Killed, Stopped, InputError) as error:
        end = error
    return state, seen, made[0] if made else None, end


class Killed(Exception):
    pass


class Mortal(Scripted):
    """Is killed in a poll."""

    last = 0

    def poll(self, *, wake=True):
        if self.polls == self.last:
            self.safe |= self.given
            raise Killed
        return super().poll()


def mortal(polls, shares=True):
    return type("Mortal", (Mortal,), {"last": polls, "shares_device": shares})


@pytest.mark.parametrize("shares", [True, False])
def test_a_kill_at_any_moment_loses_the_answers_that_ran_and_nothing_else(tmp_path, shares):
    """Of a sampler that waits for updates, and of one that writes meanwhile."""
    cfg, safe, weights = config(), set(), {}
    for polls in (3, 0, 9, 14, 10**6):
        state, seen, sampler, end = train(cfg, sampler=mortal(polls, shares), folder=tmp_path)
        assert not safe & set(sampler.started), "an answer that had ended was asked for again"
        safe |= sampler.safe
        for version, params in sampler.weights.items():
            chex.assert_trees_all_equal(params, weights.setdefault(version, params))
        if state is None:
            assert isinstance(end, Killed)
            last = max((tmp_path / "rollouts").glob("*.jsonl"))
            last.write_bytes(last.read_bytes() + b'{"kind": "ended", "gro')
    assert [line["step"] for line in seen] == list(range(1, 9)) and sorted(weights) == [*range(9)]
    groups = [group for line in seen for group in line["groups"]]
    assert len(set(groups)) == 16 and max(age for line in seen for age in line["ages"]) <= 3
    assert seen[-1]["lost"] > 0
    with Store(tmp_path) as store:
        assert store.steps() == [5, 8]


def test_a_curriculum_asks_the_same_questions_after_a_kill(tmp_path):
    """Of six questions two are always right, two never, and two are worth learning from."""
    mix = CurriculumConfig(6, updates=10, last=(0.0, 0.5, 0.5))
    cfg = config(updates=10, batch=1, slots=4, staleness=0)
    cfg = dataclasses.replace(cfg, curriculum=mix, save_every=3)
    worth = lambda q, found: [q < 2 or (2 <= q < 4 and i > 0) for i in range(2)]  # noqa: E731
    whole, part = [], []

    def told(seen):
        return lambda question: seen.append(question) or [1, 2]

    _, want, *_ = train(cfg, prompt=told(whole), reward=worth)
    for polls in (16, 7, 10**6):
        _, seen, *_ = train(
            cfg, sampler=mortal(polls), prompt=told(part), reward=worth, folder=tmp_path
        )
    names = ("step", "loss", "groups", "graded_reward", "easy_questions", "hard_questions")
    assert [[line[k] for k in names] for line in seen] == [
        [line[k] for k in names] for line in want
    ]
    assert seen[-1]["easy_questions"] == 2 / 6 and seen[-1]["hard_questions"] > 0
    assert want[0]["new_questions"] > seen[-1]["new_questions"]
    assert set(whole) == set(part) and len(set(whole)) > 4


def test_sources_keep_their_health_over_kills(tmp_path):
    """One source never varies, so that it counts for less from the sixth group on; one fails."""
    cfg = dataclasses.replace(config(updates=14, batch=1, staleness=0), save_every=4)
    begin = SourceHealth(window=5, most_failed=0.2, least=8)

    def fails(samples):
        return [Score(None, "late", failed=s.question >= "11") for s in samples]

    sources = {
        "answer": lambda samples: [Score(float(sample.text)) for sample in samples],
        "quiet": lambda samples: [Score(1.0) for _ in samples],
        "length": fails,
    }
    routes = {"number": Route(({"answer": 0.5, "quiet": 0.5},), added={"length": 1.0})}

    def run(sampler, **rest):
        told = []

        def graded(group, answers, health):
            worth = [str(np.mean(answer.ids < 5)) for answer in answers]
            samples = [Sample(f"{group:02}", text, "", kind="number") for text in worth]
            found = grade(samples, routes, sources, health)
            told.append((group, dict(health.seen), str(found.reward)))
            return found

        *_, end = train(cfg, sampler=sampler, reward=graded, health=begin, **rest)
        return told, end

    want, last = run(Scripted)
    assert "source length failed for 4 of the last 10 answers" in str(last)
    weights = [begin.weight("quiet", 1.0), SourceHealth(5, seen=want[5][1]).weight("quiet", 1.0)]
    assert weights == [1.0, 0.1]
    found = []
    for polls in (40, 60, 20, 10**6):  # before the first checkpoint, and after it
        told, end = run(mortal(polls), folder=tmp_path)
        found += told
        assert isinstance(end, Killed) == (polls < 10**6)
    assert found == want and str(end) == str(last)
    assert run(Scripted, folder=tmp_path)[0] == want[-1:], "the last group was not written down"


@pytest.mark.parametrize("moment", ["prompt", "reward", "update"])
def test_a_kill_elsewhere_does_not_either(tmp_path, moment, monkeypatch):
    cfg, seen = config(updates=4), []

    def dies(*given):
        seen.append(given)
        if len(seen) == 3:
            raise Killed
        return rest(*given)

    rest = {"prompt": lambda group: [1, 2], "reward": reward, "update": Trainer.update}[moment]
    with monkeypatch.context() as patch:
        if moment == "update":
            patch.setattr(Trainer, "update", dies)
        _, _, first, end = train(
            cfg, folder=tmp_path, **({} if moment == "update" else {moment: dies})
        )
    assert isinstance(end, Killed) or moment == "prompt"
    state, lines, second, _ = train(cfg, folder=tmp_path)
    assert len(lines) == 4 and state is not None
    if first is not None:
        assert not first.safe & set(second.started)


def test_a_signal_is_heard_within_a_step_of_decoding(tmp_path):
    cfg, polls = config(updates=6, batch=1, slots=4), []

    class Told(Scripted):
        def poll(self, *, wake=True):
            polls.append(self.version)
            if polls.count(2) == 1 and self.version == 2 and len(polls) < 100:
                os.kill(os.getpid(), signal.SIGTERM)
            return super().poll()

    _, seen, first, end = train(cfg, sampler=Told, folder=tmp_path, lengths=lambda g, s: 4 + g)
    assert isinstance(end, Stopped) and end.step == 2 and polls.count(2) == 1
    with Store(tmp_path) as store:
        assert store.latest() == 2, "its weights are saved"
    state, lines, second, _ = train(cfg, folder=tmp_path, lengths=lambda g, s: 4 + g)
    assert not first.given & set(second.started)
    chex.assert_trees_all_equal(second.weights[2], first.weights[2])
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 5, 6] and lines[:2] == seen


def test_answers_that_end_as_a_signal_comes_are_kept(tmp_path):
    cfg, last = config(updates=4, batch=1, slots=8), []

    class Told(Scripted):
        def poll(self, *, wake=True):
            found = super().poll()
            if self.version == 2 and len(found) > 1 and not last:
                last.extend((one.group, one.sample) for one in found)
                os.kill(os.getpid(), signal.SIGTERM)
            return found

    _, _, first, end = train(cfg, sampler=Told, folder=tmp_path, lengths=lambda g, s: 4 + g)
    assert isinstance(end, Stopped) and end.step == 2 and len(last) == 2
    _, lines, second, _ = train(cfg, folder=tmp_path, lengths=lambda g, s: 4 + g)
    assert len(lines) == 4 and not first.given & set(second.started)


@pytest.mark.parametrize("shares", [True, False])
def test_answers_are_kept_where_nothing_is_left_to_learn(tmp_path, shares):
    """Begun again, the first answer tells so at once, whatever else ended with it."""
    cfg = config(staleness=0, replace_equal_groups=True, slots=4)
    same = lambda group, found: [0.5, 0.5]  # noqa: E731
    kind, safe = mortal(10**6, shares), set()
    for _ in range(3):
        *_, sampler, end = train(
            cfg, sampler=kind, reward=same, lengths=lambda g, s: 3, folder=tmp_path
        )
        assert isinstance(end, rl.NothingToLearn) and not safe & set(sampler.started)
        safe |= sampler.given


def test_updates_that_are_made_again_by_another_optimizer_are_refused(tmp_path):
    cfg = config(updates=6, staleness=0, batch=1)
    train(cfg, sampler=mortal(40), folder=tmp_path)
    (path,) = (tmp_path / "rollouts").glob("*.jsonl")
    updates = [line for line in path.read_text().splitlines() if '"updated"' in line]
    assert 1 <= len(updates) < 5 and all('"moved"' in line for line in updates)
    other = {"model": MODEL, "cfg": cfg, "optimizer": optax.adam(1e-3), "folder": tmp_path}
    params = init(decoder.spec(MODEL), key=jax.random.key(0))
    with pytest.raises(
        InputError, match=r"update 1 moved some weights by .* with its own optimizer"
    ):
        rl.train(params, lambda group: [1, 2], reward, **other)
    _, lines, _, end = train(cfg, folder=tmp_path)
    assert end is None and len(lines) == 6, "with its own it goes on"


def test_a_run_of_another_model_or_type_is_refused(tmp_path):
    """Of the same parameters: what they are read as is not in their shapes."""
    cfg = config(updates=1)
    train(cfg, sampler=mortal(0), folder=tmp_path)
    layer = dataclasses.replace(MODEL.layers[0], attention=AttentionConfig(1, 1, 8, window=4))
    rest = {"cfg": cfg, "optimizer": OPTIMIZER, "folder": tmp_path}
    for changes, words in (
        (
            {"model": dataclasses.replace(MODEL, layers=(layer,))},
            r"model\.layers\.0\.attention\.window: null, not 4",
        ),
        ({"model": MODEL, "how": How(dtype="bfloat16")}, r'how\.dtype: null, not "bfloat16"'),
    ):
        params = init(decoder.spec(MODEL), key=jax.random.key(0))
        with pytest.raises(InputError, match=words):
            rl.train(params, lambda group: [1, 2], reward, **rest, **changes)


def test_what_does_not_belong_to_a_run_is_refused(tmp_path):
    cfg = config(updates=2)
    train(cfg, sampler=mortal(4), folder=tmp_path)
    other = init(decoder.spec(MODEL), key=jax.random.key(1))
    rest = {"model": MODEL, "cfg": cfg, "optimizer": OPTIMIZER, "folder": tmp_path}
    with pytest.raises(InputError, match="of a run with another parameters: "):
        rl.train(other, lambda group: [1, 2], reward, **rest)
    (path,) = (tmp_path / "rollouts").glob("*.jsonl")
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join([lines[0], "{}\n", *lines[1:]]))
    _, _, _, end = train(cfg, folder=tmp_path)
    assert "jsonl line 2 lacks the field 'kind'" in str(end)
    path.rename(path.with_name("0000000003-0.jsonl"))
    _, _, _, end = train(cfg, folder=tmp_path)
    assert isinstance(end, InputError)
    _, _, _, end = train(cfg, reward=lambda group, found: [np.inf, 0.0])
    assert "infinite" in str(end)


def test_a_batch_with_nothing_to_learn_leaves_weights_and_moments_alone(tmp_path):
    """After an update with a gradient, moments would move the weights."""
    some = lambda group, found: reward(group, found) if group < 1 else [0.5, 0.5]  # noqa: E731
    cfg = config(updates=3, staleness=0, batch=1)
    state, seen, sampler, _ = train(cfg, reward=some)
    first, *rest = (sampler.weights[version] for version in range(4))
    assert any(np.any(x != y) for x, y in zip(*map(jax.tree.leaves, (first, rest[0])), strict=True))
    chex.assert_trees_all_equal(*rest)
    assert [line["weight"] > 0 for line in seen] == [True, False, False]
    assert seen[0].keys() == seen[1].keys() and int(state.step) == 3


def drawn(group, attempt, count=2):
    """Heavy-tailed lengths, whose mean is the prompt's."""
    rng = np.random.default_rng([group, attempt])
    found = [3, 5, 9][group % 3] * np.exp(rng.normal(-0.5, 1.0, count))
    return np.clip(np.rint(found), 1, 60).astype(int)


def heavy(policy):
    """Lengths that a run trained on, and its figures."""
    given, attempts = {}, collections.Counter()

    def lengths(group, sample):
        return drawn(group, attempts[group])[sample]

    def measured(group, found):  # of a group that is begun again the last counts
        given[group] = [len(answer.ids) for answer in found]
        attempts[group] += 1
        return reward(group, found)

    cfg = config(50, staleness=1, batch=3, slots=24, policy=policy)
    cfg = dataclasses.replace(cfg, corrected=False)
    prompt = lambda group: [1, 2, 3][: 1 + group % 3]  # noqa: E731
    _, seen, *_ = train(cfg, lengths=lengths, reward=measured, prompt=prompt)
    return [n for line in seen for group in line["groups"] for n in given[group]], seen


@pytest.mark.long
def test_lengths_are_trained_on_as_they_are_given_and_not_where_old_ones_are_thrown_away():
    from scipy.stats import ks_2samp

    given = np.concatenate([drawn(group, 9) for group in range(3000)])
    used, seen = heavy("barrier")
    assert ks_2samp(used, given).pvalue > 0.01 and len(used) == 300
    assert max(age for line in seen for age in line["ages"]) == 1
    used, seen = heavy("discard")
    assert ks_2samp(used, given).pvalue < 1e-4 and np.mean(used) < 0.9 * np.mean(given)
    assert seen[-1]["discarded"] > 0


def test_partial_rollouts_go_on_and_their_older_tokens_are_masked():
    """One answer is long; updates go ahead of it, and of its tokens the youngest are trained on."""
    lengths = lambda group, sample: 40 if group == 0 else 4  # noqa: E731
    cfg = config(14, staleness=1, batch=1, slots=4, partial=True)
    _, seen, *_ = train(cfg, lengths=lengths)
    assert seen[-1]["renewed"] >= 3
    (late,) = [line for line in seen if 0 in line["groups"]]
    assert late["step"] > 4 and late["ages"][0] <= 1
    tokens = 80 if late["groups"] == [0] else None
    assert tokens and late["weight"] == tokens - late["stale_tokens"] < tokens
    assert all(line["stale_tokens"] == 0 for line in seen if line is not late)
    held = train(config(3, staleness=1, batch=1, slots=4), lengths=lengths)[1]
    assert not any(line["stale_tokens"] for line in held), "else updates wait for it"
