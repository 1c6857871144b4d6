"""Pauses: slots that compute without an input state, in the places of Coconut's thoughts.

So it is Coconut's control: the same curriculum, slots and loss, without the feedback. With
`stage_steps` 0 the chain is never shown, as in the paper that proposed pause tokens.

Source: arXiv 2310.02226; with Coconut's curriculum, arXiv 2412.06769, section 4 ("pause as
thought").
"""

from pangu_jax.reasoning.latent.curriculum import Phase, step_by_step
from pangu_jax.reasoning.latent.method import Method, answer, question, rest_of_chain
from pangu_jax.reasoning.latent.slots import Encoded, Markers, Slots


def slots(problem: Encoded, phase: Phase, markers: Markers, removed: int) -> Slots:
    """Question, begin | pauses, end, rest of the chain, answer.

    Begin and end are left out if the phase is unmarked.
    """
    pauses = (markers.pause,) * phase.slots
    tail = (*rest_of_chain(problem, phase, removed), *answer(problem, markers))
    if phase.unmarked:
        return Slots(question(problem, markers), (*pauses, *tail), phase.slots)
    prefix = (*question(problem, markers), markers.begin)
    return Slots(prefix, (*pauses, markers.end, *tail), phase.slots + 1)


METHOD = Method(step_by_step, slots)
