"""Rewards of answers, from sources chosen by task type.

An answer that no source applies to has no reward, which is not the same as 0.

    graded = grade(samples, ROUTES, sources, health)   # of one group: the answers to one prompt
    health = health.after(graded)
    ... graded.reward[graded.usable] ...

A source returns a value from 0 to 1, or none if it does not apply, or it fails. Sources that do not
apply are left out and the other weights make up for it. Failures are counted, and the sample has no
reward at all: a mistake of ours must not teach the model that it was wrong. Sources are in
`reward_sources`.

Source: arXiv 2505.22375 for a reward that routes each task to sources of several kinds and adapts
  to them; how it does so is our reading.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from pangu_jax.core.errors import InputError
from pangu_jax.eval.answers import KINDS
from pangu_jax.reasoning.code_tasks import CodeTask


@dataclasses.dataclass(frozen=True)
class Sample:
    """An answer, with the data to judge it by.

    Attributes:
      question: the question.
      text: all that the model wrote, tags of thinking included.
      said: the part of it after thinking, which holds the answer.
      kind: of the task: one of `answers.KINDS`, or "general", for which there are only judges.
      gold: the right answer; empty if unknown.
      code: the task with its tests, for the kind "code".
      mode: the think mode that was asked for, if any.
      starts_in_thinking: whether the prompt opened the span of thinking.
      tokens: length of the answer.
      budget: most tokens that it may have.
    """

    question: str
    text: str
    said: str
    kind: str = "general"
    gold: str = ""
    code: CodeTask | None = None
    mode: str | None = None
    starts_in_thinking: bool = False
    tokens: int = 0
    budget: int | None = None


@dataclasses.dataclass(frozen=True)
class Score:
    """A source's score of a sample.

    Attributes:
      value: from 0 to 1; None if the source does not apply or failed.
      evidence: why, in words that may be shown to the model.
      failed: whether an error prevented a value; the evidence says which.
    """

    value: float | None
    evidence: str = ""
    failed: bool = False

    def __post_init__(self):
        if self.value is not None and (self.failed or not 0 <= self.value <= 1):
            raise InputError(f"a source's value must be from 0 to 1, got {self.value}")


Source = Callable[[Sequence[Sample]], Sequence[Score]]


@dataclasses.dataclass(frozen=True)
class Route:
    """The sources of rewards for one kind of task.

    Attributes:
      tiers: weights of sources; the first tier in which a source applies gives the grade, and later
        ones are asked only if none did.
      gates: sources that the grade is multiplied by.
      added: sources that are added to it, times these numbers, which may be negative.
    """

    tiers: tuple[Mapping[str, float], ...]
    gates: tuple[str, ...] = ()
    added: Mapping[str, float] = dataclasses.field(default_factory=dict)

    def __post_init__(self):
        if not self.tiers or not all(tier for tier in self.tiers):
            raise InputError("a route needs at least one tier, and each tier a source")
        for tier in self.tiers:
            for name, weight in tier.items():
                if not 0 < weight < math.inf:
                    raise InputError(f"the weight of {name} must be above 0, got {weight}")

    @property
    def names(self) -> tuple[str, ...]:
        """All sources of the route."""
        tiers = [name for tier in self.tiers for name in tier]
        return tuple(dict.fromkeys([*tiers, *self.gates, *self.added]))


_JUDGES = {"preference": 0.5, "evaluator": 0.5}
_ALWAYS: dict[str, Any] = {"gates": ("format",), "added": {"repetition": -0.5, "length": -0.5}}
ROUTES: dict[str, Route] = {
    **{kind: Route(({"answer": 1.0}, _JUDGES), **_ALWAYS) for kind in KINDS if kind != "code"},
    "code": Route(({"code": 1.0},), **_ALWAYS),
    "general": Route((_JUDGES,), **_ALWAYS),
}


@dataclasses.dataclass(frozen=True)
class Graded:
    """A group's rewards.

    Attributes:
      reward: float64 [samples]; NaN where the sample is not usable.
      usable: bool [samples], whether there is a reward: no source failed, and one applied.
      scores: each source's score of each sample; None where it was not asked.
    """

    reward: np.ndarray
    usable: np.ndarray
    scores: Mapping[str, Sequence[Score | None]]

    @property
    def failed(self) -> int:
        """Number of samples masked because a source failed."""
        rows = zip(*self.scores.values(), strict=True)
        return sum(any(score is not None and score.failed for score in row) for row in rows)

    @property
    def seen(self) -> dict[str, "Seen"]:
        """Statistics of the sources that were asked."""
        found = {}
        for name, scores in self.scores.items():
            there = [score for score in scores if score is not None]
            values = {score.value for score in there if score.value is not None}
            if there:
                found[name] = Seen(len(values) > 1, len(there), sum(x.failed for x in there))
        return found


@dataclasses.dataclass(frozen=True)
class Seen:
    """One source's statistics over a group.

    Attributes:
      varied: whether its values differed: only then do they move the policy.
      asked: number of samples for which it was asked.
      failed: number of those for which it failed.
    """

    varied: bool
    asked: int
    failed: int

    def __post_init__(self):
        if not 0 <= self.failed <= self.asked:
            raise InputError(f"a source cannot fail for {self.failed} of {self.asked} answers")


@dataclasses.dataclass(frozen=True)
class SourceHealth:
    """Recent behavior of sources, and the weights that follow from it.

    Attributes:
      window: number of recent groups considered.
      floor: factor of a weight while its source's values never differ within a group.
      most_failed: a larger share of failures ends the run.
      least: answers of a source before that share is checked.
      seen: the last groups of each source, the newest last.
    """

    window: int = 50
    floor: float = 0.1
    most_failed: float = 0.05
    least: int = 40
    seen: Mapping[str, tuple[Seen, ...]] = dataclasses.field(default_factory=dict)

    def __post_init__(self):
        if self.window < 1 or self.least < 1:
            raise InputError(f"window and least must be at least 1: {self.window}, {self.least}")
        if not 0 < self.floor <= 1 or not 0 <= self.most_failed <= 1:
            raise InputError("floor must be above 0 and most_failed at least 0, both up to 1")

    def weight(self, name: str, base: float) -> float:
        """A source's weight, lowered after a whole window of groups in which it never varied."""
        groups = self.seen.get(name, ())
        quiet = len(groups) == self.window and not any(group.varied for group in groups)
        return base * self.floor if quiet else base

    def after(self, graded: Graded) -> "SourceHealth":
        """The health after one more group.

        Raises:
          InputError: a source fails too often; says how it failed last.
        """
        found = self.having_seen(graded.seen)
        for name, groups in found.seen.items():
            there = graded.scores.get(name, ())
            self._check(name, groups, [x for x in there if x is not None and x.failed])
        return found

    def having_seen(self, group: Mapping[str, Seen]) -> "SourceHealth":
        """The health after one more group, by its statistics alone (`Graded.seen`)."""
        seen = dict(self.seen)
        for name, one in group.items():
            seen[name] = (*seen.get(name, ()), one)[-self.window :]
        return dataclasses.replace(self, seen=seen)

    def _check(self, name: str, groups: Sequence[Seen], failures: Sequence[Score]) -> None:
        asked, failed = (sum(getattr(g, key) for g in groups) for key in ("asked", "failed"))
        if failures and asked >= self.least and failed > self.most_failed * asked:
            raise InputError(
                f"the source {name} failed for {failed} of the last {asked} answers, which is more "
                f"than {self.most_failed:.0%}; the last time: {failures[-1].evidence}"
            )


