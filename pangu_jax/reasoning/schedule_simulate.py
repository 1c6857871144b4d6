"""Simulates what a bound on staleness gains: the scheduler, driven by a simulated clock.

Rollouts and the trainer have devices of their own, or share one (`Costs.shared`). A slot makes a
token in the same time however many others are taken, as decoding reads all weights anyway; an
update takes the same time whatever its lengths are; new weights arrive at once. So it shows how
much of the waiting goes away, not how fast a machine is.
"""

import dataclasses
import heapq
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pangu_jax.core.config import check_size, parse_json
from pangu_jax.core.errors import InputError
from pangu_jax.reasoning import schedule
from pangu_jax.reasoning.schedule_state import (
    Ended,
    Event,
    Forget,
    Grade,
    Graded,
    ScheduleConfig,
    ScheduleState,
    Start,
    Train,
    Updated,
)

# lengths(prompt, samples, n): of a group's n samples; what the prompt decides comes of the first
# generator, which is the same however often the group is begun.
Lengths = Callable[[np.random.Generator, np.random.Generator, int], np.ndarray]


@dataclasses.dataclass(frozen=True)
class Costs:
    """Durations, in seconds.

    Attributes:
      token: per token in one slot.
      update: of the trainer, from a batch to new weights.
      shared: whether slots wait during an update, as in one process.
    """

    token: float = 0.02
    update: float = 30.0
    shared: bool = False

    def __post_init__(self):
        for name in ("token", "update"):
            if not getattr(self, name) > 0:
                raise InputError(f"seconds per {name} must be above 0, got {getattr(self, name)}")


@dataclasses.dataclass(frozen=True)
class Simulated:
    """Results of a simulated schedule.

    Attributes:
      cfg: its settings.
      seconds: until the last update was applied.
      updates: number of updates.
      generator_idle: share of the slots' time in which they were idle.
      trainer_idle: share of the time without an update under way.
      ages: histogram of the groups trained on, from age 0.
      discarded: share of the groups that ended and were thrown away.
      tokens_used: int64, tokens of each sample trained on; with `partial` those not masked.
      tokens_made: int64, tokens of each sample begun, whether it was used or not.
    """

    cfg: ScheduleConfig
    seconds: float
    updates: int
    generator_idle: float
    trainer_idle: float
    ages: tuple[int, ...]
    discarded: float
    tokens_used: np.ndarray
    tokens_made: np.ndarray

    @property
    def mean_age(self) -> float:
        """Updates between a group's first token and its use."""
        return float(np.average(np.arange(len(self.ages)), weights=self.ages))


def lognormal(mean: float, sigma: float, longest: int) -> Lengths:
    """Log-normal lengths, rounded, truncated at the longest.

    Args:
      mean: before truncation, in tokens.
      sigma: standard deviation of the logarithm; 0 is one length for all.
      longest: tokens that no answer exceeds.

    Raises:
      InputError: a number is out of range.
    """
    if not mean > 0 or not sigma >= 0 or not np.isfinite([mean, sigma]).all():
        raise InputError(f"mean must be above 0 and sigma at least 0, got {mean} and {sigma}")
    check_size("longest", longest)

    def draw(prompt: np.random.Generator, samples: np.random.Generator, count: int) -> np.ndarray:
        del prompt
        found = np.exp(samples.normal(np.log(mean) - sigma**2 / 2, sigma, count))
        return np.rint(np.clip(found, 1, longest)).astype(np.int64)

    return draw


def measured(prompts: Sequence[Sequence[int]]) -> Lengths:
    """Measured lengths: a group draws a prompt, and its samples' lengths from that prompt's.

    Args:
      prompts: tokens of the answers to each prompt.
    """
    rows = [np.asarray(row, np.int64) for row in prompts]

    def draw(prompt: np.random.Generator, samples: np.random.Generator, count: int) -> np.ndarray:
        return samples.choice(rows[prompt.integers(len(rows))], count)

    return draw


def read_lengths(path: str | Path) -> list[list[int]]:
    """Tokens of the answers to each prompt, from a file.

    Args:
      path: .jsonl with "tokens" in every line, as `pangu-jax bench` and `generate --prompts` write
        it, where lines of equal "question", or else equal "line", are of one prompt; or a text with
        the numbers of one prompt per line.

    Raises:
      InputError: the file cannot be read, is empty, or holds something else; names the line.
    """
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot read {path}: {error}") from error
    found: dict[Any, list[int]] = {}
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        if str(path).endswith(".jsonl"):
            row = parse_json(line, f"{path}, line {number}")
            row = row if isinstance(row, dict) else {}
            if "tokens" not in row and number == 1:
                continue  # a head
            key, values = row.get("question", row.get("line", number)), [row.get("tokens")]
            key = key if isinstance(key, int | str) else number
        else:
            key, values = number, [int(w) if w.isdecimal() else None for w in line.split()]
        wrong = [v for v in values if not isinstance(v, int) or isinstance(v, bool) or v < 0]
        if wrong:
            raise InputError(f"{path}, line {number}: a number of tokens is expected")
        found.setdefault(key, []).extend(max(value, 1) for value in values if value is not None)
    if not found:
        raise InputError(f"{path} holds no lengths")
    return list(found.values())


