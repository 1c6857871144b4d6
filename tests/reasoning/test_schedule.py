"""The scheduler keeps its bound whatever happens in which order, loses nothing, never stops."""

import dataclasses
import json
import random

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from pangu_jax.core.config import from_json, to_json
from pangu_jax.core.errors import InputError
from pangu_jax.reasoning import schedule, schedule_policy
from pangu_jax.reasoning.schedule_policy import Choice, Policy
from pangu_jax.reasoning.schedule_state import (
    Ended,
    Forget,
    Grade,
    Graded,
    Lost,
    Priority,
    Renew,
    ScheduleConfig,
    ScheduleState,
    Start,
    Train,
    Updated,
)


class Broken(AssertionError):
    """The bound does not hold."""


class Books:
    """What a bystander writes down: nothing is taken from the scheduler's state but to save it."""

    def __init__(self, cfg, seed, hostile, literal):
        self.literal, self.cfg, self.rng, self.hostile = literal, cfg, random.Random(seed), hostile
        self.version, self.training = 0, None
        self.running, self.ended, self.since = {}, {}, {}
        self.to_grade, self.graded, self.used, self.dropped = set(), set(), [], set()
        self.slow, self.ages, self.began = set(), [], 0
        self.state = None

    def take(self, found):
        self.state, actions = found
        for action in actions:
            getattr(self, f"on_{type(action).__name__.lower()}")(action)
        assert len(self.running) <= self.cfg.slots
        # Who waits for a slot is told so, and nobody else.
        if schedule.wants_slots(self.state):
            assert len(self.running) == self.cfg.slots

    def on_start(self, action):
        place = (action.group, action.sample)
        assert action.version == self.version
        assert place not in self.running and action.sample not in self.ended.get(action.group, ())
        assert action.group not in self.used and action.group not in self.dropped
        if action.group not in self.ended:
            self.ended[action.group] = set()
            self.began += 1
            if self.cfg.policy != "discard":
                assert self.outstanding() <= self.room(), "more was begun than may be"
        self.since.setdefault(action.group, self.version)
        self.running[place] = self.version
        if self.rng.random() < self.hostile:
            self.slow.add(place)

    def on_grade(self, action):
        assert len(self.ended[action.group]) == self.cfg.group
        self.to_grade.add(action.group)

    def on_renew(self, action):
        assert self.cfg.partial
        for group in action.groups:
            assert len(self.ended[group]) < self.cfg.group
            self.since[group] = self.version

    def on_forget(self, action):
        for group in action.groups:
            assert len(self.ended.pop(group)) == self.cfg.group
            del self.since[group]
            self.graded.discard(group)

    def on_train(self, action):
        assert self.training is None and list(action.groups) == sorted(set(action.groups))
        assert len(action.groups) == self.cfg.batch and self.graded.issuperset(action.groups)
        ages = [self.version - self.since[group] for group in action.groups]
        assert list(action.ages) == ages
        self.training = action.groups
        if self.cfg.policy != "admission" and max(ages) > self.cfg.staleness:
            raise Broken(f"age {max(ages)}")
        if self.cfg.policy == "barrier" and self.literal:
            left = [b for group, b in self.since.items() if group not in action.groups]
            for level in range(self.cfg.staleness + 1):
                old = sum(b <= self.version - self.cfg.staleness + level for b in left)
                if old > level * self.cfg.batch:
                    raise Broken(f"{old} are left in level {level}")

    def outstanding(self):
        return len(self.ended)

    def room(self):
        """How many may be outstanding or in training, by the rule of admission."""
        return (self.cfg.staleness + 1) * self.cfg.batch

    def choices(self):
        fast = [("end", place) for place in sorted(self.running) if place not in self.slow]
        found = fast + [("grade", group) for group in sorted(self.to_grade)]
        if self.training is not None:
            found.append(("update", None))
        # What is slow ends when nothing else can happen: the worst order there is.
        return found or [("end", place) for place in sorted(self.running)]

    def happens(self):
        """One thing happens; False where nothing can: a deadlock."""
        draw = self.rng.random()
        if self.running and draw < 0.03:
            return self.loses(self.rng.choice(sorted(self.running)))
        if draw > 0.995:
            return self.crashes()
        choices = self.choices()
        if not choices:
            return False
        what, which = self.rng.choice(choices)
        getattr(self, what)(which)
        return True

    def end(self, place):
        del self.running[place]
        self.slow.discard(place)
        self.ended[place[0]].add(place[1])
        waits, before = schedule.wants_slots(self.state), self.running.keys() | set()
        self.take(schedule.step(self.state, Ended(*place)))
        assert waits == bool(self.running.keys() - before)

    def grade(self, group):
        self.to_grade.remove(group)
        same = self.cfg.replace_equal_groups and self.rng.random() < 0.4
        rewards = [0.5 if same else i / self.cfg.group for i in range(self.cfg.group)]
        self.graded.add(group)
        if self.cfg.replace_equal_groups and len(set(rewards)) == 1:
            self.dropped.add(group)
        self.take(schedule.step(self.state, Graded(group, tuple(rewards))))

    def update(self, _):
        done, self.training = self.training, None
        for group in done:
            assert group not in self.used
            age = self.version - self.since.pop(group)
            del self.ended[group]
            self.ages.append(age)
        self.used += done
        self.graded.difference_update(done)
        self.version += 1
        self.take(schedule.step(self.state, Updated()))
        assert self.state.version == self.version

    def loses(self, place):
        del self.running[place]
        self.slow.discard(place)
        self.begins_again(place[0])
        self.take(schedule.step(self.state, Lost(*place)))
        return True

    def crashes(self):
        saved = json.loads(json.dumps(to_json(self.state)))
        state = from_json(ScheduleState, saved)
        assert state == self.state
        kept = None
        groups = {group for group, _ in self.running}
        self.running.clear()
        self.slow.clear()
        if self.rng.random() < 0.5:
            there = {(g, s) for g, samples in self.ended.items() for s in samples}
            kept = {place for place in sorted(there) if self.rng.random() < 0.7}
            for group, sample in there - kept:
                self.ended[group].discard(sample)
                self.graded.discard(group)
                groups.add(group)
        self.training = None
        self.to_grade.clear()
        for group in groups:
            self.begins_again(group)
        self.take(schedule.resume(state, kept))
        return True

    def begins_again(self, group):
        if not self.ended[group] and not any(g == group for g, _ in self.running):
            self.since.pop(group, None)


