"""Reinforcement learning in one process: rollouts and the trainer share the device.

    state = train(params, prompt, reward, model=cfg, cfg=RlConfig(...), optimizer=optimizer)

`schedule` says what is begun and what is trained on; here it is done. While there is a batch, the
trainer updates; else the slots decode. Answers that run go on with the new weights, each token
with its own version and the log-probability that it was sampled at. Nothing depends on the clock,
so a run is the same each time, and with a staleness of 0 it is plain synchronous training.
"""

import contextlib
import dataclasses
import json
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from pangu_jax.checkpoint.store import NullStore, Store
from pangu_jax.core.config import check_size, to_json
from pangu_jax.core.errors import InputError
from pangu_jax.core.run_folder import Claim
from pangu_jax.decode.engine import Answer, Engine, Request, TokenDelta, join
from pangu_jax.decode.sample import SamplingConfig
from pangu_jax.losses.policy import PolicyConfig
from pangu_jax.models import decoder
from pangu_jax.nn.how import HOW, How
from pangu_jax.reasoning import rl_resume, schedule
from pangu_jax.reasoning.reward import overlong
from pangu_jax.reasoning.rollout import Rollout, make_batch
from pangu_jax.reasoning.schedule_state import (
    Action,
    Ended,
    Event,
    Forget,
    Grade,
    Graded,
    ScheduleConfig,
    Start,
    Train,
    Updated,
)
from pangu_jax.train.metrics import MetricLog
from pangu_jax.train.optimizer import OptimizerConfig
from pangu_jax.train.policy import answer_log_probs, answer_loss
from pangu_jax.train.step import TrainState, init_state, make_step
from pangu_jax.train.stop_signal import Stopped, StopRequest, stop_requests

OPTIMIZER = OptimizerConfig(learning_rate=1e-6, schedule="constant", weight_decay=0.0)
IN_VAIN = 20  # batches' worth of groups that may be replaced before a run gives up

Prompt = Callable[[int], Sequence[int]]
Reward = Callable[[int, Sequence[Answer]], Sequence[float] | np.ndarray]


@dataclasses.dataclass(frozen=True)
class RlConfig:
    """A run of reinforcement learning.

    Attributes:
      schedule: what is begun and trained on, and when.
      policy: the loss.
      updates: how many.
      length: tokens that a slot has room for, of prompt and answer together.
      max_new_tokens: tokens of an answer at most.
      temperature: answers are sampled at, above 0; trained on at the same.
      stop_ids: an answer ends with the first of these.
      corrected: whether samples of older weights are weighted by how likely they are now.
      accumulate: microbatches per update.
      overlong: what an answer of `max_new_tokens` loses of its reward; less in the last fifth
        before that, nothing earlier (arXiv 2503.14476). Whether a group's rewards are equal is
        decided without it.
      mask_truncated: whether answers that reached `max_new_tokens` are left out of the loss, though
        not of their group's mean (overlong filtering, arXiv 2503.14476).
      save_every: updates between checkpoints.
      seed: of the samples: each has a key made of it, its group's number and its own.
    """

    schedule: ScheduleConfig = ScheduleConfig()
    policy: PolicyConfig = PolicyConfig()
    updates: int = 100
    length: int = 1024
    max_new_tokens: int = 512
    temperature: float = 1.0
    stop_ids: tuple[int, ...] = ()
    corrected: bool = True
    accumulate: int = 1
    overlong: float = 0.0
    mask_truncated: bool = False
    save_every: int = 10
    seed: int = 0

    def __post_init__(self):
        for name in ("updates", "length", "max_new_tokens", "accumulate", "save_every"):
            check_size(name, getattr(self, name))
        if not self.temperature > 0:
            raise InputError(f"temperature must be above 0, got {self.temperature}")
        if not self.overlong >= 0:
            raise InputError(f"overlong must be at least 0, got {self.overlong}")
        if self.schedule.group < 2:
            raise InputError("a group needs 2 answers at least, which its rewards compare")
        rows = self.schedule.batch * self.schedule.group
        if rows % self.accumulate:
            raise InputError(f"accumulate {self.accumulate} must divide {rows} answers per update")

    @property
    def settings(self) -> dict[str, str]:
        """What a run must go on with, beside its schedule, each as JSON."""
        left_out = ("updates", "save_every", "schedule")
        found = to_json(self)
        return {name: json.dumps(found[name]) for name in found if name not in left_out}


class NothingToLearn(InputError):
    """Hardly any group's rewards differ any more; `state` is that of the last update."""

    def __init__(self, message: str, state: TrainState):
        """Raised after the state was saved."""
        super().__init__(message)
        self.state = state


def sample_key(seed: int, group: int, sample: int) -> jax.Array:
    """The key of a sample: the same whenever, and however often, it is begun."""
    return jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), group), sample)


