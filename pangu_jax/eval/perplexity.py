"""Perplexity and bits per byte under a stated window protocol."""

import dataclasses
import math
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import jax
import numpy as np

from pangu_jax.core.errors import InputError
from pangu_jax.data.calibration import as_documents
from pangu_jax.data.packing import BOUNDARY, Tokens
from pangu_jax.models import decoder
from pangu_jax.nn.how import HOW, How
from pangu_jax.sharding.layout import constrain


@dataclasses.dataclass(frozen=True)
class Perplexity:
    """A measurement and its protocol.

    Attributes:
      nats: summed negative log-likelihood, in float64.
      tokens: number of tokens predicted.
      bytes: UTF-8 bytes of the text they stand for.
      length: most tokens of context in a window.
      stride: tokens predicted by each window of a document but its first.
      head: what precedes each document, in words; "" if its first token is text, not predicted.
    """

    nats: float
    tokens: int
    bytes: int
    length: int
    stride: int
    head: str = BOUNDARY

    @property
    def perplexity(self) -> float:
        """exp(nats / tokens)."""
        return math.exp(self.nats / self.tokens)

    @property
    def bits_per_byte(self) -> float:
        """Nats / (ln 2 * bytes)."""
        return self.nats / math.log(2) / self.bytes

    @property
    def protocol(self) -> str:
        """The window protocol in words."""
        documents = (
            f"each headed by {self.head}; every token predicted once"
            if self.head
            else "with no begin token; every token but a document's first predicted once"
        )
        return (
            f"windows of {self.length} tokens: a document's first predicts all of its own, each "
            f"further one its last {self.stride}; documents apart, {documents}"
        )


def measure(
    params: Any,
    tokens: Tokens,
    *,
    cfg: decoder.DecoderConfig,
    length: int,
    stride: int | None = None,
    batch: int = 8,
    max_tokens: int | None = None,
    how: How = HOW,
    progress: Callable[[int, int], None] | None = None,
) -> Perplexity:
    """Likelihood of documents, each on its own.

    A document of n tokens (its head included) is covered by windows of at most `length`
    inputs; the first predicts all it can, each further one `stride` new tokens, with as many of the
    tokens before them as fit as context. The stride changes the context, never the tokens that
    count.

    Args:
      params: tree of `decoder.spec(cfg)`.
      tokens: the result of `data.packing.tokenize`.
      cfg: the model.
      length: inputs of a window.
      stride: new tokens of a window; None is `length` (no overlap, cheapest).
      batch: windows computed at once.
      max_tokens: stops after the document that reaches this number of tokens; None takes all.
        Bits per byte then count the bytes of the documents measured in proportion to tokens, as
        they do if a document's first token is not predicted.
      how: layout, implementations, and the type of activations.
      progress: called with windows done and windows in all.

    Raises:
      InputError: `length`, `stride` or `batch` is out of range, or there is nothing to predict.
    """
    stride = length if stride is None else stride
    if batch < 1:
        raise InputError(f"batch must be at least 1, got {batch}")
    if length < 1 or not 1 <= stride <= length:
        raise InputError(f"need length >= stride >= 1, got length {length} and stride {stride}")
    windows = list(_windows(tokens, length, stride, max_tokens))
    predicted = sum(new for _, _, new in windows)
    if not predicted:
        raise InputError("there is nothing to predict: every document is empty")
    nats = 0.0
    for first in range(0, len(windows), batch):
        arrays = _batch(tokens, windows[first : first + batch], length, batch)
        nats += float(np.asarray(token_nats(params, *arrays, cfg=cfg, how=how), np.float64).sum())
        if progress is not None:
            progress(min(first + batch, len(windows)), len(windows))
    all_tokens = len(tokens.ids) - (len(tokens.starts) if tokens.head else 0)
    size = tokens.bytes if predicted == all_tokens else round(tokens.bytes * predicted / all_tokens)
    return Perplexity(nats, predicted, size, length, stride, tokens.head)


def measure_windows(
    params: Any,
    windows: np.ndarray,
    *,
    cfg: decoder.DecoderConfig,
    batch: int = 8,
    how: How = HOW,
    progress: Callable[[int, int], None] | None = None,
) -> Perplexity:
    """Likelihood of windows that are all of one length, each on its own.

    Args:
      params: as in `measure`.
      windows: int32 [windows, T], from `data.calibration.cut_windows`.
      cfg: as in `measure`, as is all that follows.
      batch: windows computed at once.
      how: layout, implementations, type of activations.
      progress: called with windows done and in all.

    Raises:
      InputError: as in `measure`.
    """
    return measure(
        params,
        as_documents(windows),
        cfg=cfg,
        length=windows.shape[1],
        batch=batch,
        how=how,
        progress=progress,
    )


def _windows(
    tokens: Tokens, length: int, stride: int, max_tokens: int | None
) -> Iterator[tuple[int, int, int]]:
    """(first input, number of inputs, number of last ones predicted) in flat positions."""
    ends = np.append(tokens.starts[1:], len(tokens.ids))
    predicted = 0
    for start, end in zip(tokens.starts.tolist(), ends.tolist(), strict=True):
        inputs = end - start - 1  # the last token predicts nothing
        done = 0
        while done < inputs:
            new = min(length if done == 0 else stride, inputs - done)
            size = min(length, done + new)
            yield start + done + new - size, size, new
            done += new
        predicted += inputs
        if max_tokens is not None and predicted >= max_tokens:
            return


def _batch(tokens: Tokens, windows: list, length: int, rows: int) -> tuple[np.ndarray, ...]:
    inputs, labels, segments = (np.zeros((rows, length), np.int32) for _ in range(3))
    weights = np.zeros((rows, length), np.float32)
    for row, (first, size, new) in enumerate(windows):
        inputs[row, :size] = tokens.ids[first : first + size]
        labels[row, :size] = tokens.ids[first + 1 : first + size + 1]
        segments[row, :size] = 1
        weights[row, size - new : size] = 1
    return inputs, labels, segments, weights


@partial(jax.jit, static_argnames=("cfg", "how"))
def token_nats(params, inputs, labels, segments, weights, *, cfg, how):
    """Nats of each label, float32 [B, T], 0 without weight; compiled once for all measurements."""
    out = decoder.apply(params, inputs, cfg=cfg, segments=segments, how=how)

    def row(hidden, label, weight):
        logits = decoder.logits(params, hidden, cfg=cfg)
        found = jax.numpy.take_along_axis(logits, label[:, None], axis=-1)[:, 0]
        return weight * (jax.nn.logsumexp(logits, axis=-1) - found)

    # One row's logits at a time: [T, V], not [B, T, V].
    nats = jax.lax.map(lambda x: row(*x), (out.hidden, labels, weights))
    return constrain(nats, (None, None), how.layout)  # whole everywhere
