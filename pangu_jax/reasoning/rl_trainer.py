"""The trainer of reinforcement learning: makes updates from answers and rewards."""

from collections.abc import Callable, Sequence
from functools import lru_cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from einops import rearrange

from pangu_jax.core.errors import InputError
from pangu_jax.models import decoder
from pangu_jax.nn.how import How
from pangu_jax.reasoning import schedule
from pangu_jax.reasoning.curriculum import learned, mixture, pick
from pangu_jax.reasoning.reward import overlong
from pangu_jax.reasoning.rl_config import RlConfig
from pangu_jax.reasoning.rl_journal import Record
from pangu_jax.reasoning.rl_resume import Snapshot, rewards_of
from pangu_jax.reasoning.rollout import Rollout, make_batch
from pangu_jax.reasoning.schedule_state import (
    Action,
    Ended,
    Event,
    Forget,
    Graded,
    Lost,
    Start,
    Updated,
)
from pangu_jax.sharding.launch import gathered
from pangu_jax.sharding.layout import Layout, batch_sharding, shardings
from pangu_jax.train.policy import answer_log_probs, answer_loss
from pangu_jax.train.step import TrainState, init_state, make_step

Prompt = Callable[[int], Sequence[int]]

FAR = 0.1  # a recomputed update may be off by this share of the distance that weights moved


# The figures that are 0 where a batch has nothing to learn.
NOTHING = ("loss", "weight", "grad_norm", "clipped", "kl_behavior", "weight_ratio")


class Made(NamedTuple):
    """An update.

    Attributes:
      state: after it.
      figures: plain numbers about it.
      moved: distance that it moved some of the weights.
    """

    state: TrainState
    figures: dict[str, float]
    moved: float


@lru_cache(maxsize=8)
def make_score(
    model: decoder.DecoderConfig, *, temperature: float, accumulate: int, how: How
) -> Callable[[Any, Any], jax.Array]:
    """The jitted `answer_log_probs` of a batch, computed in `accumulate` parts.

    It maps parameters and a batch to float32 [B, T], in nats.
    """
    one = partial(answer_log_probs, cfg=model, temperature=temperature, how=how)

    def score(params, batch):
        rows = {name: batch[name] for name in ("tokens", "labels", "segments")}
        if accumulate == 1:
            return one(params, rows)
        parts = {
            k: rearrange(x, "(part b) t -> part b t", part=accumulate) for k, x in rows.items()
        }
        found = jax.lax.map(lambda part: one(params, part), parts)
        return rearrange(found, "part b t -> (part b) t")

    return jax.jit(score)


@lru_cache(maxsize=8)
def _loss(model, policy, temperature, how):
    """One function for equal settings, so that runs share a compilation (`make_step`)."""
    return answer_loss(model, policy, temperature=temperature, how=how)


