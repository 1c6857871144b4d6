"""Simulates what reinforcement learning gains by training on older answers.

Rollouts and the trainer are on devices of their own, or share one; the speed-up is over synchronous
training, which waits for the longest answer of a batch, updates, and begins the next one.
"""

from dataclasses import dataclass
from typing import Literal

from pangu_jax.reasoning.schedule_simulate import Costs
from pangu_jax.reasoning.schedule_state import ScheduleConfig


@dataclass(frozen=True)
class Options:
    """How long answers are, what computes them, and which bounds are compared."""

    lengths: str | None = None
    """Measured lengths: a .jsonl whose lines have "tokens", as `bench` and `generate --prompts`
    write, or a text with one prompt's numbers per line; None draws log-normal ones."""
    mean: float = 1000.0
    """Mean length of drawn answers, in tokens."""
    sigma: float = 1.0
    """Standard deviation of the logarithm of drawn lengths."""
    longest: int = 16384
    """Longest drawn answer, in tokens."""
    slots: int = ScheduleConfig.slots
    """Answers decoded at once."""
    seconds_per_token: float = Costs.token
    """Seconds that a slot takes for a token, while the other slots make one each."""
    seconds_per_update: float = Costs.update
    """Seconds that the trainer takes for a batch."""
    shared: bool = False
    """Let rollouts and the trainer share a device, so that slots wait during updates."""
    batch: int = ScheduleConfig.batch
    """Groups per update."""
    group: int = ScheduleConfig.group
    """Answers per group."""
    staleness: tuple[int, ...] = (0, 1, 2, 4, 8)
    """Bounds to compare, in updates."""
    policies: tuple[Literal["barrier", "admission", "discard"], ...] = ("barrier",)
    """How the bound is kept; admission does not keep it."""
    partial: bool = False
    """Let updates go ahead of answers that are too old and still running (barrier)."""
    updates: int = 100
    """Updates to simulate."""
    seed: int = 0
    """Seed of the lengths."""
    out: str | None = None
    """A folder for results.json, report.md and plots/staleness.png."""
    json: bool = False
    """Print the results as JSON instead of the table."""
