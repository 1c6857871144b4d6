"""What a run of reinforcement learning goes on from: parameters, schedule, unused answers."""

import dataclasses
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import optax

from pangu_jax.checkpoint.store import NullStore, Store, template
from pangu_jax.core.config import check_choices, load_config, save_config, to_json
from pangu_jax.core.errors import InputError
from pangu_jax.core.spec import abstract
from pangu_jax.core.tree import check_all_finite
from pangu_jax.decode.engine import Answer
from pangu_jax.reasoning.rollout import Rollout
from pangu_jax.reasoning.schedule_state import ScheduleConfig, ScheduleState
from pangu_jax.train import resume
from pangu_jax.train.step import TrainState, abstract_state

FOLDER = "rollouts"


@dataclasses.dataclass(frozen=True)
class SavedAnswer:
    """An `Answer` as JSON has it."""

    sample: int
    ids: tuple[int, ...]
    log_probs: tuple[float, ...]
    sampled_log_probs: tuple[float, ...]
    versions: tuple[int, ...]
    finish_reason: Literal["stop", "length"]

    def __post_init__(self):
        check_choices(self)
        sizes = {len(x) for x in (self.ids, self.log_probs, self.sampled_log_probs, self.versions)}
        if len(sizes) != 1 or not self.ids:
            raise InputError("an answer's ids, scores and versions must be as many as each other")
        if not all(0 <= x < 2**31 for x in (*self.ids, *self.versions)):
            raise InputError("an answer's ids and versions must be from 0 to 2^31 - 1")


@dataclasses.dataclass(frozen=True)
class SavedRollout:
    """A `Rollout` as JSON has it; a reward of None is NaN."""

    group: int
    prompt: tuple[int, ...]
    answers: tuple[SavedAnswer, ...]
    rewards: tuple[float | None, ...] | None


@dataclasses.dataclass(frozen=True)
class Saved:
    """The schedule, the answers that it counts on, and the settings that made them."""

    settings: dict[str, str]
    schedule: ScheduleState
    rollouts: tuple[SavedRollout, ...]


def save(
    store: Store,
    state: TrainState,
    plan: ScheduleState,
    rollouts: Mapping[int, Rollout],
    settings: Mapping[str, str],
) -> None:
    """Saves what belongs to a version; the answers first, so that no checkpoint is without them.

    Args:
      store: of the run.
      state: of the training.
      plan: of the schedule.
      rollouts: by group, those that are not trained on yet.
      settings: with which the run must go on, each as JSON.

    Raises:
      InputError: the parameters are not finite, or something cannot be written.
    """
    kept = tuple(_saved(number, rollouts[number]) for number in sorted(rollouts))
    saved = Saved(dict(settings), plan, kept)
    place = store.folder.parent / FOLDER
    save_config(to_json(saved), place / f"{plan.version}.json")
    resume.save(store, plan.version, state, {})
    first = min(store.steps(), default=plan.version)
    for path in place.glob("*.json"):
        if path.stem.isdecimal() and int(path.stem) < first:
            path.unlink(missing_ok=True)


def restore(
    store: Store | NullStore,
    spec: Any,
    optimizer: optax.GradientTransformation,
    cfg: ScheduleConfig,
    settings: Mapping[str, str],
) -> tuple[TrainState, ScheduleState, dict[int, Rollout]] | None:
    """What was saved last; None where nothing was.

    Args:
      store: of the run.
      spec: of the model.
      optimizer: that trains it.
      cfg: of the schedule.
      settings: the others, as they were saved.

    Raises:
      InputError: it is damaged, or of other settings; names one.
    """
    version = store.latest()
    if version is None or isinstance(store, NullStore):
        return None
    path = store.folder.parent / FOLDER / f"{version}.json"
    saved = load_config(Saved, path)
    for name, value in settings.items():
        if saved.settings.get(name) != value:
            raise InputError(
                f"{path} is of a run with {name} = {saved.settings.get(name)}, this one has {value}"
            )
    if saved.schedule.cfg != cfg or saved.schedule.version != version:
        raise InputError(f"{path} is of another schedule than this run's")
    state = abstract_state(spec, optimizer)
    rest = resume.on_device(resume.beside_parameters(state), None)
    params, rest = store.restore(version, template(abstract(spec), spec, None), rest)
    check_all_finite(params, str(store.folder / str(version)))
    rollouts = {one.group: rollout_of(one) for one in saved.rollouts}
    _check_there(saved.schedule, rollouts, path)
    return TrainState(rest["step"], params, rest["opt_state"]), saved.schedule, rollouts


def _saved(number: int, rollout: Rollout) -> SavedRollout:
    answers = [
        SavedAnswer(
            sample,
            tuple(answer.ids.tolist()),
            tuple(answer.log_probs.tolist()),
            tuple(answer.sampled_log_probs.tolist()),
            tuple(answer.versions.tolist()),
            answer.finish_reason,
        )
        for sample, answer in sorted(rollout.answers.items())
    ]
    rewards = rollout.rewards
    told = None if rewards is None else tuple(None if np.isnan(r) else float(r) for r in rewards)
    return SavedRollout(number, tuple(map(int, rollout.prompt)), tuple(answers), told)


def rollout_of(saved: SavedRollout) -> Rollout:
    """The rollout, as it was when it was saved."""
    answers = {
        one.sample: Answer(
            np.array(one.ids, np.int32),
            np.array(one.log_probs, np.float32),
            np.array(one.sampled_log_probs, np.float32),
            np.array(one.versions, np.int32),
            one.finish_reason,
        )
        for one in saved.answers
    }
    rewards = saved.rewards
    told = None if rewards is None else np.array([np.nan if r is None else r for r in rewards])
    return Rollout(list(saved.prompt), answers, told)


def _check_there(plan: ScheduleState, rollouts: Mapping[int, Rollout], path: Path) -> None:
    """Refuses a file without an answer that the schedule counts on."""
    samples: Iterable[int] = range(plan.cfg.group)
    for group in (*plan.training, *plan.ready, *plan.open):
        there = rollouts[group.number].answers if group.number in rollouts else {}
        ended = {sample for sample in samples if sample not in (*group.waiting, *group.running)}
        graded = group not in plan.open
        if not ended <= there.keys() or (graded and rollouts[group.number].rewards is None):
            raise InputError(f"{path} lacks answers or rewards of group {group.number}")
