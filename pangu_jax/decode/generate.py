"""Generates continuations of prompts, all at once or streamed token by token."""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from pangu_jax.core.errors import InputError
from pangu_jax.decode.engine import (
    Engine,
    Request,
    answers,
    check_max_new_tokens,
    check_prompt,
    round_up,
)
from pangu_jax.decode.sampling_config import SamplingConfig
from pangu_jax.models.decoder import DecoderConfig
from pangu_jax.nn.how import HOW, How


@dataclasses.dataclass(frozen=True)
class Generation:
    """The generated tokens.

    Attributes:
      ids: int32 [B, max_new_tokens]; after a row's stop token the rest is 0.
      lengths: int32 [B], tokens of each row, its stop token included.
    """

    ids: np.ndarray
    lengths: np.ndarray

    def rows(self) -> list[list[int]]:
        """The generated ids of each row, its stop token included."""
        return [list(map(int, r[:n])) for r, n in zip(self.ids, self.lengths, strict=True)]


def generate(
    params: Any,
    prompts: Sequence[Sequence[int]],
    *,
    cfg: DecoderConfig,
    max_new_tokens: int,
    sampling: SamplingConfig = SamplingConfig(),
    stop_ids: Sequence[int] = (),
    key: jax.Array | None = None,
    slots: int | None = None,
    how: How = HOW,
) -> Generation:
    """Continues every prompt until a stop token or `max_new_tokens` tokens.

    Lengths are rounded up to a few sizes, so that calls of similar lengths share a compilation.

    Args:
      params: tree of `decoder.spec(cfg)`; or of `transformer.by_layer`, which saves every call a
        copy of the layers.
      prompts: ids of each row, at least one each.
      cfg: the model.
      max_new_tokens: maximum number of new tokens per row.
      sampling: how tokens are sampled.
      stop_ids: a row ends with the first of these.
      key: for drawing; row b uses fold_in(key, b), so that a row's text does not depend on the
        others. None is `jax.random.key(0)`.
      slots: how many prompts are continued at once; None is all of them.
      how: layout, implementations, and the type of activations and cache.

    Raises:
      InputError: an empty prompt, an id outside the vocabulary, or nothing to generate.
    """
    _check(prompts, max_new_tokens, cfg)
    keys = _row_keys(key, len(prompts))
    slots = len(prompts) if slots is None else min(slots, len(prompts))
    engine = _engine(params, prompts, max_new_tokens, stop_ids, keys, slots=slots, cfg=cfg, how=how)
    requests = (
        Request(prompt, max_new_tokens, sampling, stop_ids, keys[row])
        for row, prompt in enumerate(prompts)
    )
    ids = np.zeros((len(prompts), max_new_tokens), np.int32)
    lengths = np.zeros(len(prompts), np.int32)
    for row, answer in answers(engine, requests):
        lengths[row] = len(answer.ids)
        ids[row, : lengths[row]] = answer.ids
    return Generation(ids, lengths)


def stream(
    params: Any,
    prompt: Sequence[int],
    *,
    cfg: DecoderConfig,
    max_new_tokens: int,
    sampling: SamplingConfig = SamplingConfig(),
    stop_ids: Sequence[int] = (),
    key: jax.Array | None = None,
    how: How = HOW,
) -> Iterator[int]:
    """The tokens of `generate` for one prompt, one by one as they are made.

    See `generate` for arguments and errors. The stop token is given too.
    """
    _check([prompt], max_new_tokens, cfg)
    keys = _row_keys(key, 1)
    engine = _engine(
        params, [prompt], max_new_tokens, stop_ids, keys, slots=1, cfg=cfg, how=how, burst=1
    )
    engine.submit(Request(prompt, max_new_tokens, sampling, stop_ids, keys[0]))
    while engine.busy:
        for delta in engine.advance():
            yield from map(int, delta.ids)


def _engine(params, prompts, max_new_tokens, stop_ids, keys, **options) -> Engine:
    return Engine(
        params,
        length=round_up(max(map(len, prompts))) + round_up(max_new_tokens),
        stops=max(8, -(-len(stop_ids) // 8) * 8),  # their number is rarely another program
        key=keys[0],
        **options,
    )


def _check(prompts: Sequence[Sequence[int]], max_new_tokens: int, cfg: DecoderConfig) -> None:
    if len(prompts) == 0:
        raise InputError("there is no prompt")
    for row, prompt in enumerate(prompts):
        check_prompt(f"prompt {row}", prompt, cfg)
    check_max_new_tokens(max_new_tokens)


def _row_keys(key: jax.Array | None, rows: int) -> jax.Array:
    key = jax.random.key(0) if key is None else key
    return jax.vmap(lambda row: jax.random.fold_in(key, row))(jnp.arange(rows))
