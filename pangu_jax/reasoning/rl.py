"""Reinforcement learning: rollouts and a trainer, by default in one process on one device.

    state = train(params, prompt, reward, model=cfg, cfg=RlConfig(...), optimizer=optimizer)

`schedule` decides what to begin and to train on; this module does it. In one process the trainer
updates if there is a batch, else the slots decode; nothing depends on the clock, so runs are
reproducible, and with a staleness of 0 it is plain synchronous training. Running answers continue
with the new weights, each token with its own version and the log-probability that it was sampled
at. Events are logged as they happen (`rl_journal`), so that a kill loses only running answers.
"""

import contextlib
import dataclasses
import itertools
import json
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent import futures
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax

from pangu_jax.checkpoint.store import NullStore, Store
from pangu_jax.core.config import to_json
from pangu_jax.core.errors import InputError
from pangu_jax.core.run_folder import Claim
from pangu_jax.core.tree import content_hash
from pangu_jax.decode.engine import Answer, Request
from pangu_jax.decode.sampling_config import SamplingConfig
from pangu_jax.models import decoder
from pangu_jax.nn.how import HOW, How
from pangu_jax.reasoning import rl_resume, schedule
from pangu_jax.reasoning.reward import Graded, SourceHealth
from pangu_jax.reasoning.rl_config import RlConfig
from pangu_jax.reasoning.rl_journal import Journal, Record, saved_answer
from pangu_jax.reasoning.rl_resume import Snapshot
from pangu_jax.reasoning.rl_trainer import Made, Prompt, Trainer, in_vain, unjudged
from pangu_jax.reasoning.sampler import LocalSampler, MakeSampler, Sampled, Sampler, sample_key
from pangu_jax.reasoning.schedule_state import Action, Grade, Start
from pangu_jax.sharding.launch import first_process, from_first, gathered, together
from pangu_jax.sharding.layout import Layout, batch_parts
from pangu_jax.train import resume
from pangu_jax.train.metrics import MetricLog
from pangu_jax.train.step import TrainState
from pangu_jax.train.stop_signal import Stopped, StopRequest, stop_requests

PATIENCE_S = 0.05  # between looks at an update under way
IN_VAIN = 20  # batches' worth of groups that may be replaced before a run gives up

Reward = Callable[[int, Sequence[Answer]], Sequence[float] | np.ndarray]
Grader = Callable[[int, Sequence[Answer], SourceHealth], Graded]


class NothingToLearn(InputError):
    """Hardly any group's rewards differ any more; `state` is that of the last update."""

    def __init__(self, message: str, state: TrainState):
        """Raised after the state was saved."""
        super().__init__(message)
        self.state = state


