"""Stepwise internalization: the chain's tokens are removed, from the first one on.

Source: arXiv 2405.14838.
"""

from pangu_jax.reasoning.latent.curriculum import Phase, token_by_token
from pangu_jax.reasoning.latent.method import Method, answer, written
from pangu_jax.reasoning.latent.slots import Encoded, Markers, Slots


def slots(problem: Encoded, phase: Phase, markers: Markers, removed: int) -> Slots:
    """Question, rest of the chain, answer; between the first two the phase's gap."""
    row = written(problem, phase, markers, removed)
    left = len(row.tail) - len(answer(problem, markers))
    gone = sum(map(len, problem.steps)) - left
    return Slots(row.prefix, row.tail, row.given, gap=round(phase.gap * gone))


METHOD = Method(token_by_token, slots)