def grade(
    samples: Sequence[Sample],
    routes: Mapping[str, Route],
    sources: Mapping[str, Source],
    health: SourceHealth = SourceHealth(),
) -> Graded:
    """The rewards of a group.

    Args:
      samples: answers to one prompt.
      routes: a route for each kind of task among them.
      sources: by name; a source that a route names and that is missing does not apply, but each
        route needs one of its tiers.
      health: recent behavior of the sources, to which their weights adapt.

    Raises:
      InputError: a kind without a route, or a route without a source.
    """
    _check(samples, routes, sources)
    scores: dict[str, list[Score | None]] = {name: [None] * len(samples) for name in sources}
    fixed = {name for route in routes.values() for name in (*route.gates, *route.added)}
    for name in fixed & sources.keys():
        of = [i for i, sample in enumerate(samples) if name in _fixed(routes[sample.kind])]
        _ask(name, sources[name], samples, of, scores[name])
    depth = max((len(routes[sample.kind].tiers) for sample in samples), default=0)
    for level in range(depth):
        for name, source in sources.items():
            of = [
                i for i, sample in enumerate(samples)
                if name in _open_tier(routes[sample.kind], level, scores, i)
                and scores[name][i] is None
            ]  # fmt: skip
            _ask(name, source, samples, of, scores[name])
    reward = np.array(
        [_reward(routes[sample.kind], scores, i, health) for i, sample in enumerate(samples)],
        np.float64,
    )
    return Graded(reward, ~np.isnan(reward), scores)


def duplicates(units: Sequence[Any], n: int) -> float:
    """The share of n-grams that occurred before; 0 if there are fewer than two."""
    grams = [tuple(units[i : i + n]) for i in range(len(units) - n + 1)]
    return 1 - len(set(grams)) / len(grams) if len(grams) > 1 else 0.0


def repetition(text: str, n: int = 4, free: float = 0.2) -> float:
    """Repetitiveness of a text, 0 to 1: the share of repeated n-grams of words above `free`.

    A text with hardly a space, such as Chinese, is taken by character, in n-grams five times as
    long.
    """
    words = text.split()
    if len(text) > 20 * max(len(words), 1):
        return max(0.0, duplicates(text, 5 * n) - free) / (1 - free)
    return max(0.0, duplicates(words, n) - free) / (1 - free)