def train(
    params: Any,
    prompt: Prompt,
    reward: Reward,
    *,
    model: decoder.DecoderConfig,
    cfg: RlConfig,
    optimizer: optax.GradientTransformation,
    folder: str | Path | Claim | None = None,
    on_update: Callable[[dict[str, Any]], None] | None = None,
    how: How = HOW,
) -> TrainState:
    """Trains a decoder by the rewards of its answers, from the last checkpoint if there is one.

    With a staleness of 0 a run ends in the same bits whether or not it was interrupted. Otherwise
    answers that had ended are kept, and those that ran are begun again, with the same keys but the
    weights of now.

    Args:
      params: tree of `decoder.spec(model)`; it is used up. With `cfg.policy.kl` a copy of it is the
        reference policy, so a run that goes on must be given the same.
      prompt: ids of a group's prompt, by the group's number, 0, 1, ...
      reward: float [N] of a group's answers, in the order of the samples; NaN where there is none.
      model: the decoder.
      cfg: the run.
      optimizer: what turns gradients into updates.
      folder: checkpoints/, rollouts/ and metrics.jsonl go there, every `cfg.save_every` updates and
        at the end. None saves nothing, and leaves signals alone.
      on_update: called with the figures of every update: version, loss, reward, ages and more;
        those from before the run was stopped first.
      how: layout, implementations, type of activations.

    Returns:
      The state after the last update.

    Raises:
      InputError: a prompt does not fit, rewards are not as many as answers, or the loss is not
        finite; names the group or the update. Or what the folder holds is damaged or of another
        run.
      NothingToLearn: hardly any group's rewards differ, where `replace_equal_groups` asks for
        it; the last update is saved.
      Stopped: on SIGTERM or SIGINT; the update was finished and saved.
    """
    listens = contextlib.nullcontext(StopRequest()) if folder is None else stop_requests()
    with NullStore() if folder is None else Store(folder) as store, listens as stop:
        found = rl_resume.restore(store, decoder.spec(model), optimizer, cfg.schedule, cfg.settings)
        if found is None:
            run = _Run(params, prompt, reward, model, cfg, optimizer, how)
            state, actions = schedule.begin(cfg.schedule)
        else:
            run = _Run(params, prompt, reward, model, cfg, optimizer, how, found)
            state, actions = schedule.resume(found[1])
        path = None if isinstance(store, NullStore) else store.folder.parent / "metrics.jsonl"
        log = MetricLog(path, start_step=state.version, on_metrics=on_update)
        with contextlib.closing(log):
            while state.version < cfg.updates:
                run.do(actions)
                if run.in_vain:
                    if store.latest() != state.version and not isinstance(store, NullStore):
                        rl_resume.save(store, run.state, state, run.rollouts, cfg.settings)
                    store.wait()
                    raise NothingToLearn(run.in_vain, run.state)
                event = run.next_event()
                state, actions = schedule.step(state, event)
                if not isinstance(event, Updated):
                    continue
                log.write(state.version, run.figures)
                stopping, over = stop.reached(state.version), state.version == cfg.updates
                due = state.version % cfg.save_every == 0
                if not isinstance(store, NullStore) and (stopping or over or due):
                    rl_resume.save(store, run.state, state, run.rollouts, cfg.settings)
                if stopping and not over:
                    store.wait()
                    raise Stopped(state.version, 128 + stop.signal, run.state)
            store.wait()
    return run.state


