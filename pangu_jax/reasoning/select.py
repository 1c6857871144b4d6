"""Selects the next iteration's training questions by difficulty for the student."""

import dataclasses

import numpy as np

from pangu_jax.core.errors import InputError


@dataclasses.dataclass(frozen=True)
class AttemptCounts:
    """A student's right and judged answers to each question.

    Both counts are kept, as the same ratio is less certain of 8 answers than of 800.

    Attributes:
      right: int [questions], answers that were right.
      tried: int [questions], answers that could be judged, at least one.
    """

    right: np.ndarray
    tried: np.ndarray

    def __post_init__(self):
        """Raises InputError for invalid counts."""
        right, tried = self.right, self.tried
        if right.shape != tried.shape or right.ndim != 1:
            shapes = f"{right.shape} and {tried.shape}"
            raise InputError(f"right and tried must be of one length, got {shapes}")
        wrong = np.flatnonzero((tried < 1) | (right < 0) | (right > tried))
        if len(wrong):
            i = wrong[0]
            raise InputError(f"question {i} has {right[i]} right answers of {tried[i]}")

    @property
    def complexity(self) -> np.ndarray:
        """1 - the share of right answers, float64 [questions]: 0 is mastered, 1 out of reach."""
        return 1 - self.right / self.tried

    @property
    def error(self) -> np.ndarray:
        """Standard error of `complexity`, estimated at its value: float64 [questions]."""
        return np.sqrt(self.complexity * (1 - self.complexity) / self.tried)


@dataclasses.dataclass(frozen=True)
class Selection:
    """Probability of keeping a question: exp(-(complexity - mu)^2 / (2 sigma^2)).

    Attributes:
      mu: complexity at which all questions are kept.
      sigma: width of the falloff around it.
      hard: largest probability for questions that no answer solved.
    """

    mu: float = 0.5
    sigma: float = 0.2
    hard: float = 0.1

    def __post_init__(self):
        """Raises InputError for values out of range."""
        if not 0 <= self.mu <= 1 or not 0 <= self.hard <= 1:
            raise InputError(f"mu and hard must be from 0 to 1, got {self.mu} and {self.hard}")
        if not self.sigma > 0:
            raise InputError(f"sigma must be above 0, got {self.sigma}")

    def chance(self, complexity: np.ndarray) -> np.ndarray:
        """Probability of keeping each question, float64 [questions]; 0 for mastered ones."""
        kept = np.exp(-((complexity - self.mu) ** 2) / (2 * self.sigma**2))
        kept = np.where(complexity == 1, np.minimum(kept, self.hard), kept)
        return np.where(complexity == 0, 0.0, kept)


def select(attempts: AttemptCounts, selection: Selection = Selection(), *, seed: int) -> np.ndarray:
    """Draws the questions to train on.

    Complexity must be measured anew in each iteration, with the student that it begins with.

    Args:
      attempts: that student's.
      selection: settings of the selection.
      seed: of the draw; a question's random number depends on its index only.

    Returns:
      bool [questions].

    Source: arXiv 2505.22375 for selection by the complexity that a question has for the model at
    hand; the curve and its values are our reading of it.
    """
    chance = selection.chance(attempts.complexity)
    return np.random.default_rng(seed).random(len(chance)) < chance
