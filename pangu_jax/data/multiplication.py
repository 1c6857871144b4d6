"""Long multiplication, digit by digit, in the format used to train stepwise internalization.

Digits are separated by spaces, the least significant first. The chain of thought adds the products
of the first factor with each digit of the second; each but the first and the last is followed by
the sum so far:

    7 6 9 2 * 1 6 3 6
    7 6 9 2 0 + 0 2 0 8 7 1 ( 7 8 9 0 8 1 ) + 0 0 1 0 9 8 0 ( 7 8 0 1 7 0 1 ) + 0 0 0 2 0 8 7 1
    7 8 0 3 7 8 8 1

Source: arXiv 2405.14838, and the files of its released code, whose lines these are.
"""

import numpy as np

from pangu_jax.core.config import check_size
from pangu_jax.core.errors import InputError
from pangu_jax.data.chain_of_thought import Problem


def multiplication(first: int, second: int, digits: int) -> Problem:
    """The problem of two factors of `digits` digits each.

    Raises:
      InputError: a factor that has more digits, or is negative.
    """
    for factor in (first, second):
        if not 0 <= factor < 10**digits:
            raise InputError(f"a factor of {digits} digits is needed, got {factor}")
    steps, total = [], 0
    for place in range(digits):
        term = first * (second // 10**place % 10) * 10**place
        total += term
        step = ("+ " if place else "") + _written(term, digits + 1 + place)
        if 0 < place < digits - 1:
            step += f" ( {_written(total, digits + 1 + place)} )"
        steps.append(step)
    question = f"{_written(first, digits)} * {_written(second, digits)}"
    return Problem(question, tuple(steps), _written(first * second, 2 * digits))


def draw_multiplications(count: int, digits: int, *, seed: int = 0) -> list[Problem]:
    """Problems of factors drawn evenly from those whose first digit is not 0.

    Args:
      count: number of problems; some may be equal.
      digits: of each factor, at most 18.
      seed: of the draws.

    Raises:
      InputError: a number out of range.
    """
    check_size("count", count)
    check_size("digits", digits, most=18)  # of which int64 has room for
    rng = np.random.default_rng((seed, digits))
    factors = rng.integers(10 ** (digits - 1), 10**digits, (count, 2))
    return [multiplication(int(a), int(b), digits) for a, b in factors]


def _written(number: int, digits: int) -> str:
    """The digits, the least significant first."""
    return " ".join(reversed(f"{number:0{digits}d}"))
