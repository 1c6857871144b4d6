"""Embeddings of texts and scores of pairs: batched by length, returned in the original order."""

import collections
import dataclasses
import itertools
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial

import jax
import numpy as np

from pangu_jax.core.errors import InputError
from pangu_jax.core.platform import target
from pangu_jax.data.encoder_inputs import EncodedText, Texts, encode_for_decoder, encode_for_encoder
from pangu_jax.data.tokenizer import Tokenizer, check_vocabulary
from pangu_jax.models import embedder, encoder
from pangu_jax.models.embedder import EmbedderConfig
from pangu_jax.models.encoder import EncoderConfig
from pangu_jax.models.pooling_config import check_pooling
from pangu_jax.nn.how import HOW, How
from pangu_jax.sharding.layout import constrain

SHORTEST = 16  # what rows are padded to at least

Config = EncoderConfig | EmbedderConfig


@dataclasses.dataclass(frozen=True)
class Embeddings:
    """Vectors, and how they were made.

    Attributes:
      vectors: float32 [N, D], in the order of the texts; of `classify` the scores, [N, C].
      cut: how many texts were cut.
      length: tokens that a text was cut to.
    """

    vectors: np.ndarray
    cut: int
    length: int


def embed(
    params: dict,
    texts: Sequence[str],
    *,
    cfg: Config,
    tokenizer: Tokenizer,
    prefixes: Sequence[str] | None = None,
    batch: int = 32,
    max_length: int | None = None,
    how: How = HOW,
    progress: Callable[[int, int], None] | None = None,
) -> Embeddings:
    """One vector per text, pooled and normalized as `cfg` says.

    A vector does not depend on which texts it shares a batch with, but for the rounding of sums in
    another order.

    Args:
      params: tree of `encoder.spec(cfg)` or `embedder.spec(cfg)`.
      texts: the texts.
      cfg: the model. Where it does not pool the prefix, a text that has nothing else is pooled
        with it, as a mean of nothing would say nothing.
      tokenizer: the model's.
      prefixes: what is put before each text; None is `cfg.prefix` before all.
      batch: rows computed at once.
      max_length: tokens that a text is cut to, special ones among them; None is what `cfg` says.
      how: layout, implementations, and the type of activations.
      progress: called with texts done and texts in all.

    Raises:
      InputError: there is no text, `cfg` names no pooling, the tokenizer has ids or types
        that the model lacks or (in encoders) no special tokens, or `batch` or `max_length` make no
        sense.
    """
    check_pooling(cfg)
    before = [cfg.prefix] * len(texts) if prefixes is None else prefixes
    length = _length(texts, cfg, max_length)
    if isinstance(cfg, EncoderConfig):
        whole = [prefix + text for prefix, text in zip(before, texts, strict=True)]
        inputs = list(encode_for_encoder(tokenizer, whole, length))
    else:
        inputs = list(
            encode_for_decoder(tokenizer, texts, length, prefixes=before, append_eos=cfg.append_eos)
        )
    _check(inputs, cfg, tokenizer)
    computed = dataclasses.replace(cfg, text_length=None, prefix="")  # one compilation for all
    rows = partial(_vectors, params, cfg=computed, how=how)
    found = _each_batch(rows, inputs, cfg.width, length, batch, _at_once(how), progress)
    return Embeddings(found, sum(item.cut for item in inputs), length)


def classify(
    params: dict,
    texts: Texts,
    *,
    cfg: EncoderConfig,
    tokenizer: Tokenizer,
    batch: int = 32,
    max_length: int | None = None,
    how: How = HOW,
    progress: Callable[[int, int], None] | None = None,
) -> Embeddings:
    """The classes' scores of each text or pair, not normalized: `vectors` is float32 [N, C].

    The arguments are those of `embed`; `texts` may be pairs, such as a question and a passage.

    Raises:
      InputError: as `embed`, or the model has no classes.
    """
    encoder.check_classes(cfg)
    length = _length(texts, cfg, max_length)
    inputs = list(encode_for_encoder(tokenizer, texts, length))
    _check(inputs, cfg, tokenizer)
    rows = partial(_scores, params, cfg=cfg, how=how)
    found = _each_batch(rows, inputs, cfg.classes, length, batch, _at_once(how), progress)
    return Embeddings(found, sum(item.cut for item in inputs), length)


def cut_length(cfg: Config, max_length: int | None = None) -> int:
    """The number of tokens that a text is truncated to: the given one, or the model's.

    Raises:
      InputError: the model does not take so many.
    """
    length = max_length if max_length is not None else cfg.text_length or cfg.max_length
    if not 1 <= length <= cfg.max_length:
        raise InputError(
            f"texts cannot be cut to {length} tokens: the model takes {cfg.max_length}"
        )
    return length


