"""Full windows of calibration text: equal lengths, no padding."""

from collections.abc import Sequence

import numpy as np
from einops import rearrange, repeat

from pangu_jax.core.errors import InputError
from pangu_jax.data.packing import Tokens


def cut_windows(tokens: Tokens, length: int, begin: Sequence[int] | None = None) -> np.ndarray:
    """All whole windows of `length` tokens, each headed by the ids with which a prompt begins.

    The documents are laid end to end, and each window takes the next ids that fit, so no text is
    in two windows. What does not fill a window at the end is left out.

    Args:
      tokens: what `data.packing.tokenize` gave; its first id is the boundary.
      length: tokens of a window, its head included.
      begin: the tokenizer's `begin`; None is the boundary id.

    Returns:
      int32 [N, length].

    Raises:
      InputError: the text does not fill one window, or `length` holds no more than the head.
    """
    first = [int(tokens.ids[0])] if begin is None else list(begin)
    if length < max(2, len(first) + 1):
        least = max(2, len(first) + 1)
        raise InputError(f"calibration windows need at least {least} tokens, got {length}")
    ids = np.asarray(tokens.ids[1:], np.int32)
    size = length - len(first)
    number = len(ids) // size
    if not number:
        raise InputError(
            f"the calibration text has {len(ids)} tokens, which do not fill one window of {length}"
            "; give more text or a smaller length"
        )
    body = rearrange(ids[: number * size], "(n t) -> n t", t=size)
    heads = repeat(np.array(first, np.int32), "t -> n t", n=number)
    return np.concatenate([heads, body], axis=1)


def as_documents(windows: np.ndarray) -> Tokens:
    """The windows as documents of their own, for `eval.perplexity.measure`."""
    starts = np.arange(len(windows), dtype=np.int64) * windows.shape[1]
    return Tokens(windows.reshape(-1), starts, windows.size)
