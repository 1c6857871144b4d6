"""Inputs of thought slots: functions of the state of the slot before.

| feedback | the next input |
|---|---|
| hidden | the state itself, after the final norm (Coconut) |
| projected | the state through a small network with a norm (CODI) |
"""

from collections.abc import Callable
from typing import Any

import jax

from pangu_jax.core.config import check_choice
from pangu_jax.models import thinker

Feedback = Callable[[dict[str, Any], jax.Array], jax.Array]


def hidden(params: dict[str, Any], state: jax.Array) -> jax.Array:
    """The state itself, unchanged: [B, D] to [B, D].

    Source: arXiv 2412.06769, section 3.
    """
    del params
    return state


FEEDBACK: dict[str, Feedback] = {"hidden": hidden, "projected": thinker.project}


def feedback(name: str) -> Feedback:
    """The feedback of that name.

    Raises:
      InputError: an unknown name.
    """
    check_choice("feedback", name, FEEDBACK)
    return FEEDBACK[name]
