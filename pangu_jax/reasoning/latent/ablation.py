"""Replacements for thoughts, to test whether a model makes use of them.

| ablation | every thought becomes |
|---|---|
| zeros | zeros |
| noise | a random direction of the same length |
| other | that of the problem before, the first one of the last |
| pause | the embedding of a pause, which Coconut itself never trains |

An unchanged score says that the answer does not depend on the content of the thoughts.
"""

from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp

from pangu_jax.core.config import check_choice
from pangu_jax.core.errors import InputError
from pangu_jax.models import decoder
from pangu_jax.nn.how import HOW, How
from pangu_jax.reasoning.latent.answer import Exchange
from pangu_jax.reasoning.latent.slots import Markers

Ablation = Literal["zeros", "noise", "other", "pause"]
ABLATIONS: tuple[str, ...] = get_args(Ablation)


def ablation(
    name: str,
    params: dict[str, Any],
    markers: Markers,
    *,
    cfg: decoder.DecoderConfig,
    how: How = HOW,
) -> Exchange:
    """The function that replaces thoughts.

    Args:
      name: one of the module's table.
      params: the model's, for the embedding of a pause.
      markers: of the tokenizer.
      cfg: the model.
      how: type of the activations.

    Returns:
      A function of the thoughts about all problems and a key. It raises InputError for one problem,
      which has no other.

    Raises:
      InputError: an unknown name.
    """
    check_choice("ablation", name, ABLATIONS)

    def exchange(thoughts: jax.Array, key: jax.Array) -> jax.Array:
        if name == "zeros":
            return jnp.zeros_like(thoughts)
        if name == "noise":
            drawn = jax.random.normal(key, thoughts.shape, jnp.float32)
            size = jnp.linalg.norm(thoughts.astype(jnp.float32), axis=-1, keepdims=True)
            unit = drawn / jnp.linalg.norm(drawn, axis=-1, keepdims=True)
            return (unit * size).astype(thoughts.dtype)
        if name == "other":
            if len(thoughts) < 2:
                raise InputError(
                    "the thoughts of another problem need at least two problems, got 1"
                )
            return jnp.roll(thoughts, 1, axis=0)
        pause = decoder.embed(params, jnp.asarray([[markers.pause]], jnp.int32), cfg=cfg, how=how)
        return jnp.broadcast_to(pause, thoughts.shape).astype(thoughts.dtype)

    return exchange
