"""What is read of a prompt: its ids, or with soft thinking the prompt, a thought, and its end."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from pangu_jax.core.errors import InputError
from pangu_jax.data.tokenizer import Tokenizer
from pangu_jax.decode.soft_thinking import SoftThought, think, thought_prompt
from pangu_jax.decode.soft_thinking_config import SoftThinkingConfig
from pangu_jax.models.decoder import DecoderConfig
from pangu_jax.nn.how import How

ENDS = ("</think>", "[unused17]")  # what published checkpoints end thinking with


Prepare = Callable[[Sequence[int], jax.Array], tuple[Any, SoftThought | None]]


def preparation(
    params: Any,
    cfg: DecoderConfig,
    tokenizer: Tokenizer,
    soft: SoftThinkingConfig | None,
    end: str | None,
    how: How,
) -> tuple[Prepare, int]:
    """What makes a prompt ready for the engine, and how much longer it may become.

    Args:
      params: tree of `transformer.by_layer`, as every prompt would copy the layers otherwise.
      cfg: the model.
      tokenizer: its tokenizer.
      soft: how it thinks before it writes; None does not.
      end: what is written behind a thought; None is the tokenizer's token of `ENDS`.
      how: the type of the activations.

    Returns:
      A function of a prompt's ids and its key that gives what the engine reads, and the thought in
      it: the ids themselves and None, unless it is to think first; and a number of tokens.

    Raises:
      InputError: nobody says what ends thinking, or the model lacks its ids.
    """
    if soft is None:
        return lambda ids, key: (ids, None), 0
    last = _end(end, tokenizer)
    if any(token >= cfg.vocab for token in last):
        raise InputError(
            f"think_end has the id {max(last)}, but the model's vocabulary ends at {cfg.vocab - 1}"
        )
    stops = (*tokenizer.eos_ids, *(last if len(last) == 1 else ()))

    def prepare(ids: Sequence[int], key: jax.Array) -> tuple[np.ndarray, SoftThought]:
        more = {"cfg": cfg, "how": how}
        thought = think(params, ids, soft=soft, stop_ids=stops, key=key, **more)
        return thought_prompt(params, ids, thought, last, **more), thought

    return prepare, soft.think_tokens + len(last)


def _end(end: str | None, tokenizer: Tokenizer) -> list[int]:
    """The ids behind a thought."""
    if end is not None:
        return tokenizer.encode(end) if end else []
    for name in ENDS:
        if (found := tokenizer.token_to_id(name)) is not None:
            return [found]
    raise InputError(
        f"the tokenizer {tokenizer.name} has no token {' or '.join(ENDS)}, so think_end must say "
        'what is written behind a thought; "" is nothing'
    )