class Trainer:
    """A run's training state, which its records determine; it neither samples nor grades.

    Attributes:
      run: the state after the last record.
      figures: of the last update.
    """

    def __init__(
        self,
        run: Snapshot,
        params: Any,
        prompt: Prompt,
        *,
        model: decoder.DecoderConfig,
        cfg: RlConfig,
        optimizer: optax.GradientTransformation,
        how: How,
    ):
        """See `rl.train`; if the run has no state yet, `params` are donated."""
        self.run, self.cfg = run, cfg
        self.figures: dict[str, Any] = {}
        self._prompt, self._key = prompt, jax.random.key(cfg.seed)
        self._layout, spec = how.layout, decoder.spec(model)
        if how.layout is not None:
            params = jax.device_put(params, shardings(spec, how.layout))
        self._reference = jax.tree.map(jnp.copy, params) if cfg.policy.kl else None
        if run.state is None:
            more: Any = {"params": params, "layout": how.layout}
            run.state = init_state(spec, optimizer, key=self._key, **more)
        loss = _loss(model, cfg.policy, cfg.temperature, how)
        self._step = make_step(loss, optimizer, accumulate=cfg.accumulate, layout=how.layout)
        shared: Any = {"temperature": cfg.temperature, "how": how}
        self._score = make_score(model, accumulate=cfg.accumulate, **shared)
        if cfg.curriculum is not None and not run.rates:
            run.rates = [None] * cfg.curriculum.questions
        # Groups to be replaced, as their rewards are all this; None if they have no rewards.
        self._equal: dict[int, float | None] = {}

    @property
    def state(self) -> TrainState:
        """The training state after the last update."""
        assert self.run.state is not None
        return self.run.state

    def rollout(self, group: int) -> Rollout:
        """The rollout of a group, created with its prompt if missing."""
        if group not in self.run.rollouts:
            question = self._question(group)
            self.run.rollouts[group] = Rollout(list(self._prompt(question)), question)
        return self.run.rollouts[group]

    def _question(self, group: int) -> int:
        run, mix = self.run, self.cfg.curriculum
        if mix is None:
            return group
        busy = {rollout.question for rollout in run.rollouts.values()}
        rng = np.random.default_rng([self.cfg.seed, group])
        return pick(mix, run.rates, version=run.plan.version, busy=busy, rng=rng)

    def prepare(self, actions: Sequence[Action]) -> tuple[Action, ...]:
        """Finds the questions of groups that begin and forgets those that are not needed."""
        for action in actions:
            if isinstance(action, Forget):
                self._forget(action.groups)
            elif isinstance(action, Start):
                self.rollout(action.group)
        return tuple(actions)

    def happens(self, record: Record, made: Made | None = None) -> tuple[Action, ...]:
        """Applies an event.

        Args:
          record: the event.
          made: for an update, the result of `update`; None computes it.

        Returns:
          The actions that follow.
        """
        if record.kind == "resumed":
            found = schedule.resume(self.run.plan)
        else:
            found = schedule.step(self.run.plan, self._event(record, made))
        self.run.plan, actions = found
        self.run.records += 1
        return self.prepare(actions)

    def update(self) -> Made:
        """Makes the update that is due; its state replaces the one before.

        Raises:
          InputError: it is not finite.
        """
        cfg, plan = self.cfg, self.run.plan
        rollouts = [self.run.rollouts[group.number] for group in plan.training]
        oldest = plan.version - cfg.schedule.staleness if cfg.schedule.partial else None
        batch = make_batch(
            rollouts,
            divide_by_std=cfg.policy.divide_by_std,
            oldest=oldest,
            mask_truncated=cfg.mask_truncated,
        )
        arrays, state = dict(batch.arrays), self.state
        if not arrays["mask"].any():  # moments would move the weights without a gradient
            nothing = [*NOTHING, *(["kl"] if cfg.policy.kl else [])]
            figures = dict.fromkeys(nothing, 0.0) | batch.facts
            return Made(state.replace(step=state.step + 1), figures, 0.0)
        if self._layout is not None:
            arrays = {k: _split(x, self._layout) for k, x in arrays.items()}
        if cfg.corrected and cfg.schedule.staleness:
            arrays["proximal"] = self._score(state.params, arrays)
        if self._reference is not None:
            arrays["reference"] = self._score(self._reference, arrays)
        before = _some(state.params)
        state, metrics = self._step(state, arrays, self._key)
        found = {name: float(value) for name, value in jax.device_get(metrics).items()}
        if not np.isfinite([found["loss"], found["grad_norm"]]).all():
            raise InputError(
                f"update {plan.version + 1} is not finite: loss {found['loss']}, gradient norm "
                f"{found['grad_norm']}"
            )
        moved = float(np.linalg.norm(_some(state.params) - before))
        return Made(state, {**found, **batch.facts}, moved)

    def _event(self, record: Record, made: Made | None) -> Event:
        if record.kind == "ended":
            assert record.answer is not None
            sample = record.answer.sample
            self.rollout(record.group).answers[sample] = record.answer.answer
            return Ended(record.group, sample)
        if record.kind == "lost":
            return Lost(record.group, record.sample)
        if record.kind == "graded":
            self.run.health = self.run.health.having_seen(record.seen)
            return self._graded(record.group, rewards_of(record.rewards))
        if made is None:
            made = self.update()
            _check_same(self.run.plan.version + 1, record.moved, made.moved)
        self._updated(made.state, made.figures, record.figures)
        return Updated()

    def _graded(self, number: int, found: np.ndarray) -> Graded:
        group = self.rollout(number)
        answers = [group.answers[i] for i in range(self.cfg.schedule.group)]
        known = found[~np.isnan(found)]
        self.run.graded += known.tolist()
        if self.cfg.curriculum is not None:
            before = self.run.rates[group.question]
            self.run.rates[group.question] = learned(self.cfg.curriculum, before, known.tolist())
        # Equal by the answers' worth, not by their length.
        if self.cfg.schedule.replace_equal_groups and len(set(known.tolist())) <= 1:
            self._equal[number] = float(known[0]) if known.size else None
        most = self.cfg.max_new_tokens
        lengths = np.array([overlong(len(answer.ids), most) for answer in answers])
        group.rewards = found - self.cfg.overlong * lengths
        return Graded(number, tuple(known.tolist()))

    def _updated(self, state: TrainState, found: dict[str, float], told: dict[str, float]) -> None:
        run, training = self.run, self.run.plan.training
        self.figures = {
            **found,
            "graded_reward": float(np.mean(run.graded or [0.0])),
            "replaced": len(run.replaced),
            **_counts(run),
            **({} if self.cfg.curriculum is None else mixture(self.cfg.curriculum, run.rates)),
            "groups": [group.number for group in training],
            "ages": [run.plan.age(group) for group in training],
            **told,
        }
        if told.get("seconds"):
            rows = len(training) * self.cfg.schedule.group
            self.figures["tokens_per_second"] = found["tokens"] * rows / told["seconds"]
        for group in training:
            del run.rollouts[group.number]
        run.state, run.graded, run.replaced = state, [], []

    def _forget(self, groups: Sequence[int]) -> None:
        for group in groups:
            del self.run.rollouts[group]
            if group in self._equal:
                self.run.replaced.append(self._equal.pop(group))


