"""Prefill and decoding, each one compiled function, on a key-value cache of static size."""

import dataclasses
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from pangu_jax.core.errors import InputError
from pangu_jax.decode.sample import SamplingConfig, sample
from pangu_jax.models import decoder, transformer
from pangu_jax.models.decoder import DecoderConfig
from pangu_jax.models.transformer import Cache
from pangu_jax.nn.how import HOW, How


@dataclasses.dataclass(frozen=True)
class Generation:
    """What was generated.

    Attributes:
      ids: int32 [B, max_new]; after a row's stop token the rest is 0.
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
    max_new: int,
    sampling: SamplingConfig = SamplingConfig(),
    stop_ids: Sequence[int] = (),
    key: jax.Array | None = None,
    how: How = HOW,
) -> Generation:
    """Continues every prompt until a stop token or `max_new` tokens.

    Prompts of different lengths share a batch: the shorter ones are padded on the left, where
    nobody sees them. The lengths of prompt and cache are rounded up to a few sizes, so that calls
    of similar lengths share a compilation. The whole decoding loop runs on the device.

    Args:
      params: tree of `decoder.spec(cfg)`.
      prompts: ids of each row, at least one each.
      cfg: the model.
      max_new: most tokens to generate for a row.
      sampling: how tokens are drawn.
      stop_ids: a row ends with the first of these.
      key: for drawing; row b uses fold_in(key, b), so that a row's text does not depend on the
        others. None is `jax.random.key(0)`.
      how: layout, implementations, and the type of activations and cache.

    Raises:
      InputError: an empty prompt, an id outside the vocabulary, or nothing to generate.
    """
    tokens, segments, positions = _pad(prompts, cfg)
    _check_new(max_new)
    options = {"cfg": cfg, "how": how}
    slots = tokens.shape[1] + _round_up(max_new)
    keys = _row_keys(key, len(prompts))
    logits, cache = _prefill(params, tokens, segments, positions, slots=slots, **options)
    ids, lengths, _ = _decode(
        params,
        logits,
        cache,
        positions[:, -1],
        keys,
        _stops(stop_ids),
        np.int32(max_new),
        size=_round_up(max_new),
        sampling=sampling,
        **options,
    )
    return Generation(np.asarray(ids)[:, :max_new], np.asarray(lengths))


def stream(
    params: Any,
    prompt: Sequence[int],
    *,
    cfg: DecoderConfig,
    max_new: int,
    sampling: SamplingConfig = SamplingConfig(),
    stop_ids: Sequence[int] = (),
    key: jax.Array | None = None,
    how: How = HOW,
) -> Iterator[int]:
    """The tokens of `generate` for one prompt, one by one as they are made.

    See `generate` for arguments and errors. The stop token is given too.
    """
    tokens, segments, positions = _pad([prompt], cfg)
    _check_new(max_new)
    options = {"cfg": cfg, "how": how}
    slots = tokens.shape[1] + _round_up(max_new)
    keys = _row_keys(key, 1)
    logits, cache = _prefill(params, tokens, segments, positions, slots=slots, **options)
    position = jnp.asarray(positions[:, -1])
    for number in range(max_new):
        token = _draw(logits, keys, jnp.int32(number), sampling=sampling)
        if number + 1 < max_new:  # started before the token is looked at
            position = position + 1
            logits, cache = _advance(params, token, position, cache, **options)
        yield int(token[0])
        if int(token[0]) in stop_ids:
            return


_STATIC = ("cfg", "how")


@partial(jax.jit, static_argnames=("slots", *_STATIC))
def _prefill(params, tokens, segments, positions, *, slots, cfg, how):
    kind = how.dtype or params["embed"]["table"].dtype
    cache = transformer.init_cache(cfg, tokens.shape[0], slots, kind)
    out = decoder.apply(
        params,
        tokens,
        cfg=cfg,
        positions=positions,
        segments=segments,
        cache=cache,
        how=how,
    )
    return decoder.logits(params, out.hidden[:, -1], cfg=cfg, how=how), out.cache


def _forward(params, token, position, cache: Cache, cfg, how):
    out = decoder.apply(
        params,
        token[:, None],
        cfg=cfg,
        positions=position[:, None],
        cache=cache,
        how=how,
    )
    return decoder.logits(params, out.hidden[:, -1], cfg=cfg, how=how), out.cache


@partial(jax.jit, static_argnames=_STATIC, donate_argnames="cache")
def _advance(params, token, position, cache, *, cfg, how):
    return _forward(params, token, position, cache, cfg, how)


@partial(jax.jit, static_argnames="sampling")
def _draw(logits, keys, number, *, sampling):
    return sample(logits, sampling, key=jax.vmap(jax.random.fold_in, (0, None))(keys, number))


@partial(jax.jit, static_argnames=("size", "sampling", *_STATIC), donate_argnames="cache")
def _decode(params, logits, cache, position, keys, stops, limit, *, size, sampling, cfg, how):
    rows = logits.shape[0]

    def go_on(carry):
        number, _, _, _, done, _, _ = carry
        return (number < limit) & ~done.all()

    def body(carry):
        number, logits, cache, position, done, ids, lengths = carry
        token = _draw(logits, keys, number, sampling=sampling)
        token = jnp.where(done, 0, token)
        ids = jax.lax.dynamic_update_slice(ids, token[:, None], (0, number))
        lengths = lengths + ~done
        done = done | (token[:, None] == stops).any(-1)
        position = position + 1
        logits, cache = _forward(params, token, position, cache, cfg, how)
        return number + 1, logits, cache, position, done, ids, lengths

    carry = (
        jnp.int32(0),
        logits,
        cache,
        jnp.asarray(position),
        jnp.zeros(rows, bool),
        jnp.zeros((rows, size), jnp.int32),
        jnp.zeros(rows, jnp.int32),
    )
    _, _, cache, _, _, ids, lengths = jax.lax.while_loop(go_on, body, carry)
    return ids, lengths, cache  # the cache too: only then can the loop work in the given one


def _pad(prompts: Sequence[Sequence[int]], cfg: DecoderConfig) -> tuple[np.ndarray, ...]:
    """Left-padded tokens, segments and positions, int32 [B, T]."""
    if len(prompts) == 0:
        raise InputError("there is no prompt")
    for row, prompt in enumerate(prompts):
        if not len(prompt):
            raise InputError(f"prompt {row} is empty")
        wrong = [i for i in prompt if not 0 <= i < cfg.vocab]
        if wrong:
            raise InputError(
                f"prompt {row} has the id {wrong[0]}, the vocabulary ends at {cfg.vocab - 1}"
            )
    length = _round_up(max(map(len, prompts)))
    tokens = np.zeros((len(prompts), length), np.int32)
    segments, positions = np.zeros_like(tokens), np.zeros_like(tokens)
    for row, prompt in enumerate(prompts):
        first = length - len(prompt)
        tokens[row, first:] = prompt
        segments[row, first:] = 1
        positions[row, first:] = np.arange(len(prompt))
    return tokens, segments, positions


def _stops(stop_ids: Sequence[int]) -> np.ndarray:
    """The stop ids, filled with -1 to a multiple of eight: their number changes no shape."""
    stops = np.full(max(8, -(-len(stop_ids) // 8) * 8), -1, np.int32)
    stops[: len(stop_ids)] = stop_ids
    return stops


def _check_new(max_new: int) -> None:
    if max_new < 1:
        raise InputError(f"max_new must be at least 1, got {max_new}")


def _round_up(length: int) -> int:
    """The next of 16, 32, 64, ..., 512, then multiples of 512."""
    if length > 512:
        return -(-length // 512) * 512
    return max(16, 1 << (length - 1).bit_length())


def _row_keys(key: jax.Array | None, rows: int) -> jax.Array:
    key = jax.random.key(0) if key is None else key
    return jax.vmap(lambda row: jax.random.fold_in(key, row))(jnp.arange(rows))
