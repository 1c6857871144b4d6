"""Whole windows of text for calibration: equal lengths, no padding."""

import numpy as np

from pangu_jax.core.errors import InputError
from pangu_jax.data.packing import Tokens


def cut_windows(tokens: Tokens, length: int) -> np.ndarray:
    """All whole windows of `length` tokens, each headed by the boundary id.

    The documents are laid end to end, and each window takes the next length - 1 ids, so no text is
    in two windows. What does not fill a window at the end is left out.

    Args:
      tokens: what `data.packing.tokenise` gave; its first id is the boundary.
      length: tokens of a window, the boundary included.

    Returns:
      int32 [N, length].

    Raises:
      InputError: the text does not fill one window, or `length` is under 2.
    """
    if length < 2:
        raise InputError(f"calibration windows need at least 2 tokens, got {length}")
    ids = np.asarray(tokens.ids[1:], np.int32)
    number = len(ids) // (length - 1)
    if not number:
        raise InputError(
            f"the calibration text has {len(ids)} tokens, which do not fill one window of {length}"
            "; give more text or a smaller --length"
        )
    body = ids[: number * (length - 1)].reshape(number, length - 1)
    head = np.full((number, 1), int(tokens.ids[0]), np.int32)
    return np.concatenate([head, body], axis=1)


def as_documents(windows: np.ndarray) -> Tokens:
    """The windows as documents of their own, for `eval.perplexity.measure`."""
    starts = np.arange(len(windows), dtype=np.int64) * windows.shape[1]
    return Tokens(windows.reshape(-1), starts, windows.size)
