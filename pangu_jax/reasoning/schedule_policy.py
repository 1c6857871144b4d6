"""Three policies of the scheduler: the number of groups that may begin, and the next batch."""

import dataclasses
from collections.abc import Callable
from typing import Any

from pangu_jax.reasoning.schedule_state import Group, ScheduleState


@dataclasses.dataclass(frozen=True)
class Choice:
    """A policy's decision while the trainer is idle.

    Attributes:
      batch: groups to train on, of `ready`; none to wait.
      discard: groups of `ready` to restart.
      renew: numbers of groups in `open` that go on as a new segment.
    """

    batch: tuple[Group, ...] = ()
    discard: tuple[Group, ...] = ()
    renew: tuple[int, ...] = ()


@dataclasses.dataclass(frozen=True)
class Policy:
    """One way to decide.

    Attributes:
      room: number of new groups that may begin, slots aside.
      choose: the choice while no update is under way.
    """

    room: Callable[[ScheduleState], int]
    choose: Callable[[ScheduleState], Choice]


def _paced(state: ScheduleState) -> int:
    """Room for groups to train on within `staleness` updates from now, and no more.

    Source: inclusionAI/AReaL, areal/infra/staleness_manager.py.
    """
    cfg = state.cfg
    return (cfg.staleness + state.version + 1) * cfg.batch - state.admitted


def _always(state: ScheduleState) -> int:
    del state
    return 1


def _barrier(state: ScheduleState) -> Choice:
    """A batch after which the bound can be kept, or none; `schedule` says why that suffices."""
    cfg = state.cfg
    if len(state.ready) < cfg.batch:
        return Choice()
    excess = [len(g) - level * cfg.batch for level, g in enumerate(_levels(state, state.open))]
    if max(excess) <= 0:
        return Choice(batch=_preferred(state))
    if not cfg.partial:
        return Choice()
    old = [group for group in state.open if not group.ended]
    old = sorted(old, key=lambda group: (-state.age(group), group.number))
    renew = tuple(group.number for group in old[: max(excess)])
    state = renewed(state, renew)
    if any(len(g) > level * cfg.batch for level, g in enumerate(_levels(state, state.open))):
        return Choice()  # groups being graded are too old, and will soon be ready
    return Choice(batch=_preferred(state), renew=renew)


def renewed(state: ScheduleState, numbers: tuple[int, ...]) -> ScheduleState:
    """The state in which open groups go on as new segments."""
    changes: Any = {"since": state.version, "resumed": True}
    groups = (dataclasses.replace(g, **changes) if g.number in numbers else g for g in state.open)
    return dataclasses.replace(state, open=tuple(groups), renewed=state.renewed + len(numbers))


def _levels(state: ScheduleState, groups: tuple[Group, ...]) -> list[list[Group]]:
    """For j = 0..s, those whose age is at least s - j."""
    s = state.cfg.staleness
    return [[g for g in groups if state.age(g) >= s - level] for level in range(s + 1)]


def _preferred(state: ScheduleState) -> tuple[Group, ...]:
    """The batch of the highest scores among those that leave at most j B groups in level j.

    Levels lie in one another, so taking from each what it must give, the oldest level first, takes
    no more than is needed.
    """
    cfg, left = state.cfg, sorted(state.ready, key=lambda g: (-score(state, g), g.number))
    outstanding = _levels(state, (*state.ready, *state.open))
    chosen: list[Group] = []
    for level, groups in enumerate(outstanding):
        must = len(groups) - level * cfg.batch - len(chosen)  # those chosen are of this level, too
        if must > 0:
            oldest = [g for g in left if state.age(g) >= cfg.staleness - level][:must]
            chosen += oldest
            numbers = {g.number for g in oldest}
            left = [g for g in left if g.number not in numbers]
    return (*chosen, *left[: cfg.batch - len(chosen)])


def score(state: ScheduleState, group: Group) -> float:
    """A group's score by `Priority`."""
    weights, p = state.cfg.priority, group.mean
    learnable = 0.0 if p is None else 4 * p * (1 - p)
    return (
        weights.age * state.age(group) / max(state.cfg.staleness, 1)
        + weights.learnable * learnable
        + weights.resumed * group.resumed
    )


def _first(state: ScheduleState) -> Choice:
    """The first groups that were ready, whatever their age."""
    batch = state.cfg.batch
    return Choice(batch=state.ready[:batch] if len(state.ready) >= batch else ())


def _young(state: ScheduleState) -> Choice:
    """The first ready groups within the staleness bound; older ones restart."""
    batch, bound = state.cfg.batch, state.cfg.staleness
    old = tuple(group for group in state.ready if state.age(group) > bound)
    young = tuple(group for group in state.ready if state.age(group) <= bound)
    return Choice(batch=young[:batch] if len(young) >= batch else (), discard=old)


POLICIES = {
    "barrier": Policy(_paced, _barrier),
    "admission": Policy(_paced, _first),
    "discard": Policy(_always, _young),
}