def simulate(
    cfg: ScheduleConfig, lengths: Lengths, costs: Costs, *, updates: int = 100, seed: int = 0
) -> Simulated:
    """Runs a schedule until `updates` updates have been applied.

    Args:
      cfg: the settings; groups have no rewards, so `replace_equal_groups` must be False.
      lengths: `lengths(prompt, samples, n)` returns the tokens of a group's n samples, see
        `measured`.
      costs: durations of a token and of an update.
      updates: number of updates.
      seed: a group's prompt depends on it and the group's number, its lengths also on how often it
        was restarted: so they are the same under any settings.

    Raises:
      InputError: a number is out of range.
    """
    check_size("updates", updates)
    check_size("seed", seed, least=0)
    if cfg.replace_equal_groups:
        raise InputError("simulated groups have no rewards, so none is replaced for them")
    if cfg.partial and costs.shared:
        raise InputError("partial rollouts are simulated with devices of their own alone")
    world = _World(cfg, lengths, costs, seed)
    state, actions = schedule.begin(cfg)
    world.do(actions)
    while state.version < updates:
        state, actions = schedule.step(state, world.next_event())
        world.do(actions)
    return world.result(state)


class _World:
    """The clock, pending events, and the lengths."""

    def __init__(self, cfg: ScheduleConfig, lengths: Lengths, costs: Costs, seed: int):
        self._cfg, self._lengths, self._costs, self._seed = cfg, lengths, costs, seed
        self._now, self._order, self._busy, self._ended = 0.0, 0, 0.0, 0
        self._coming: list[tuple[float, int, float, Event]] = []
        self._tokens: dict[int, np.ndarray] = {}
        self._attempts: dict[int, int] = {}
        self._made: list[np.ndarray] = []
        self._used: list[np.ndarray] = []
        self._training: tuple[int, ...] = ()
        self._began: dict[tuple[int, int], float] = {}
        self._versions = [0.0]  # when each was there
        self._free = 0.0  # when slots may go on

    def do(self, actions: Sequence[schedule.Action]) -> None:
        """Performs the actions, at once or after their simulated time."""
        for action in actions:
            if isinstance(action, Start):
                tokens = int(self._of(action.group)[action.sample])
                place = (action.group, action.sample)
                self._began[place] = self._now
                wait = max(0.0, self._free - self._now)
                self._after(tokens * self._costs.token, Ended(*place), wait=wait)
            elif isinstance(action, Grade):
                self._ended += 1
                self._after(0.0, Graded(action.group))
            elif isinstance(action, Train):
                self._training = action.groups
                if self._costs.shared:
                    self._wait(self._costs.update)
                self._after(self._costs.update, Updated())
            elif isinstance(action, Forget):
                for group in action.groups:
                    del self._tokens[group]
                    self._attempts[group] = self._attempts.get(group, 0) + 1

    def next_event(self) -> Event:
        """Returns the next event and moves the clock to it."""
        self._now, _, seconds, event = heapq.heappop(self._coming)
        if isinstance(event, Ended):
            self._busy += seconds
        if isinstance(event, Updated):
            self._used += [self._unmasked(group) for group in self._training]
            self._versions.append(self._now)
        return event

    def _unmasked(self, group: int) -> np.ndarray:
        """The tokens of a group that are young enough to be trained on."""
        found = self._tokens.pop(group)
        began = np.array([self._began.pop((group, sample)) for sample in range(len(found))])
        if not self._cfg.partial:
            return found
        # The batch was taken at the version of before this update.
        oldest = max(0, len(self._versions) - 1 - self._cfg.staleness)
        late = (self._versions[oldest] - began) / self._costs.token
        return found - np.clip(np.ceil(late - 1e-6), 0, found).astype(np.int64)

    def result(self, state: ScheduleState) -> Simulated:
        """The results so far."""
        running = [(at, seconds) for at, _, seconds, event in self._coming if _runs(event)]
        begun = [max(0.0, self._now - (at - seconds)) for at, seconds in running]
        slots = self._now * self._cfg.slots
        return Simulated(
            cfg=self._cfg,
            seconds=self._now,
            updates=state.version,
            generator_idle=max(0.0, 1 - (self._busy + sum(begun)) / slots),
            trainer_idle=max(0.0, 1 - state.version * self._costs.update / self._now),
            ages=state.ages,
            discarded=state.discarded / self._ended,
            tokens_used=np.concatenate(self._used),
            tokens_made=np.concatenate(self._made),
        )

    def _after(self, seconds: float, event: Event, wait: float = 0.0) -> None:
        self._order += 1  # what happens at once happens in the order in which it was asked for
        heapq.heappush(self._coming, (self._now + wait + seconds, self._order, seconds, event))

    def _wait(self, seconds: float) -> None:
        """Delays running samples; those that end now have ended."""
        self._free = self._now + seconds
        self._coming = [
            (at + seconds * (_runs(event) and at > self._now), order, cost, event)
            for at, order, cost, event in self._coming
        ]
        heapq.heapify(self._coming)

    def _of(self, group: int) -> np.ndarray:
        """The lengths of a group's samples."""
        if group not in self._tokens:
            prompt = np.random.default_rng([self._seed, group])
            samples = np.random.default_rng([self._seed, group, self._attempts.get(group, 0)])
            self._tokens[group] = self._lengths(prompt, samples, self._cfg.group)
            self._made.append(self._tokens[group])
        return self._tokens[group]


def _runs(event: Event) -> bool:
    return isinstance(event, Ended)