class _Run:
    """The engine, the trainer, and the answers between them."""

    def __init__(self, params, prompt, reward, model, cfg: RlConfig, optimizer, how, found=None):
        self._prompt, self._reward, self._cfg = prompt, reward, cfg
        self._reference = jax.tree.map(jnp.copy, params) if cfg.policy.kl else None
        params = params if found is None else found[0].params
        slots = cfg.schedule.slots
        stops = max(1, len(cfg.stop_ids))
        self._engine = Engine(
            params,
            cfg=model,
            slots=slots,
            length=cfg.length,
            stops=stops,
            version=0 if found is None else found[1].version,
            how=how,
        )
        self._key = jax.random.key(cfg.seed)
        if found is None:
            spec = decoder.spec(model)
            self.state = init_state(spec, optimizer, key=self._key, params=params)
        else:
            self.state = found[0]
        heat: Any = {"temperature": cfg.temperature, "how": how}
        loss = answer_loss(model, cfg.policy, **heat)
        self._step = make_step(loss, optimizer, accumulate=cfg.accumulate)
        self._score = jax.jit(partial(answer_log_probs, cfg=model, **heat))
        self.rollouts: dict[int, Rollout] = {} if found is None else found[2]
        self._running: dict[int, tuple[int, int]] = {}
        self._pieces: dict[int, list[TokenDelta]] = {}
        self._events: deque[Event] = deque()
        self._batch: Train | None = None
        self.in_vain = ""  # why no update can be made, if so
        self._equal: dict[int, float] = {}  # groups to be replaced, as their rewards are all this
        self._replaced: list[float] = []  # the reward of each of those since the last update
        self._graded_rewards: list[float] = []  # of all groups since then
        self.figures: dict[str, Any] = {}

    def do(self, actions: Sequence[Action]) -> None:
        """Does what the actions say, or notes that it is to be done."""
        for action in actions:
            if isinstance(action, Start):
                self._start(action)
            elif isinstance(action, Grade):
                self._events.append(self._graded(action.group))
            elif isinstance(action, Train):
                self._batch = action
            elif isinstance(action, Forget):
                self._forget(action.groups)

    def next_event(self) -> Event:
        """What happens next: what happened already, then an update, then the ends of answers."""
        if self._events:
            return self._events.popleft()
        if self._batch is not None:
            self._update(self._batch)
            self._batch = None
            return Updated()
        while not self._events:
            if not self._engine.busy:
                raise RuntimeError("nothing runs and nothing happened: the schedule rests")
            # The schedule has no more samples than slots: who ends is to be seen at once.
            for piece in self._engine.advance(wake=True):
                self._pieces[piece.request].append(piece)
                if piece.finish_reason is not None:
                    self._ended(piece.request)
        return self._events.popleft()

    def _forget(self, groups: Sequence[int]) -> None:
        for group in groups:
            del self.rollouts[group]
            if group in self._equal:
                self._replaced.append(self._equal.pop(group))
        count = len(self._replaced)
        if count >= IN_VAIN * self._cfg.schedule.batch:
            self.in_vain = (
                f"the last {count} groups had equal rewards each, {np.mean(self._replaced):.3f} on "
                "average, and no update could be made: there is nothing to learn from these "
                "questions any more, or they are too hard"
            )

    def _start(self, action: Start) -> None:
        cfg, group = self._cfg, action.group
        if group not in self.rollouts:
            self.rollouts[group] = Rollout(list(self._prompt(group)))
        request = Request(
            self.rollouts[group].prompt,
            cfg.max_new_tokens,
            SamplingConfig(cfg.temperature),
            cfg.stop_ids,
            sample_key(cfg.seed, group, action.sample),
        )
        try:
            number = self._engine.submit(request)
        except InputError as error:
            raise InputError(f"group {group}: {error}") from error
        self._running[number], self._pieces[number] = (group, action.sample), []

    def _ended(self, number: int) -> None:
        group, sample = self._running.pop(number)
        self.rollouts[group].answers[sample] = join(self._pieces.pop(number))
        self._events.append(Ended(group, sample))

    def _graded(self, number: int) -> Graded:
        group = self.rollouts[number]
        answers = [group.answers[i] for i in range(self._cfg.schedule.group)]
        found = np.asarray(self._reward(number, answers), np.float64)
        if found.shape != (len(answers),):
            raise InputError(f"group {number}: {found.shape} rewards for {len(answers)} answers")
        known = found[~np.isnan(found)]
        self._graded_rewards += known.tolist()
        # Equal by what the answers are worth, not by how long they are.
        if self._cfg.schedule.replace_equal_groups and len(set(known.tolist())) <= 1:
            self._equal[number] = float(known[0]) if known.size else 0.0
        most = self._cfg.max_new_tokens
        lengths = np.array([overlong(len(answer.ids), most) for answer in answers])
        group.rewards = found - self._cfg.overlong * lengths
        return Graded(number, tuple(known.tolist()))

    def _update(self, batch: Train) -> None:
        cfg, version = self._cfg, self._engine.version
        rollouts = [self.rollouts.pop(group) for group in batch.groups]
        oldest = version - cfg.schedule.staleness if cfg.schedule.partial else None
        made = make_batch(
            rollouts,
            divide_by_std=cfg.policy.divide_by_std,
            oldest=oldest,
            mask_truncated=cfg.mask_truncated,
        )
        arrays = dict(made.arrays)
        if cfg.corrected and cfg.schedule.staleness:
            arrays["proximal"] = self._score(self.state.params, arrays)
        if self._reference is not None:
            arrays["reference"] = self._score(self._reference, arrays)
        self.state, metrics = self._step(self.state, arrays, self._key)
        self._engine.update(self.state.params)
        found = {name: float(value) for name, value in jax.device_get(metrics).items()}
        if not np.isfinite([found["loss"], found["grad_norm"]]).all():
            raise InputError(
                f"update {version + 1} is not finite: loss {found['loss']}, gradient norm "
                f"{found['grad_norm']}"
            )
        self.figures = {
            **found,
            **made.facts,
            "graded_reward": float(np.mean(self._graded_rewards or [0.0])),
            "replaced": len(self._replaced),
            "groups": list(batch.groups),
            "ages": list(batch.ages),
        }
        self._replaced, self._graded_rewards = [], []
