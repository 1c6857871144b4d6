"""Stepwise internalization: the chain's tokens are removed, from the first one on.

Source: arXiv 2405.14838.
"""

import dataclasses

from pangu_jax.reasoning.latent.curriculum import Phase, token_by_token
from pangu_jax.reasoning.latent.method import Method, answer, written
from pangu_jax.reasoning.latent.slots import Encoded, Markers, Slots


def slots(problem: Encoded, phase: Phase, markers: Markers, removed: int) -> Slots:
    """Question, rest of the chain, answer."""
    row = written(problem, phase, markers, removed)
    left = len(row.tail) - len(answer(problem, markers))
    if not phase.keep_distances or not left:
        return row
    chain = sum(map(len, problem.steps))
    prefix = chain + len(row.prefix)
    tail = (*range(chain - left, chain), *range(prefix, prefix + len(row.tail) - left))
    return dataclasses.replace(row, rotary=(*range(chain, prefix), *tail))


METHOD = Method(token_by_token, slots)