def _counts(run: Snapshot) -> dict[str, int]:
    """The schedule's counters since the run began."""
    return {name: getattr(run.plan, name) for name in ("dropped", "discarded", "renewed", "lost")}


def in_vain(run: Snapshot, most: int) -> str:
    """The reason training has stalled, `most` groups of equal rewards in a row; else ""."""
    equal = [reward for reward in run.replaced if reward is not None]
    if len(equal) < most:
        return ""
    return (
        f"the last {len(equal)} groups had equal rewards each, {np.mean(equal):.3f} on "
        "average, and no update could be made: there is nothing to learn from these "
        "questions any more, or they are too hard"
    )


def unjudged(run: Snapshot, most: int) -> str:
    """Says why no update happens if `most` groups since the last had no reward at all; else ""."""
    count = run.replaced.count(None)
    if count < most:
        return ""
    return (
        f"{count} groups since the last update have no rewards, as none of their answers could be "
        "judged: that says nothing about the model, see to what gives the rewards"
    )


def _split(x: np.ndarray, layout: Layout) -> jax.Array:
    """An array that every process has, split over the devices of all as a batch is."""
    return jax.make_array_from_callback(x.shape, batch_sharding(x.shape, layout), lambda at: x[at])


def _some(params: Any) -> np.ndarray:
    """A row of each parameter: float64 of one dimension."""
    rows = jax.device_get(gathered(_first_rows(jax.tree.leaves(params))))
    return np.concatenate([np.asarray(row, np.float64).reshape(-1) for row in rows])


@jax.jit
def _first_rows(leaves: Sequence[jax.Array]) -> list[jax.Array]:
    return [x[(0,) * (x.ndim - 1)] for x in leaves]


def _check_same(number: int, before: float | None, now: float) -> None:
    """Refuses a recomputed update that differs by more than the last bits of sums."""
    if before is not None and abs(now - before) > FAR * before:
        raise InputError(
            f"update {number} moved some weights by {before:.3g} before the run was ended, and "
            f"moves them by {now:.3g} when it is made again; a run must go on with its own "
            "optimizer"
        )
