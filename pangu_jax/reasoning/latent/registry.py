"""The methods by name. CONTRIBUTING.md says what else one that is added must be named in."""

from pangu_jax.core.config import check_choice
from pangu_jax.reasoning.latent import (
    adaptive,
    coconut,
    codi,
    cot,
    icot,
    looped,
    pause,
    planning,
)
from pangu_jax.reasoning.latent.method import Method

METHODS: dict[str, Method] = {
    "cot": cot.COT,
    "no-cot": cot.NO_COT,
    "pause": pause.METHOD,
    "icot": icot.METHOD,
    "coconut": coconut.METHOD,
    "codi": codi.METHOD,
    "planning": planning.METHOD,
    "looped": looped.METHOD,
    "adaptive": adaptive.METHOD,
}


def method(name: str) -> Method:
    """The method of that name.

    Raises:
      InputError: an unknown name.
    """
    check_choice("method", name, METHODS)
    return METHODS[name]