def overlong(tokens: int, budget: int, last: float = 0.2) -> float:
    """0 up to the last part of a budget, then rising linearly to 1 at its end."""
    start = budget * (1 - last)
    return float(np.clip((tokens - start) / (budget - start), 0, 1))


def well_formed(
    text: str,
    thinking: tuple[str, str] | None,
    *,
    mode: str | None = None,
    starts_in_thinking: bool = False,
) -> str | None:
    """Describes what is wrong with the form of an answer; None if nothing is.

    Args:
      text: all that the model wrote, with its tags.
      thinking: tags that open and close a span of thinking; None if the model has none.
      mode: "fast" asks for an empty span, "slow" for one that is not.
      starts_in_thinking: whether the prompt opened the span.
    """
    if thinking is None:
        return None if text.strip() else "there is no answer"
    start, end = thinking
    text = start + text if starts_in_thinking else text
    if text.count(start) != 1 or text.count(end) != 1 or text.index(end) < text.index(start):
        return "there must be one span of thinking, opened and then closed"
    before, _, rest = text.partition(start)
    thought, _, said = rest.partition(end)
    if before.strip():
        return "there is text before the thinking"
    if mode == "fast" and thought.strip():
        return "there is thinking where none was asked for"
    if mode == "slow" and not thought.strip():
        return "there is no thinking where some was asked for"
    return None if said.strip() else "there is no answer"


@dataclasses.dataclass(frozen=True)
class Scale:
    """Ranks scores of no fixed scale among recent ones, so that drift does not matter.

    Attributes:
      last: recent scores.
      size: most scores kept.
    """

    last: tuple[float, ...] = ()
    size: int = 1000

    def place(self, score: float) -> float:
        """The share of recent scores that are lower, ties counted half; 0.5 without any."""
        if not self.last:
            return 0.5
        found = np.array(self.last)
        return float(((found < score).sum() + 0.5 * (found == score).sum()) / len(found))

    def after(self, scores: Sequence[float]) -> "Scale":
        """The scale after further scores."""
        return dataclasses.replace(self, last=(*self.last, *scores)[-self.size :])


def _check(
    samples: Sequence[Sample], routes: Mapping[str, Route], sources: Mapping[str, Source]
) -> None:
    for kind in dict.fromkeys(sample.kind for sample in samples):
        if kind not in routes:
            raise InputError(f"there is no route for {kind!r}; known: {', '.join(routes)}")
        if not any(name in sources for tier in routes[kind].tiers for name in tier):
            wanted = ", ".join(name for tier in routes[kind].tiers for name in tier)
            raise InputError(f"the route of {kind!r} needs one of the sources {wanted}")


def _fixed(route: Route) -> tuple[str, ...]:
    return (*route.gates, *route.added)


def _open_tier(
    route: Route, level: int, scores: Mapping[str, Sequence[Score | None]], i: int
) -> Mapping[str, float]:
    """The tier of that level, if no earlier one gave a grade."""
    if level >= len(route.tiers):
        return {}
    earlier = [scores[name][i] for tier in route.tiers[:level] for name in tier if name in scores]
    told = any(score is not None and (score.failed or score.value is not None) for score in earlier)
    return {} if told else route.tiers[level]


def _ask(
    name: str, source: Source, samples: Sequence[Sample], of: list[int], scores: list[Score | None]
) -> None:
    """Asks a source for some samples; an exception is a failure for them all."""
    if not of:
        return
    try:
        found = list(source([samples[i] for i in of]))
        if len(found) != len(of):
            raise ValueError(f"{len(found)} scores for {len(of)} samples")
    except Exception as error:  # a source is a library, a model or a network
        found = [Score(None, f"{type(error).__name__}: {error}", failed=True)] * len(of)
    for i, score in zip(of, found, strict=True):
        scores[i] = score


def _reward(
    route: Route, scores: Mapping[str, Sequence[Score | None]], i: int, health: SourceHealth
) -> float:
    """A sample's reward; NaN if a source failed or none applied."""
    said = {name: scores[name][i] for name in route.names if name in scores}
    there = {name: score for name, score in said.items() if score is not None}
    if any(score.failed for score in there.values()):
        return math.nan
    values = {name: score.value for name, score in there.items() if score.value is not None}
    for tier in route.tiers:
        weights = {n: health.weight(n, w) for n, w in tier.items() if n in values}
        if weights:
            break
    else:
        return math.nan
    found = sum(w * values[n] for n, w in weights.items()) / sum(weights.values())
    found *= math.prod(values[name] for name in route.gates if name in values)
    return found + sum(w * values[name] for name, w in route.added.items() if name in values)
