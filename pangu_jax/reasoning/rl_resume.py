"""Snapshots from which reinforcement learning resumes: parameters, schedule, unused answers."""

import dataclasses
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import optax

from pangu_jax.checkpoint.store import NullStore, Store, template
from pangu_jax.core.config import load_config, save_config, up_to_date
from pangu_jax.core.errors import InputError
from pangu_jax.core.run_folder import check_same
from pangu_jax.core.spec import abstract
from pangu_jax.core.tree import check_all_finite
from pangu_jax.reasoning.reward import Seen, SourceHealth
from pangu_jax.reasoning.rl_journal import SavedAnswer, saved_answer
from pangu_jax.reasoning.rollout import Rollout
from pangu_jax.reasoning.schedule_state import ScheduleConfig, ScheduleState
from pangu_jax.sharding.launch import first_process
from pangu_jax.sharding.layout import Layout
from pangu_jax.train import resume
from pangu_jax.train.step import TrainState, abstract_state

FOLDER = "rollouts"


@dataclasses.dataclass
class Snapshot:
    """A run's state between two events.

    Attributes:
      plan: of the schedule.
      state: of the training; None is the initial one.
      rollouts: by group, those that are not trained on yet.
      graded: rewards of all answers since the last update.
      replaced: the reward of each group that was replaced since then; None if it had none.
      records: number of events so far (`rl_journal`).
      rates: of a curriculum, the mean reward of each question.
      health: of the sources of rewards.
    """

    plan: ScheduleState
    state: TrainState | None = None
    rollouts: dict[int, Rollout] = dataclasses.field(default_factory=dict)
    graded: list[float] = dataclasses.field(default_factory=list)
    replaced: list[float | None] = dataclasses.field(default_factory=list)
    records: int = 0
    rates: list[float | None] = dataclasses.field(default_factory=list)
    health: SourceHealth = SourceHealth()


@dataclasses.dataclass(frozen=True)
class SavedRollout:
    """A `Rollout` in JSON form; a reward of None is NaN, a question of None the group."""

    group: int
    prompt: tuple[int, ...]
    answers: tuple[SavedAnswer, ...]
    rewards: tuple[float | None, ...] | None
    question: int | None = None


@dataclasses.dataclass(frozen=True)
class Saved:
    """The schedule, the answers that it counts on, and the settings that made them."""

    settings: dict[str, str]
    schedule: ScheduleState
    rollouts: tuple[SavedRollout, ...]
    graded: tuple[float, ...] = ()
    replaced: tuple[float | None, ...] = ()
    records: int = 0
    rates: tuple[float | None, ...] = ()
    seen: dict[str, tuple[Seen, ...]] = dataclasses.field(default_factory=dict)


def save(store: Store | NullStore, found: Snapshot, settings: Mapping[str, str]) -> int:
    """Saves a run; the answers first, so that no checkpoint is without them.

    Args:
      store: of the run.
      found: the run; without a state, just the fact that it began.
      settings: those that a resumed run must share, each as JSON.

    Returns:
      The oldest version that is kept.

    Raises:
      InputError: the parameters are not finite, or something cannot be written.
    """
    version = found.plan.version
    if isinstance(store, NullStore):
        return version
    kept = tuple(_saved(number, found.rollouts[number]) for number in sorted(found.rollouts))
    rest: Any = (tuple(found.graded), tuple(found.replaced), found.records, tuple(found.rates))
    rest = (*rest, dict(found.health.seen))
    place = store.folder.parent / FOLDER
    if first_process():
        save_config(Saved(dict(settings), found.plan, kept, *rest), place / f"{version}.json")
    if found.state is None:
        return version
    resume.save(store, version, found.state, {})
    first = min(store.steps(), default=0)
    for path in place.glob("*.json") if first_process() else ():
        if path.stem.isdecimal() and int(path.stem) < first:
            path.unlink(missing_ok=True)
    return first


def restore(
    store: Store | NullStore,
    spec: Any,
    optimizer: optax.GradientTransformation,
    cfg: ScheduleConfig,
    settings: Mapping[str, str],
    layout: Layout | None = None,
) -> Snapshot | None:
    """Restores the latest snapshot; None if nothing was saved.

    Args:
      store: of the run.
      spec: of the model.
      optimizer: that trains it.
      cfg: of the schedule.
      settings: the other settings of this run, each as JSON.
      layout: placement of the arrays; None is one device.

    Raises:
      InputError: it is damaged, or of other settings; names one.
    """
    if isinstance(store, NullStore):
        return None
    version = store.latest()
    path = store.folder.parent / FOLDER / f"{version or 0}.json"
    if version is None and not path.exists():
        return None
    saved = load_config(Saved, path)
    known = {name: json.loads(saved.settings.get(name, "null")) for name in settings}
    wanted = {name: json.loads(value) for name, value in settings.items()}
    check_same(up_to_date(known), wanted, f"{path} is of a run")
    if saved.schedule.cfg != cfg or saved.schedule.version != (version or 0):
        raise InputError(f"{path} is of another schedule than this run's")
    state = None
    if version is not None:
        like = abstract_state(spec, optimizer, layout=layout)
        rest = resume.on_device(resume.beside_parameters(like), layout)
        params, rest = store.restore(version, template(abstract(spec), spec, layout), rest)
        check_all_finite(params, str(store.folder / str(version)))
        state = TrainState(rest["step"], params, rest["opt_state"])
    rollouts = {one.group: rollout_of(one) for one in saved.rollouts}
    _check_there(saved.schedule, rollouts, path)
    rest = (list(saved.graded), list(saved.replaced), saved.records, list(saved.rates))
    return Snapshot(saved.schedule, state, rollouts, *rest, SourceHealth(seen=saved.seen))


def _saved(number: int, rollout: Rollout) -> SavedRollout:
    answers = [saved_answer(*pair) for pair in sorted(rollout.answers.items())]
    rewards = None if rollout.rewards is None else saved_rewards(rollout.rewards)
    prompt = tuple(map(int, rollout.prompt))
    return SavedRollout(number, prompt, tuple(answers), rewards, rollout.question)


def saved_rewards(rewards: np.ndarray) -> tuple[float | None, ...]:
    """Rewards, float [samples], in JSON form: None for NaN."""
    return tuple(None if np.isnan(reward) else float(reward) for reward in rewards)


def rewards_of(saved: Iterable[float | None]) -> np.ndarray:
    """The rewards that were saved, float64 [samples]."""
    return np.array([np.nan if reward is None else reward for reward in saved], np.float64)


def rollout_of(saved: SavedRollout) -> Rollout:
    """The rollout that was saved."""
    answers = {one.sample: one.answer for one in saved.answers}
    rewards = None if saved.rewards is None else rewards_of(saved.rewards)
    question = saved.group if saved.question is None else saved.question
    return Rollout(list(saved.prompt), question, answers, rewards)


def _check_there(plan: ScheduleState, rollouts: Mapping[int, Rollout], path: Path) -> None:
    """Refuses a file without an answer that the schedule counts on."""
    samples: Iterable[int] = range(plan.cfg.group)
    for group in (*plan.training, *plan.ready, *plan.open):
        there = rollouts[group.number].answers if group.number in rollouts else {}
        ended = {sample for sample in samples if sample not in (*group.waiting, *group.running)}
        graded = group not in plan.open
        if not ended <= there.keys() or (graded and rollouts[group.number].rewards is None):
            raise InputError(f"{path} lacks answers or rewards of group {group.number}")
