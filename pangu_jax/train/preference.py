"""The preference loss in the form the training step takes."""

from collections.abc import Callable
from typing import Any

import jax

from pangu_jax.losses.preference import bradley_terry
from pangu_jax.train.step import Loss


def preference_loss(score: Callable[[Any, Any, Any, jax.Array], jax.Array]) -> Loss:
    """Bradley-Terry's loss of pairs.

    Args:
      score: `score(params, frozen, inputs, key) -> [B]`, one for each of the inputs.

    Returns:
      The loss. Its batch has "chosen" and "rejected", inputs of `score` of B rows each, and, if
      wanted, "weights", float [B], 0 for padding. It counts pairs and names "agreement", the share
      of them whose chosen one scores higher.
    """

    def loss(params, frozen, batch, key):
        first, second = jax.random.split(key)
        nats, weight, right = bradley_terry(
            score(params, frozen, batch["chosen"], first),
            score(params, frozen, batch["rejected"], second),
            batch.get("weights"),
        )
        return nats, weight, {"agreement": right}

    return loss
