"""The state of slots that decode side by side, one sequence each, and its transitions.

Token i of a slot's text is in row i of its cache, so texts of any lengths share a step, and the
mask is that of positions. A prompt is read alone, in a program for its length rounded up, and takes
over its slots with all of their rows: nothing is left of who had them before. Steps read the newest
token of every slot and draw the next; so a text's tokens depend neither on the other texts nor on
when they come and go.

The functions are pure and compiled once for a model, a number of slots and their length; the state
is donated to them, so that the caches are updated in place.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from pangu_jax.decode.sample import Draw, Sampling, draw
from pangu_jax.models import decoder
from pangu_jax.models.decoder import DecoderConfig
from pangu_jax.nn.how import How
from pangu_jax.sharding.layout import constrain

_CACHE = ("batch", "length", "kv_heads", "head_dim")


@struct.dataclass
class Slots:
    """The state of B slots.

    Attributes:
      caches: {"key": [B, S, K, C], "value": the same}, one per layer.
      token: int32 [B], the newest token, which is not in the cache yet.
      length: int32 [B], tokens in the cache.
      made: int32 [B], tokens drawn for the text.
      limit: int32 [B], the most tokens to draw.
      active: bool [B], whether the slot has an unfinished sequence.
      stops: int32 [B, stops], ids that end the text; -1 is none.
      keys: PRNG keys [B]; token n is drawn with fold_in(key, n).
      sampling: sampling settings of each slot.
    """

    caches: list[dict[str, Any]]
    token: Any
    length: Any
    made: Any
    limit: Any
    active: Any
    stops: Any
    keys: Any
    sampling: Sampling


@struct.dataclass
class SlotRequests:
    """Requests of slots that share a prompt, n rows of which the first `count` are real.

    Attributes:
      slots: int32 [n], the slot of each.
      count: int32 scalar, number of requests, 1 to n; later rows are ignored.
      limit: int32 [n], see `Slots`.
      stops: int32 [n, stops], see `Slots`.
      keys: n PRNG keys.
      sampling: of n rows.
    """

    slots: Any
    count: Any
    limit: Any
    stops: Any
    keys: Sequence[Any]
    sampling: Sampling


@struct.dataclass
class Made:
    """Sampled tokens.

    Attributes:
      draws: int32 and float32 [n, B]; the first `count[b]` of column b are slot b's.
      count: int32 [B], tokens drawn.
      active: bool [B], whether the sequence is unfinished.
    """

    draws: Draw
    count: Any
    active: Any


@partial(jax.jit, static_argnames=("cfg", "slots", "length", "stops", "kind", "how"))
def init(
    key: jax.Array, *, cfg: DecoderConfig, slots: int, length: int, stops: int, kind: Any, how: How
) -> Slots:
    """Returns empty slots.

    Args:
      key: a key of the same kind as those of texts.
      cfg: the model.
      slots: B.
      length: S, tokens of prompt and answer together that a slot has room for.
      stops: most stop ids that a text may have.
      kind: the caches' dtype.
      how: layout.
    """
    caches = []
    for layer in cfg.layers:
        shape = (slots, length, layer.attention.kv_heads, layer.attention.head_dim)
        caches.append({name: jnp.zeros(shape, kind) for name in ("key", "value")})
    count = jnp.zeros(slots, jnp.int32)
    empty = Slots(
        caches=caches,
        token=count,
        length=count,
        made=count,
        limit=count,
        active=jnp.zeros(slots, bool),
        stops=jnp.full((slots, stops), -1, jnp.int32),
        keys=jnp.broadcast_to(key, (slots,)),
        sampling=Sampling(jnp.zeros(slots), count, jnp.ones(slots)),
    )
    return _placed(empty, how)


@partial(jax.jit, static_argnames=("gap", "cfg", "how"), donate_argnames="slots")
def admit(
    params: Any,
    slots: Slots,
    inputs: jax.Array,
    length: jax.Array,
    requests: SlotRequests,
    *,
    gap: int,
    cfg: DecoderConfig,
    how: How,
) -> tuple[Slots, Made]:
    """Reads a prompt, once, into one slot or more, and draws the first token of each.

    Args:
      params: tree of `transformer.by_layer`.
      slots: the state; it is donated.
      inputs: int32 [T], ids, or [T, D], embeddings as from `decoder.embed`; padded after `length`
        with any valid ids, or with zeros.
      length: int32 scalar, 1 to T.
      requests: the slots, which drop their former texts, and the settings of the new ones.
      gap: positions that stay free behind the prompt.
      cfg: the model.
      how: layout, implementations, type of activations.

    Returns:
      The new state, and the first tokens as [1, n].
    """
    logits, read = _read(params, inputs, length, slots.caches[0]["key"].dtype, gap, cfg, how)
    keys, most = jnp.stack(requests.keys), requests.slots.shape[0]

    def body(row, carry):
        # One by one, so that each gets the same bits as if it came alone.
        slots, draws, active = carry
        one = jax.tree.map(lambda x: x[row], requests.sampling)
        first = _draw(logits, keys[row, None], jnp.zeros(1, jnp.int32), _row(one))
        slots = _seat(slots, requests, row, read, length, first, keys[row], one)
        put = lambda whole, new: whole.at[0, row].set(new[0])  # noqa: E731
        return (
            slots,
            jax.tree.map(put, draws, first),
            active.at[row].set(slots.active[requests.slots[row]]),
        )

    blank = jnp.zeros((1, most), jnp.float32)
    draws = Draw(jnp.zeros((1, most), jnp.int32), blank, blank)
    carry = (slots, draws, jnp.zeros(most, bool))
    slots, draws, active = jax.lax.fori_loop(0, requests.count, body, carry)
    counts = (jnp.arange(most) < requests.count).astype(jnp.int32)
    return _placed(slots, how), _whole(Made(draws, counts, active), how)


@partial(jax.jit, static_argnames=("most", "cfg", "how"), donate_argnames="slots")
def step(
    params: Any,
    slots: Slots,
    count: jax.Array,
    wake: jax.Array,
    *,
    most: int,
    cfg: DecoderConfig,
    how: How,
) -> tuple[Slots, Made]:
    """Draws up to `count` tokens for every active slot, in one dispatch.

    Args:
      params: tree of `transformer.by_layer`.
      slots: the state; it is donated.
      count: int32 scalar, at most `most`.
      wake: int32 scalar, returns once this many texts have ended, as requests wait for slots; 0
        for no such limit.
      most: n, the length of the returned arrays.
      cfg: the model.
      how: layout, implementations, type of activations.

    Returns:
      The new state, and the tokens [n, B].
    """
    began, rows = slots.active, slots.token.shape[0]

    def go_on(carry):
        number, slots, _, _ = carry
        ended = (began & ~slots.active).sum()
        return (number < count) & slots.active.any() & ((wake == 0) | (ended < wake))

    def body(carry):
        number, slots, draws, counts = carry
        counts = counts + slots.active
        slots, new = _advance(params, slots, cfg, how)
        put = lambda whole, row: jax.lax.dynamic_update_index_in_dim(whole, row, number, 0)  # noqa: E731
        return number + 1, slots, jax.tree.map(put, draws, new), counts

    blank = jnp.zeros((most, rows), jnp.float32)
    empty = Draw(jnp.zeros((most, rows), jnp.int32), blank, blank)
    carry = (jnp.int32(0), slots, empty, jnp.zeros(rows, jnp.int32))
    _, slots, draws, counts = jax.lax.while_loop(go_on, body, carry)
    return slots, _whole(Made(draws, counts, slots.active), how)


@partial(jax.jit, donate_argnames="slots")
def retire(slots: Slots, slot: jax.Array) -> Slots:
    """Ends the sequence of slot `slot`, an int32 scalar; the other slots continue."""
    return slots.replace(active=slots.active.at[slot].set(False))


def padded(stop_ids: Sequence[int], room: int) -> np.ndarray:
    """Stop ids as int32 [room], filled with -1."""
    stops = np.full(room, -1, np.int32)
    stops[: len(stop_ids)] = stop_ids
    return stops


def _read(params, inputs, length, kind, gap, cfg, how):
    """Scores of the token after a prompt, [1, V], and the prompt's cache of each layer."""
    inputs = inputs[None] if inputs.ndim == 1 else inputs[None].astype(kind)
    return decoder.prefill(params, inputs, length[None], gap=gap, cfg=cfg, how=how)