def run(cfg, seed, hostile, updates=8, literal=True):
    """Lets random things happen until so many updates are applied."""
    books = Books(cfg, seed, hostile, literal)
    books.take(schedule.begin(cfg))
    while books.version < updates:
        assert books.happens(), "nothing can happen any more"
    # Nothing is lost: whatever was begun was used, was replaced, or is outstanding.
    numbers = set(books.used) | books.dropped | set(books.ended)
    if cfg.policy != "discard":
        assert numbers == set(range(books.state.next))
    assert len(books.used) == len(set(books.used)) == updates * cfg.batch
    assert sum(books.state.ages) == len(books.used)
    assert [books.ages.count(age) for age in range(len(books.state.ages))] == list(books.state.ages)
    return books


PRIORITIES = st.builds(Priority, *[st.sampled_from([-2.0, 0.0, 1.0])] * 3)
CONFIGS = st.builds(
    ScheduleConfig,
    staleness=st.integers(0, 4),
    batch=st.integers(1, 3),
    group=st.integers(1, 2),
    slots=st.sampled_from([1, 2, 3, 5, 8, 40]),
    policy=st.sampled_from(["barrier", "barrier", "barrier", "admission", "discard"]),
    priority=PRIORITIES,
)
FREE = dict(
    deadline=None,
    database=None,
    phases=[Phase.generate],
    suppress_health_check=list(HealthCheck),
)