def train(
    params: Any,
    prompt: Prompt,
    reward: Reward | Grader,
    *,
    model: decoder.DecoderConfig,
    cfg: RlConfig,
    optimizer: optax.GradientTransformation,
    health: SourceHealth | None = None,
    folder: str | Path | Claim | None = None,
    on_update: Callable[[dict[str, Any]], None] | None = None,
    sampler: MakeSampler = LocalSampler,
    how: How = HOW,
) -> TrainState:
    """Trains a decoder by the rewards of its answers, resuming a run that was stopped or killed.

    Answers that had ended are kept, updates since the last checkpoint are recomputed from them to
    the same bits, and running answers are restarted, with the same keys but the current weights.
    So with a staleness of 0 a run ends in the same bits whether or not it was interrupted.

    Args:
      params: tree of `decoder.spec(model)`; it is donated. A resumed run needs the same ones: it
        begins with them, and with `cfg.policy.kl` a copy of them is the reference policy.
      prompt: ids of a question, by its number: that of the group, 0, 1, ..., or, with a curriculum,
        one of its questions'.
      reward: rewards of the answers to a question, by its number, float [answers]; NaN where there
        is none. With `health` it is called with the sources' health as a third argument, and
        returns what `reward.grade` does.
      model: the decoder.
      cfg: the run.
      optimizer: the transformation of gradients into updates; a resumed run needs the same.
      health: of the sources of rewards as the run begins; a resumed one goes on with what it had
        seen of them. None is for rewards that do not adapt.
      folder: metrics.jsonl and rollouts/, with every answer that ended, go there, and checkpoints/
        every `cfg.save_every` updates and at the end. None saves nothing, and leaves signals alone.
      on_update: called with the figures of every update: version, loss, reward, ages and more;
        those from before the run was stopped first.
      sampler: makes the sampler of answers.
      how: layout, implementations, type of activations.

    Returns:
      The state after the last update.

    Raises:
      InputError: a prompt does not fit, the numbers of rewards and answers differ, or the loss is
        not finite; names the group or the update. Or the folder's content is damaged or of another
        run: of other settings, or of an optimizer with different updates. Or hardly any group has
        rewards, though `replace_equal_groups` needs rewards that differ. Or a source fails too
        often (`SourceHealth`).
      NothingToLearn: hardly any group's rewards differ, as `replace_equal_groups` needs; the last
        update is saved.
      Stopped: on SIGTERM or SIGINT; within a burst of decoding or an update; the run is saved.
    """
    _check_layout(cfg, how.layout)
    listens = contextlib.nullcontext(StopRequest()) if folder is None else stop_requests()
    place = NullStore() if folder is None else Store(folder)
    with place as store, listens as stop, resume.explained(store), contextlib.ExitStack() as held:
        home = None if isinstance(store, NullStore) else store.folder.parent
        settings = {} if home is None else _settings(gathered(params), cfg, model, how)
        saved = (decoder.spec(model), optimizer, cfg.schedule, settings, how.layout)
        run = rl_resume.restore(store, *saved)
        again = run is not None
        run = run or Snapshot(schedule.begin(cfg.schedule)[0])
        run.health = _recalled(health or SourceHealth(), run.health)
        writes = first_process()
        journal = Journal(None if home is None else home / rl_resume.FOLDER, writes=writes)
        held.callback(journal.close)
        records = journal.read(run.records, run.plan.version)
        together("the run is read")  # nobody writes before
        if not again:
            rl_resume.save(store, run, settings)
        rest: Any = {"model": model, "cfg": cfg, "optimizer": optimizer, "how": how}
        begins = run.state is None
        trainer = Trainer(run, params, prompt, **rest)
        actions = trainer.prepare(schedule.begin(cfg.schedule)[1]) if begins else ()
        path = None if home is None else home / "metrics.jsonl"
        log = MetricLog(path, start_step=run.plan.version, writes=writes, on_metrics=on_update)
        with contextlib.closing(log):
            _replay(records, trainer, log)
            if records or again:
                journal.write(Record("resumed"))
                actions = trainer.happens(Record("resumed"))
            saver = _Saver(store, journal, trainer, settings)
            if run.plan.version < cfg.updates:
                grader = _grader(reward, health)
                with _rollouts(trainer, sampler, grader, model, how) as rollouts:
                    _go_on(rollouts, actions, journal, log, saver, stop)
            saver.save()
            saver.wait()
    return trainer.state


def _replay(records: Sequence[Record], trainer: Trainer, log: MetricLog) -> None:
    """Lets what was written down happen again."""
    for record in records:
        trainer.happens(record)
        if record.kind == "updated":
            log.write(trainer.run.plan.version, trainer.figures)


def _check_layout(cfg: RlConfig, layout: Layout | None) -> None:
    """Refuses layouts under which devices would repeat each other's work."""
    if layout is None:
        if jax.process_count() > 1:
            raise InputError("reinforcement learning in several processes needs a layout")
        return
    plan, parts = cfg.schedule, batch_parts(layout)
    rows = plan.batch * plan.group // cfg.accumulate
    for what, count in (("answers of a microbatch", rows), ("slots", plan.slots)):
        if count % parts:
            raise InputError(
                f"{count} {what} do not divide by the {parts} parts that this mesh splits them "
                f"into; devices would repeat one another's work: take a multiple of {parts}"
            )


def _settings(params: Any, cfg: RlConfig, model: decoder.DecoderConfig, how: How) -> dict[str, str]:
    """Settings that a resumed run must share, besides its schedule, each as JSON.

    Of `how` only fields that change results: placement and rematerialization do not. An optimizer
    is a pair of functions; a different one shows when updates are recomputed (`Record.moved`).
    """
    computed = {
        "impl": dict(how.impl or {}),
        "dtype": None if how.dtype is None else str(how.dtype),
    }
    more = {"parameters": content_hash(params), "model": to_json(model), "how": computed}
    return cfg.settings | {name: json.dumps(value) for name, value in more.items()}