def _take_over(whole, rows, slot):
    """The cache [B, S, K, C] with all rows of a slot replaced, by [1, T, K, C] and zeros."""
    # In two steps: rows padded to S would be kept for all layers until the last slot has them.
    blank = jnp.zeros((1, *whole.shape[1:]), whole.dtype)
    whole = jax.lax.dynamic_update_slice(whole, blank, (slot, 0, 0, 0))
    return jax.lax.dynamic_update_slice(whole, rows.astype(whole.dtype), (slot, 0, 0, 0))


def _row(sampling):
    return jax.tree.map(lambda x: x[None], sampling)


def _seat(slots: Slots, requests, row, read, length, first, key, sampling) -> Slots:
    """The state with a request in its slot, whose prompt was read and first token drawn."""
    slot, stops, limit = (x[row] for x in (requests.slots, requests.stops, requests.limit))
    goes_on = ~((first.ids[0] == stops).any() | (limit <= 1))
    return Slots(
        caches=jax.tree.map(lambda whole, rows: _take_over(whole, rows, slot), slots.caches, read),
        token=slots.token.at[slot].set(first.ids[0]),
        length=slots.length.at[slot].set(length),
        made=slots.made.at[slot].set(1),
        limit=slots.limit.at[slot].set(limit),
        active=slots.active.at[slot].set(goes_on),
        stops=slots.stops.at[slot].set(stops),
        keys=slots.keys.at[slot].set(key),
        sampling=jax.tree.map(lambda x, y: x.at[slot].set(y), slots.sampling, sampling),
    )


def _advance(params, slots: Slots, cfg, how) -> tuple[Slots, Draw]:
    """Draws one more token for every active slot; the others are computed too, and ignored."""
    logits, caches = decoder.step(params, slots.token, slots.length, slots.caches, cfg=cfg, how=how)
    active = slots.active
    heat = jnp.where(active, slots.sampling.temperature, 0.0)
    new = _draw(logits, slots.keys, slots.made, slots.sampling.replace(temperature=heat))
    made = slots.made + active
    stopped = (new.ids[:, None] == slots.stops).any(-1) | (made >= slots.limit)
    slots = slots.replace(
        caches=caches,
        token=jnp.where(active, new.ids, slots.token),
        length=slots.length + active,
        made=made,
        active=active & ~stopped,
    )
    return _placed(slots, how), new


def _draw(logits, keys, number, sampling) -> Draw:
    return draw(logits, sampling, key=jax.vmap(jax.random.fold_in)(keys, number))


def _placed(slots: Slots, how) -> Slots:
    """Shards the caches like activations; replicates the rest, which is small."""
    caches = jax.tree.map(lambda x: constrain(x, _CACHE, how.layout), slots.caches)
    return _whole(slots.replace(caches=[]), how).replace(caches=caches)


def _whole(tree, how):
    """Replicates arrays, so that every process can read them."""
    return jax.tree.map(lambda x: constrain(x, (None,) * jnp.ndim(x), how.layout), tree)
