"""Random small programs: each step as a jax function, and its result by numpy in float64.

A step never compares or rounds floats that are near a border, so that the last bits of a result
cannot decide what comes next.
"""

from .elementwise import (
    binary,
    choose_case,
    compare,
    convert,
    integer,
    integer_unary,
    logic,
    rounding,
    select,
    unary,
)
from .lookup import along, branched, counting, lookup, looped
from .product import convolution, product
from .program import Program
from .reduction import normalized, ordering, reduction, running
from .shape import (
    broadcast,
    dynamic,
    joined,
    padded,
    reshaped,
    sliced,
    split_and_stack,
    squeeze_or_expand,
    static_update,
    transposed,
)

# As often as a step is here, as often it is drawn.
OPS = [
    unary, unary, unary, binary, binary, integer, integer_unary, compare, logic, select,
    choose_case, convert, rounding, transposed, transposed, reshaped, reshaped, broadcast,
    squeeze_or_expand, sliced, padded, joined, split_and_stack, dynamic, static_update, reduction,
    reduction, normalized, running, ordering, product, product, product, convolution, convolution,
    lookup, along, counting, looped, branched,
]  # fmt: skip


def random_program(seed):
    """The program of a seed."""
    return Program(seed, OPS)
