"""The scheduler of rollouts and updates: a state machine with a proven bound on age.

    state, actions = begin(ScheduleConfig(staleness=4, batch=32, group=8, slots=64))
    while state.version < updates:
        event = ...                       # reported by whoever performs the actions
        state, actions = step(state, event)

It has no clock, thread or array: threads, other processes and the simulator drive the same code.
Groups of N samples, the answers to one prompt, are begun and trained on whole.

**The bound.** Let v be the number of updates applied, B groups each; b the version that the first
token of a group was made with (the later samples of a group are begun later, so b is the oldest of
all its tokens); s the bound. A group is outstanding from its first token until a batch takes it.
The batch of update v is taken at version v, and the age of its groups is v - b.

- Admission: a group is begun at version v only while fewer than (s + v + 1) B were begun in all.
- Barrier: the batch of update v is taken only if, for every j = 0..s, it leaves at most j B groups
  outstanding with b <= v - s + j. Call that I(v).

*Age <= s.* By I(v) with j = 0, no group with b <= v - s is left. Groups begun afterwards have
b >= v. So what update v + 1 takes has b >= v + 1 - s, and its age is at most s; update 0 takes
groups of age 0.

*No deadlock.* Before the batch of update v is taken, at most (j + 1) B groups are outstanding with
b <= v - s + j; call that P(v, j). For j <= s - 2 these have b <= v - 2 and were outstanding when
the batch before was taken, which left at most (j + 1) B of them by I(v - 1). For j = s - 1 they
were begun at version v - 1 or before, at most (s + v) B in all by admission, of which v B are
trained on. For j = s all that were begun are at most (s + v + 1) B, of which v B are trained on.
So once all that is outstanding has ended, taking the oldest B leaves at most j B in every level:
I(v) can be met. And if fewer than B are outstanding, admission lets another begin. Hence waiting
ends, provided that every sample ends or is lost a finite number of times, that rewards come, and,
where groups of equal rewards are replaced, that some differ.

*What is checked.* Of level j the oldest B leave what has not ended, u, or, where B or more of it
are ready, all but B, which by P(v, j) are at most j B. So I(v) can be met if and only if B groups
are ready and u <= j B for every j. A batch may then be any that leaves j B at most, and priorities
choose among those; a group of age s is always taken (I(v), j = 0).

*What may happen besides.* A group that is lost and begun again has a greater b, and one that is
replaced is no longer outstanding: both only lower the counts above. An update that was lost with
its process returns its groups. With `partial` a group that still runs is given b = v, so its tokens
from before may be older than s, and whoever trains must mask those (`Renew`).

With s = 0 all groups of a batch are begun after the update before, and none is outstanding when the
next is made: it is synchronous training, with groups in the order of their numbers.

No sample is thrown away under barrier and admission, so lengths are trained on as often as they are
given; discard fails that (docs/rl.md has it simulated).
"""

import dataclasses
from collections.abc import Set as AbstractSet

from pangu_jax.core.errors import InputError
from pangu_jax.reasoning.schedule_policy import POLICIES, renewed
from pangu_jax.reasoning.schedule_state import (
    Action,
    Ended,
    Event,
    Forget,
    Grade,
    Graded,
    Group,
    Renew,
    ScheduleConfig,
    ScheduleState,
    Start,
    Train,
    Updated,
)

Step = tuple[ScheduleState, tuple[Action, ...]]


def begin(cfg: ScheduleConfig, *, version: int = 0) -> Step:
    """A schedule with nothing outstanding, and the first actions.

    Args:
      cfg: the settings.
      version: updates that were applied already; their groups count as admitted, so that no burst
        of groups follows.
    """
    return _settle(ScheduleState(cfg, version=version, next=version * cfg.batch), ())


def step(state: ScheduleState, event: Event) -> Step:
    """Applies an event: returns the new state and the actions that follow from it.

    Raises:
      InputError: the event matches nothing under way.
    """
    if isinstance(event, Updated):
        return _settle(_updated(state), ())
    group = next((g for g in state.open if g.number == event.group), None)
    if group is None:
        raise InputError(f"{event} is about a group that is not under way")
    if isinstance(event, Graded):
        return _graded(state, group, event)
    if event.sample not in group.running:
        raise InputError(f"{event} is about a sample that is not running")
    running = tuple(sample for sample in group.running if sample != event.sample)
    if isinstance(event, Ended):
        group = dataclasses.replace(group, running=running)
        actions: tuple[Action, ...] = (Grade(group.number),) if group.ended else ()
    else:
        state = dataclasses.replace(state, lost=state.lost + 1)
        waiting = (*group.waiting, event.sample)
        group = dataclasses.replace(group, running=running, waiting=waiting)
        group, actions = _interrupted(group, state.cfg), ()
    state, more = _fill(_put(state, group))  # no group more is ready: no batch can have come up
    return state, actions + more


def resume(state: ScheduleState, kept: AbstractSet[tuple[int, int]] | None = None) -> Step:
    """Resumes after the process ended: restarts running samples, and redoes a pending update.

    Args:
      state: the latest saved state.
      kept: (group, sample) of the results that still exist; None is all that had ended.
    """
    ready: list[Group] = []
    open: list[Group] = []
    for group in (*state.training, *state.ready):
        group = _without(group, kept, state.cfg)
        (ready if group.ended else open).append(group)
    open += [_without(group, kept, state.cfg) for group in state.open]
    was = sum(len(group.running) for group in state.open)
    state = dataclasses.replace(
        state,
        ready=tuple(ready),
        open=tuple(sorted(open, key=lambda group: group.number)),
        training=(),
        lost=state.lost + was,
    )
    return _settle(state, tuple(Grade(group.number) for group in state.open if group.ended))