def _length(texts: Texts, cfg: Config, max_length: int | None) -> int:
    """The length that texts, of which there is one, are cut to."""
    if not len(texts):
        raise InputError("there is no text to embed")
    return cut_length(cfg, max_length)


def _check(inputs: list[EncodedText], cfg: Config, tokenizer: Tokenizer) -> None:
    """Checks that the model has the ids and types."""
    check_vocabulary([max(max(item.ids) for item in inputs)], tokenizer, cfg.vocab)
    kinds = 1 + max(max(item.types) for item in inputs)
    if isinstance(cfg, EncoderConfig) and kinds > cfg.token_types:
        raise InputError(
            f"the tokenizer {tokenizer.name} gives {kinds} token types, the model has "
            f"{cfg.token_types}"
        )


def _at_once(how: How) -> int:
    """Batches that are computed side by side.

    On a CPU parts of a model keep one core busy, which leaves the others to another batch; what
    runs on several devices waits for all of them, so there it must keep its turn.
    """
    return 2 if target() == "cpu" and how.layout is None else 1


def _each_batch(
    function: Callable,
    inputs: list[EncodedText],
    width: int,
    length: int,
    batch: int,
    at_once: int,
    progress: Callable[[int, int], None] | None,
) -> np.ndarray:
    """What the function gives for batches of few shapes, longest first: float32 [N, width]."""
    if batch < 1:
        raise InputError(f"batch must be at least 1, got {batch}")
    found = np.zeros((len(inputs), width), np.float32)
    done, batch = 0, min(batch, len(inputs))
    running: collections.deque[tuple[list[int], Future]] = collections.deque()
    batches = _batches(inputs, length, batch)
    with ThreadPoolExecutor(at_once) as pool:
        while running or done == 0:
            for rows, arrays in itertools.islice(batches, at_once - len(running)):
                running.append((rows, pool.submit(lambda *x: np.asarray(function(*x)), *arrays)))
            rows, values = running.popleft()
            found[rows] = values.result()[: len(rows)]
            done += len(rows)
            if progress is not None:
                progress(done, len(inputs))
    return found


def _batches(
    inputs: list[EncodedText], length: int, batch: int
) -> Iterator[tuple[list[int], tuple[np.ndarray, ...]]]:
    """Which texts, and [batch, T] each: tokens, which are real, types, and which are no prefix.

    Surplus rows have one token.
    """
    order = sorted(range(len(inputs)), key=lambda i: -len(inputs[i].ids))
    for first in range(0, len(order), batch):
        rows = order[first : first + batch]
        shape = (batch, padded(len(inputs[rows[0]].ids), length))
        tokens, types = np.zeros(shape, np.int32), np.zeros(shape, np.int32)
        valid = np.zeros(shape, bool)
        valid[:, 0] = True
        text_only = np.zeros(shape, bool)
        for row, text in enumerate(rows):
            size = len(inputs[text].ids)
            tokens[row, :size], types[row, :size] = inputs[text].ids, inputs[text].types
            valid[row, :size] = True
            prefix = inputs[text].prefix
            text_only[row, prefix if prefix < size else 0 : size] = True
        yield rows, (tokens, valid, types, text_only)


def padded(size: int, length: int) -> int:
    """The length that rows are padded to, one of few: `SHORTEST`, its doubles, or `length`.

    On a CPU, where padding costs more than the compilation of further lengths, each stretch between
    two doubles is cut into four.
    """
    found = SHORTEST
    while found < size:
        found *= 2
    if target() == "cpu":
        step = max(found // 8, SHORTEST)
        found = -(-size // step) * step
    return min(found, length)


@partial(jax.jit, static_argnames=("cfg", "how"))
def _vectors(params, tokens, valid, types, text_only, *, cfg, how):
    if isinstance(cfg, EncoderConfig):
        found = encoder.embed(params, tokens, valid, cfg=cfg, token_types=types, how=how)
    else:
        states = None if cfg.pool_prefix else text_only
        found = embedder.embed(params, tokens, valid, cfg=cfg, states=states, how=how)
    return constrain(found, (None, None), how.layout)  # whole everywhere


@partial(jax.jit, static_argnames=("cfg", "how"))
def _scores(params, tokens, valid, types, _, *, cfg, how):
    found = encoder.classify(params, tokens, valid, cfg=cfg, token_types=types, how=how)
    return constrain(found, (None, None), how.layout)
