"""A method of latent reasoning: the schedule of a chain's removal, and its replacement."""

import dataclasses
import itertools
from collections.abc import Callable

from pangu_jax.models.decoder import DecoderConfig
from pangu_jax.models.thinker import ThinkerConfig
from pangu_jax.reasoning.latent.config import MethodConfig
from pangu_jax.reasoning.latent.curriculum import CurriculumConfig, Phase
from pangu_jax.reasoning.latent.loss import thought_loss
from pangu_jax.reasoning.latent.slots import Encoded, Markers, Slots
from pangu_jax.train.step import Loss


def plain_model(cfg: DecoderConfig, own: MethodConfig) -> DecoderConfig | ThinkerConfig:
    """The decoder unchanged."""
    del own
    return cfg


@dataclasses.dataclass(frozen=True)
class Method:
    """A method, as data.

    Attributes:
      phases: the curriculum's phases, given also the tokens of the longest chain.
      slots: a problem as a row, in a phase, with a number of the chain's tokens removed.
      feedback: name in `feedback.FEEDBACK` of what makes thoughts; "" if slots are tokens or none.
      plans: whether the steps to train on begin with planning tokens.
      model: maps a decoder to the model that is trained.
      teacher: a problem as the row that a teacher reads; None without a teacher.
      loss: makes the loss, as `loss.thought_loss` does.
    """

    phases: Callable[[CurriculumConfig, int], tuple[Phase, ...]]
    slots: Callable[[Encoded, Phase, Markers, int], Slots]
    feedback: str = ""
    plans: bool = False
    model: Callable[[DecoderConfig, MethodConfig], DecoderConfig | ThinkerConfig] = plain_model
    teacher: Callable[[Encoded, Markers], Slots] | None = None
    loss: Callable[..., Loss] = thought_loss

    def thoughts(self, phase: Phase) -> int:
        """Number of thoughts computed in a phase."""
        return phase.slots if self.feedback else 0


def rest_of_chain(problem: Encoded, phase: Phase, removed: int) -> tuple[int, ...]:
    """The chain's ids without the phase's removed steps, then without the first `removed`."""
    steps = problem.steps[phase.removed_steps :]
    return tuple(itertools.chain.from_iterable(steps))[removed:]


def answer(problem: Encoded, markers: Markers) -> tuple[int, ...]:
    """The final answer, marked and ended."""
    return (markers.answer, *problem.answer, markers.stop)


def question(problem: Encoded, markers: Markers) -> tuple[int, ...]:
    """The question, after the boundary of texts."""
    return (markers.boundary, *problem.question)


def written(problem: Encoded, phase: Phase, markers: Markers, removed: int) -> Slots:
    """Question, rest of the chain, answer: tokens alone."""
    chain = rest_of_chain(problem, phase, removed)
    return Slots(question(problem, markers), (*chain, *answer(problem, markers)), 0)