def anything(cfg, partial, distinct, seed, hostile, updates):
    if distinct and cfg.group > 1:
        cfg = dataclasses.replace(cfg, replace_equal_groups=True)
    if partial and cfg.policy == "barrier":
        cfg = dataclasses.replace(cfg, partial=True)
    run(cfg, seed, hostile, updates)


DISCARDING = CONFIGS.map(lambda cfg: dataclasses.replace(cfg, policy="discard"))


def at_random(configs, examples):
    """`anything`, so many times."""
    drawn = given(
        configs,
        st.booleans(),
        st.booleans(),
        st.integers(0, 2**32),
        st.sampled_from([0.0, 0.1, 0.5]),
        st.integers(2, 6),
    )
    return settings(max_examples=examples, **FREE)(drawn(anything))


test_random_schedules = at_random(CONFIGS, 700)
test_many_random_schedules = pytest.mark.slow(at_random(CONFIGS, 100_000))
test_many_that_throw_answers_away = pytest.mark.slow(at_random(DISCARDING, 100_000))


def naive(state):
    """The barrier that comes to mind first: nothing that runs is too old for the next update."""
    cfg = state.cfg
    if len(state.ready) < cfg.batch or any(state.age(g) >= cfg.staleness for g in state.open):
        return Choice()
    ready = sorted(state.ready, key=lambda g: (g.since, g.number))
    return Choice(batch=tuple(ready[: cfg.batch]))


BARRIER = schedule_policy.POLICIES["barrier"]


def greedy(state):
    """The batch of the best scores, with no look at what it leaves."""
    cfg = state.cfg
    old = [sum(state.age(g) >= cfg.staleness - j for g in state.open) for j in range(3)]
    if len(state.ready) < cfg.batch or any(n > j * cfg.batch for j, n in enumerate(old)):
        return Choice()
    ready = sorted(state.ready, key=lambda g: (-schedule_policy.score(state, g), g.number))
    return Choice(batch=tuple(ready[: cfg.batch]))


@pytest.mark.parametrize(
    "choose, age",
    [(naive, 1.0), (schedule_policy.POLICIES["admission"].choose, 1.0), (greedy, -1.0)],
)
def test_lesser_rules_are_seen_to_break_the_bound(monkeypatch, choose, age):
    monkeypatch.setitem(schedule_policy.POLICIES, "barrier", Policy(BARRIER.room, choose))
    cfg = ScheduleConfig(staleness=2, batch=2, group=1, slots=40, priority=Priority(age))
    with pytest.raises(Broken, match="age"):
        for seed in range(300):
            run(cfg, seed, 0.5, literal=False)


def test_admission_alone_is_seen_to_have_no_bound():
    cfg = ScheduleConfig(staleness=1, batch=2, group=1, slots=8, policy="admission")
    assert max(max(run(cfg, seed, 0.2, 30).ages) for seed in range(20)) > 5


def test_a_bound_of_zero_is_synchronous():
    books = run(ScheduleConfig(staleness=0, batch=3, group=2, slots=5), 1, 0.3, 20)
    assert set(books.ages) == {0} and books.used == list(range(60))


def test_what_is_as_old_as_the_bound_goes_first():
    cfg = ScheduleConfig(
        staleness=2, batch=1, group=1, slots=3, priority=Priority(age=-1.0, learnable=5.0)
    )
    state, actions = schedule.begin(cfg)
    assert [action.group for action in actions] == [0, 1, 2]
    used = []
    for group, rewards in ((1, (0.5,)), (2, (0.5,)), (0, (1.0,))):
        state, _ = schedule.step(state, Ended(group, 0))
        state, actions = schedule.step(state, Graded(group, rewards))
        used += [action.groups for action in actions if isinstance(action, Train)]
    while len(used) < 3:
        state, actions = schedule.step(state, Updated())
        used += [action.groups for action in actions if isinstance(action, Train)]
    # 1 is the first that is there; then 2 teaches more, but 0 must be used by version 2.
    assert used == [(1,), (2,), (0,)]
    assert state.ages == (1, 1) and state.training[0].since == 0


