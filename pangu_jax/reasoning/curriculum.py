"""A curriculum of questions: easy ones first, harder ones later, by how often each is solved.

Source: the curriculum of arXiv 2505.22375, of which only the idea could be read; bands, shares and
weights are our reading.
"""

import dataclasses
from collections.abc import Collection, Sequence

import numpy as np

from pangu_jax.core.config import check_size
from pangu_jax.core.errors import InputError

Rates = Sequence[float | None]
BANDS = ("easy", "middle", "hard")


@dataclasses.dataclass(frozen=True)
class CurriculumConfig:
    """Settings of the mix of questions.

    A question is easy if its mean reward is above `easy`, hard if it is below `hard`, else in the
    middle, as are those not asked yet. A band is drawn by its share, and in it a question with the
    weight 4 p (1 - p) of its mean reward p, at least `floor`, so that none is forgotten. Questions
    under way are left out while there are others.

    Attributes:
      questions: number of questions.
      updates: over which the shares move from `first` to `last`, evenly.
      first: shares of easy, middle and hard at the first update.
      last: at the last one, and after it.
      easy: mean reward above which a question is easy.
      hard: mean reward below which it is hard.
      memory: weight of the mean reward so far, against that of a new group.
      floor: least weight of a question.
    """

    questions: int
    updates: int = 100
    first: tuple[float, float, float] = (0.5, 0.4, 0.1)
    last: tuple[float, float, float] = (0.1, 0.5, 0.4)
    easy: float = 0.8
    hard: float = 0.2
    memory: float = 0.7
    floor: float = 0.05

    def __post_init__(self):
        check_size("questions", self.questions)
        check_size("updates", self.updates)
        for name in ("first", "last"):
            shares = getattr(self, name)
            if not all(share >= 0 for share in shares) or not abs(sum(shares) - 1) < 1e-6:
                raise InputError(f"the shares of {name} must be at least 0 and add up to 1")
        if not 0 <= self.hard <= self.easy <= 1:
            raise InputError(f"0 <= hard <= easy <= 1 is needed, got {self.hard} and {self.easy}")
        if not 0 <= self.memory < 1 or not 0 < self.floor <= 1:
            raise InputError("memory must be in [0, 1) and floor in (0, 1]")


def shares(cfg: CurriculumConfig, version: int) -> np.ndarray:
    """Shares of easy, middle and hard questions after `version` updates, float64 [3]."""
    along = min(version / cfg.updates, 1.0)
    return (1 - along) * np.array(cfg.first) + along * np.array(cfg.last)


def band(cfg: CurriculumConfig, rate: float | None) -> int:
    """The place in `BANDS` of a question with this mean reward; None is not asked yet."""
    if rate is None:
        return 1
    return 0 if rate > cfg.easy else 2 if rate < cfg.hard else 1


def pick(
    cfg: CurriculumConfig,
    rates: Rates,
    *,
    version: int,
    busy: Collection[int],
    rng: np.random.Generator,
) -> int:
    """The number of the next question.

    Args:
      cfg: the settings.
      rates: mean reward of each question, in [0, 1]; None if it was not asked.
      version: updates so far.
      busy: questions under way.
      rng: draws a band, then a question.
    """
    busy = set(busy)
    free = [q for q in range(len(rates)) if q not in busy] or list(range(len(rates)))
    bands = np.array([band(cfg, rates[q]) for q in free])
    there = shares(cfg, version) * [np.any(bands == place) for place in range(3)]
    if there.sum() > 0:  # bands without a question leave their share to the others
        chosen = rng.choice(3, p=there / there.sum())
        free = [q for q, place in zip(free, bands, strict=True) if place == chosen]
    mean = np.array([0.5 if rates[q] is None else rates[q] for q in free])
    weights = np.maximum(4 * mean * (1 - mean), cfg.floor)
    return int(rng.choice(free, p=weights / weights.sum()))


def learned(cfg: CurriculumConfig, rate: float | None, rewards: Sequence[float]) -> float | None:
    """Updates a question's mean reward by a group's rewards; unusable ones are left out."""
    if not len(rewards):
        return rate
    new = float(np.clip(np.mean(rewards), 0.0, 1.0))
    return new if rate is None else cfg.memory * rate + (1 - cfg.memory) * new


def mixture(cfg: CurriculumConfig, rates: Rates) -> dict[str, float]:
    """Share of the questions in each band, and of those that were not asked yet."""
    bands = [band(cfg, rate) for rate in rates if rate is not None]
    found = {f"{name}_questions": bands.count(i) / len(rates) for i, name in enumerate(BANDS)}
    return found | {"new_questions": 1 - len(bands) / len(rates)}