def _without(group: Group, kept: AbstractSet[tuple[int, int]] | None, cfg: ScheduleConfig) -> Group:
    """A group whose running samples, and those whose results are gone, have to begin again."""
    alive = [s for s in range(cfg.group) if s not in (*group.waiting, *group.running)]
    if kept is not None:
        alive = [sample for sample in alive if (group.number, sample) in kept]
    waiting = tuple(sample for sample in range(cfg.group) if sample not in alive)
    if not group.running and set(waiting) == set(group.waiting):
        return group
    return _interrupted(dataclasses.replace(group, waiting=waiting, running=()), cfg)


def _interrupted(group: Group, cfg: ScheduleConfig) -> Group:
    """A group of which a sample begins again; where nothing of it is left, so does its age."""
    since = None if len(group.waiting) == cfg.group else group.since
    return dataclasses.replace(group, since=since, mean=None, resumed=True)


def _updated(state: ScheduleState) -> ScheduleState:
    if not state.training:
        raise InputError("an update was reported, but none is under way")
    found = [state.age(group) for group in state.training]
    longest = max(len(state.ages), max(found) + 1)
    ages = list(state.ages) + [0] * (longest - len(state.ages))
    for age in found:
        ages[age] += 1
    return dataclasses.replace(state, version=state.version + 1, training=(), ages=tuple(ages))


def _graded(state: ScheduleState, group: Group, event: Graded) -> Step:
    if not group.ended:
        raise InputError(f"group {group.number} has rewards, but not all of its samples have ended")
    state = dataclasses.replace(
        state, open=tuple(g for g in state.open if g.number != group.number)
    )
    if state.cfg.replace_equal_groups and len(set(event.rewards)) <= 1:
        state = dataclasses.replace(state, dropped=state.dropped + 1)
        return _settle(state, (Forget((group.number,)),))
    if event.rewards:
        mean = sum(event.rewards) / len(event.rewards)
        group = dataclasses.replace(group, mean=min(max(mean, 0.0), 1.0))
    return _settle(dataclasses.replace(state, ready=(*state.ready, group)), ())


def _put(state: ScheduleState, group: Group) -> ScheduleState:
    """The state with another value of an open group."""
    numbers = [g.number for g in state.open]
    place = numbers.index(group.number)
    return dataclasses.replace(state, open=(*state.open[:place], group, *state.open[place + 1 :]))


def _settle(state: ScheduleState, actions: tuple[Action, ...]) -> Step:
    """Takes a batch if one can be, then fills the slots."""
    if not state.training:
        state, more = _take(state)
        actions += more
    state, more = _fill(state)
    return state, actions + more


def _take(state: ScheduleState) -> Step:
    choice = POLICIES[state.cfg.policy].choose(state)
    actions: tuple[Action, ...] = ()
    if choice.discard:
        numbers = tuple(group.number for group in choice.discard)
        actions += (Forget(numbers),)
        state = dataclasses.replace(
            state,
            again=(*state.again, *numbers),
            discarded=state.discarded + len(numbers),
        )
    if choice.renew:
        actions += (Renew(choice.renew),)
        state = renewed(state, choice.renew)
    gone = {group.number for group in (*choice.batch, *choice.discard)}
    if gone:
        state = dataclasses.replace(
            state, ready=tuple(group for group in state.ready if group.number not in gone)
        )
    if choice.batch:
        batch = tuple(sorted(choice.batch, key=lambda group: group.number))
        state = dataclasses.replace(state, training=batch)
        ages = tuple(state.age(group) for group in batch)
        actions += (Train(tuple(group.number for group in batch), ages),)
    return state, actions


def wants_slots(state: ScheduleState) -> bool:
    """Whether more samples would begin if slots were free."""
    return (
        bool(state.again)
        or any(group.waiting for group in state.open)
        or POLICIES[state.cfg.policy].room(state) > 0
    )


def _fill(state: ScheduleState) -> Step:
    """Gives free slots to samples of open groups first, then to new groups."""
    actions: tuple[Action, ...] = ()
    free = state.cfg.slots - state.running
    for group in state.open:
        if free and group.waiting:
            group, started = _started(state, group, free)
            state, actions, free = _put(state, group), actions + started, free - len(started)
    while free and (state.again or POLICIES[state.cfg.policy].room(state) > 0):
        state, group = _new(state)
        group, started = _started(state, group, free)
        state = dataclasses.replace(
            state, open=tuple(sorted((*state.open, group), key=lambda g: g.number))
        )
        actions, free = actions + started, free - len(started)
    return state, actions


def _new(state: ScheduleState) -> tuple[ScheduleState, Group]:
    """A group to restart, or else a new one."""
    everything = tuple(range(state.cfg.group))
    if state.again:
        number, *rest = state.again
        group = Group(number, waiting=everything, resumed=True)
        return dataclasses.replace(state, again=tuple(rest)), group
    group = Group(state.next, waiting=everything)
    return dataclasses.replace(state, next=state.next + 1), group


def _started(state: ScheduleState, group: Group, free: int) -> tuple[Group, tuple[Action, ...]]:
    """A group with as many of its waiting samples in slots as there are."""
    now, later = group.waiting[:free], group.waiting[free:]
    since = state.version if group.since is None else group.since
    group = dataclasses.replace(group, since=since, running=(*group.running, *now), waiting=later)
    return group, tuple(Start(group.number, sample, state.version) for sample in now)
