"""Coconut: thoughts are hidden states that are fed back, in place of a chain's first steps.

Source: arXiv 2412.06769, and its released code; without markers, arXiv 2505.12514's.
"""

from pangu_jax.reasoning.latent.curriculum import Phase, step_by_step
from pangu_jax.reasoning.latent.method import Method, answer, question, rest_of_chain
from pangu_jax.reasoning.latent.slots import Encoded, Markers, Slots


def slots(problem: Encoded, phase: Phase, markers: Markers, removed: int) -> Slots:
    """Question, begin | thoughts | end, rest of the chain, answer.

    Begin and end are left out if the phase is unmarked.
    """
    tail = (*rest_of_chain(problem, phase, removed), *answer(problem, markers))
    if phase.unmarked:
        return Slots(question(problem, markers), tail, 0)
    return Slots((*question(problem, markers), markers.begin), (markers.end, *tail), 1)


METHOD = Method(step_by_step, slots, feedback="hidden")