def test_priorities_choose_where_the_bound_does_not():
    cfg = ScheduleConfig(staleness=3, batch=2, group=1, slots=8, priority=Priority(0.0, 1.0))
    state, _ = schedule.begin(cfg)
    for group, reward in ((0, 0.5), (1, 0.5), (2, 0.0), (3, 0.5), (4, 0.9), (5, 0.6)):
        state, _ = schedule.step(state, Ended(group, 0))
        state, _ = schedule.step(state, Graded(group, (reward,)))
    _, actions = schedule.step(state, Updated())
    assert [action.groups for action in actions if isinstance(action, Train)] == [(3, 5)]


def test_a_resumed_version_admits_no_burst():
    cfg = ScheduleConfig(staleness=2, batch=4, group=2, slots=1000)
    for found in (schedule.begin(cfg, version=50), schedule.begin(cfg)):
        state, actions = found
        assert len({action.group for action in actions}) == 3 * 4
    assert min(action.group for action in schedule.begin(cfg, version=50)[1]) == 200
    saved = schedule.begin(cfg, version=50)[0]
    state, actions = schedule.resume(saved)
    assert {a.group for a in actions} == {g.number for g in saved.open} and state.lost == 24


def test_an_update_that_was_lost_is_made_again():
    cfg = ScheduleConfig(staleness=1, batch=1, group=1, slots=1)
    state, _ = schedule.begin(cfg)
    state, actions = schedule.step(state, Ended(0, 0))
    assert actions[0] == Grade(0)
    state, actions = schedule.step(state, Graded(0, (1.0,)))
    assert Train((0,), (0,)) in actions
    again, actions = schedule.resume(state)
    assert actions == (Train((0,), (0,)), Start(1, 0, 0)) and again.ages == ()
    _, actions = schedule.resume(state, kept=set())
    assert actions == (Start(0, 0, 0),)


def test_partial_rollouts_do_not_hold_updates_up():
    cfg = ScheduleConfig(staleness=1, batch=1, group=1, slots=2, partial=True)
    state, _ = schedule.begin(cfg)
    seen = []
    for group in (1, 2, 3):  # 0 runs on and on
        state, actions = schedule.step(state, Ended(group, 0))
        seen += actions
        state, actions = schedule.step(state, Graded(group))
        seen += actions
        if state.training:
            state, actions = schedule.step(state, Updated())
            seen += actions
    assert [a for a in seen if isinstance(a, Renew)] == [Renew((0,)), Renew((0,))]
    assert state.version == 3 and state.renewed == 2


def test_groups_of_equal_rewards_are_replaced_if_wanted():
    cfg = ScheduleConfig(staleness=0, batch=1, group=2, slots=2, replace_equal_groups=True)
    state, _ = schedule.begin(cfg)
    for sample in (0, 1):
        state, _ = schedule.step(state, Ended(0, sample))
    state, actions = schedule.step(state, Graded(0, (1.0, 1.0)))
    assert actions == (Forget((0,)), Start(1, 0, 0), Start(1, 1, 0)) and state.dropped == 1


@pytest.mark.parametrize(
    "event, words",
    [
        (Ended(9, 0), "not under way"),
        (Ended(0, 9), "not running"),
        (Graded(0), "not all of its samples"),
        (Updated(), "none is under way"),
    ],
)
def test_events_of_nothing_are_refused(event, words):
    state, _ = schedule.begin(ScheduleConfig(batch=1, group=1))
    with pytest.raises(InputError, match=words):
        schedule.step(state, event)


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"staleness": -1}, "staleness"),
        ({"batch": 0}, "batch"),
        ({"slots": 0}, "slots"),
        ({"policy": "hope"}, "policy"),
        ({"policy": "discard", "partial": True}, "partial"),
        ({"replace_equal_groups": True, "group": 1}, "replace_equal_groups"),
    ],
)
def test_settings_that_are_none_are_refused(changes, words):
    with pytest.raises(InputError, match=words):
        ScheduleConfig(**changes)
