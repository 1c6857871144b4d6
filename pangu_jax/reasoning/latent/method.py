"""A method of latent reasoning: when what is taken from a chain, and what stands in its place."""

import dataclasses
from collections.abc import Callable

from pangu_jax.reasoning.latent.curriculum import CurriculumConfig, Phase
from pangu_jax.reasoning.latent.slots import Encoded, Markers, Slots


@dataclasses.dataclass(frozen=True)
class Method:
    """A method, as data.

    Attributes:
      phases: the curriculum's phases, given also the tokens of the longest chain.
      slots: a problem as a row, in a phase, with so many tokens of the chain taken away.
      feedback: what makes thoughts (`feedback.FEEDBACK`); "" where slots are tokens or none.
    """

    phases: Callable[[CurriculumConfig, int], tuple[Phase, ...]]
    slots: Callable[[Encoded, Phase, Markers, int], Slots]
    feedback: str = ""

    def thoughts(self, phase: Phase) -> int:
        """How many thoughts are computed in a phase."""
        return phase.slots if self.feedback else 0


def rest_of_chain(problem: Encoded, phase: Phase, removed: int) -> tuple[int, ...]:
    """The chain's ids without the steps that are removed, and then without so many tokens."""
    steps = problem.steps[phase.removed_steps :]
    return tuple(token for step in steps for token in step)[removed:]


def answer(problem: Encoded, markers: Markers) -> tuple[int, ...]:
    """The final answer, marked and ended."""
    return (markers.answer, *problem.answer, markers.stop)


def question(problem: Encoded, markers: Markers) -> tuple[int, ...]:
    """The question, after the boundary of texts."""
    return (markers.boundary, *problem.question)


def written(problem: Encoded, phase: Phase, markers: Markers, removed: int) -> Slots:
    """Question, what is left of the chain, answer: tokens alone."""
    chain = rest_of_chain(problem, phase, removed)
    return Slots(question(problem, markers), (*chain, *answer(problem, markers)), 0)