def _recalled(health: SourceHealth, known: SourceHealth) -> SourceHealth:
    """`health` with what a run had seen of its sources."""
    seen = {name: groups[-health.window :] for name, groups in known.seen.items()}
    return dataclasses.replace(health, seen={**health.seen, **seen})


def _grader(reward: Any, health: SourceHealth | None) -> Grader:
    """The reward as a grader; one that does not adapt has no sources."""
    if health is not None:
        return reward

    def grade(question: int, answers: Sequence[Answer], _: SourceHealth) -> Graded:
        found = np.asarray(reward(question, answers), np.float64)
        return Graded(found, ~np.isnan(found), {})

    return grade


class _Saver:
    """Checkpoints of a run, one for each version at most."""

    def __init__(self, store: Store | NullStore, journal: Journal, trainer: Trainer, settings):
        self._store, self._journal, self._trainer = store, journal, trainer
        self._settings, self._saved = settings, store.latest()

    def save(self) -> None:
        """Saves the run; if its weights are saved already, the journal has the events since."""
        run = self._trainer.run
        if self._saved != run.plan.version and not isinstance(self._store, NullStore):
            oldest = rl_resume.save(self._store, run, self._settings)
            self._journal.cut(run.plan.version, oldest)
            self._saved = run.plan.version

    def wait(self) -> None:
        """Waits until the saved run is written."""
        self._store.wait()


def _go_on(rollouts: "_Rollouts", actions, journal, log, saver, stop: StopRequest) -> None:
    """Runs until the last update is made."""
    trainer, cfg = rollouts.trainer, rollouts.trainer.cfg
    run = trainer.run
    for turn in itertools.count(1):
        if run.plan.version >= cfg.updates:
            return
        rollouts.do(actions)
        actions = ()
        # The state that an update under way uses up cannot be saved.
        if not rollouts.updating and stop.reached(turn):
            _keep(rollouts, journal, saver)
            raise Stopped(run.plan.version, 128 + stop.signal, trainer.state)
        found = rollouts.next()
        if found is None:
            continue
        record, made = found
        journal.write(record)
        actions = trainer.happens(record, made)
        if record.kind == "updated":
            rollouts.updated()
            log.write(run.plan.version, trainer.figures)
            if run.plan.version % cfg.save_every == 0:
                saver.save()
        elif not rollouts.updating and (why := in_vain(run, IN_VAIN * cfg.schedule.batch)):
            _keep(rollouts, journal, saver)
            raise NothingToLearn(why, trainer.state)
        elif not rollouts.updating and (why := unjudged(run, IN_VAIN * cfg.schedule.batch)):
            _keep(rollouts, journal, saver)
            raise InputError(why)


def _keep(rollouts: "_Rollouts", journal: Journal, saver: "_Saver") -> None:
    """Saves the run, first taking in the samples that have ended."""
    for record in rollouts.ended():
        journal.write(record)
        rollouts.trainer.happens(record)
    saver.save()
    saver.wait()


@contextlib.contextmanager
def _rollouts(trainer, sampler: MakeSampler, grader: Grader, model, how) -> "Iterator[_Rollouts]":
    """The answers under way, until the block ends."""
    cfg, run = trainer.cfg, trainer.run
    sizes = {"slots": cfg.schedule.slots, "length": cfg.length, "stops": max(1, len(cfg.stop_ids))}
    made = sampler(trainer.state.params, version=run.plan.version, model=model, how=how, **sizes)
    with contextlib.closing(made), ThreadPoolExecutor(1) as thread:
        yield _Rollouts(trainer, made, grader, thread)


class _Rollouts:
    """The answers under way, the groups to be graded, and the update under way."""

    def __init__(
        self, trainer: Trainer, sampler: Sampler, grader: Grader, thread: ThreadPoolExecutor
    ):
        self.trainer, self._sampler, self._grader = trainer, sampler, grader
        self._thread = thread
        self._update: Future[Made] | None = None  # under way, where others write meanwhile
        self._to_grade: deque[int] = deque()
        self._ended: deque[Sampled] = deque()
        self._clock = _Clock(trainer.cfg.schedule.slots)

    @property
    def updating(self) -> bool:
        """Whether an update is under way while others write."""
        return self._update is not None

    def do(self, actions: Sequence[Action]) -> None:
        """Performs the actions, or queues them."""
        for action in actions:
            if isinstance(action, Start):
                self._start(action)
            elif isinstance(action, Grade):
                self._to_grade.append(action.group)

    def ended(self) -> Iterator[Record]:
        """Yields samples that have ended and that `next` has not returned yet."""
        while self._ended:
            yield _record(self._ended.popleft())

    def next(self) -> tuple[Record, Made | None] | None:
        """Returns the next event: an ended sample, rewards, or an update; else decodes.

        None if nothing ends within a burst of decoding.
        """
        if self._ended:
            return _record(self._ended.popleft()), None
        if self._to_grade:
            return self._graded(self._to_grade.popleft()), None
        plan, shares = self.trainer.run.plan, self._sampler.shares_device
        if plan.training and shares:
            return self._updated(self.trainer.update(), 0)
        if plan.training and self._update is None:
            self._update = self._thread.submit(self.trainer.update)
        if self._update is not None and self._update.done():
            return self._updated(self._update.result(), plan.running)
        if not plan.running and self._update is None:
            raise RuntimeError("nothing runs and nothing happened: the schedule rests")
        if plan.running:
            self._ended += self._sampler.poll(wake=schedule.wants_slots(plan))
        elif self._update is not None:
            futures.wait([self._update], timeout=PATIENCE_S)
        self._clock.tick(plan.running, trains=self._update is not None)
        return None

    def _updated(self, made: Made, running: int) -> tuple[Record, Made]:
        self._clock.tick(running, trains=True)
        return Record("updated", figures=self._clock.figures(), moved=made.moved), made

    def updated(self) -> None:
        """Hands the weights after an update to the sampler."""
        self._update = None
        self._sampler.update(self.trainer.state.params)

    def _start(self, action: Start) -> None:
        cfg, group = self.trainer.cfg, action.group
        request = Request(
            self.trainer.rollout(group).prompt,
            cfg.max_new_tokens,
            SamplingConfig(cfg.temperature),
            cfg.stop_ids,
            sample_key(cfg.seed, group, action.sample),
        )
        try:
            self._sampler.start(group, action.sample, request)
        except InputError as error:
            raise InputError(f"group {group}: {error}") from error

    def _graded(self, number: int) -> Record:
        group = self.trainer.rollout(number)
        answers = [group.answers[i] for i in range(self.trainer.cfg.schedule.group)]
        found, seen, health = np.zeros(len(answers)), {}, self.trainer.run.health
        if first_process():  # who grades may be slow, or decide otherwise another time
            graded = self._grader(group.question, answers, health)
            health.after(graded)  # raises if a source fails too often
            found, seen = graded.reward, graded.seen
        if found.shape != (len(answers),):
            raise InputError(f"group {number}: {found.shape} rewards for {len(answers)} answers")
        if np.isinf(found).any():
            raise InputError(f"group {number} has a reward that is infinite")
        rewards = rl_resume.saved_rewards(from_first(found))
        return Record("graded", number, rewards=rewards, seen=seen)


def _record(found: Sampled) -> Record:
    if found.answer is None:
        return Record("lost", found.group, found.sample)
    return Record("ended", found.group, answer=saved_answer(found.sample, found.answer))


class _Clock:
    """Measures seconds, and the share of them in which something was idle."""

    def __init__(self, slots: int):
        self._slots, self._last = slots, time.monotonic()
        self._seconds = self._busy = self._trained = 0.0

    def tick(self, running: int, *, trains: bool) -> None:
        """Adds the time since the last tick to the busy time of slots and trainer."""
        now = time.monotonic()
        seconds, self._last = now - self._last, now
        self._seconds += seconds
        self._busy += seconds * running / self._slots
        self._trained += seconds * trains

    def figures(self) -> dict[str, float]:
        """Figures of the time since the last call."""
        seconds = max(self._seconds, 1e-9)
        found = {
            "seconds": seconds,
            "generator_idle": max(0.0, 1 - self._busy / seconds),
            "trainer_idle": max(0.0, 1 - self._trained / seconds),
        }
        self._seconds = self._busy = self._trained = 0.0
        return found
