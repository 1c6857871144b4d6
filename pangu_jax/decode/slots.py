"""The state of slots that decode side by side, one sequence each, and how it changes.

Token i of a slot's text is in row i of its cache, so texts of any lengths share a step, and the
mask is that of positions. A prompt is read alone, in a program for its length rounded up, and takes
over the slot with all of its rows: nothing is left of who had it before. Steps read the newest
token of every slot and draw the next; so what a text gets depends neither on the others nor on when
they come and go.

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
      caches: {"key": [B, S, K, C], "value": the same} of each layer.
      token: int32 [B], the newest token, which is not in the cache yet.
      length: int32 [B], tokens in the cache.
      made: int32 [B], tokens drawn for the text.
      limit: int32 [B], how many it gets at most.
      active: bool [B], whether the slot has an unfinished sequence.
      stops: int32 [B, N], the text ends with one of these; -1 is none.
      keys: PRNG keys [B]; token n is drawn with fold_in(key, n).
      sampling: how each slot's tokens are drawn.
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
class SlotRequest:
    """What a slot is asked to do after a prompt; the values of one row of `Slots`.

    Attributes:
      limit: int32 scalar.
      stops: int32 [N].
      key: a PRNG key.
      sampling: of one row.
    """

    limit: Any
    stops: Any
    key: Any
    sampling: Sampling


@struct.dataclass
class Made:
    """What was drawn.

    Attributes:
      draws: int32 and float32 [N, B]; those of slot b are its first `count[b]`.
      count: int32 [B].
      active: bool [B], whose sequences are unfinished.
      version: int32 scalar, of the weights that all of it was made with.
    """

    draws: Draw
    count: Any
    active: Any
    version: Any


@partial(jax.jit, static_argnames=("cfg", "slots", "length", "stops", "kind", "how"))
def init(
    key: jax.Array, *, cfg: DecoderConfig, slots: int, length: int, stops: int, kind: Any, how: How
) -> Slots:
    """Slots without texts.

    Args:
      key: a key of the kind that texts bring.
      cfg: the model.
      slots: B.
      length: S, tokens of prompt and answer together that a slot has room for.
      stops: N, stop ids that a text may have.
      kind: the caches' type.
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


@partial(jax.jit, static_argnames=("cfg", "how"), donate_argnames="slots")
def admit(
    params: Any,
    slots: Slots,
    slot: jax.Array,
    inputs: jax.Array,
    length: jax.Array,
    request: SlotRequest,
    version: jax.Array,
    *,
    cfg: DecoderConfig,
    how: How,
) -> tuple[Slots, Made]:
    """Reads a prompt into a slot and draws its first token.

    Args:
      params: tree of `transformer.by_layer`.
      slots: the state; it is donated.
      slot: int32 scalar, which slot; whatever it did is over.
      inputs: int32 [T], ids, or [T, D], what `decoder.embed` would give for ids; padded behind
        `length` with ids that there are, or with zeros.
      length: int32 scalar, 1 to T.
      request: what to do then.
      version: int32 scalar, of the weights.
      cfg: the model.
      how: layout, implementations, type of activations.

    Returns:
      The new state, and the first token as [1, 1].
    """
    logits, read = _read(params, inputs, length, slots.caches[0]["key"].dtype, cfg, how)
    caches = jax.tree.map(lambda whole, rows: _take_over(whole, rows, slot), slots.caches, read)
    row = jax.tree.map(lambda x: x[None], (request.key, request.sampling))
    first = _draw(logits, row[0], jnp.zeros(1, jnp.int32), row[1])
    goes_on = ~((first.ids[0] == request.stops).any() | (request.limit <= 1))
    slots = Slots(
        caches=caches,
        token=slots.token.at[slot].set(first.ids[0]),
        length=slots.length.at[slot].set(length),
        made=slots.made.at[slot].set(1),
        limit=slots.limit.at[slot].set(request.limit),
        active=slots.active.at[slot].set(goes_on),
        stops=slots.stops.at[slot].set(request.stops),
        keys=slots.keys.at[slot].set(request.key),
        sampling=jax.tree.map(lambda x, y: x.at[slot].set(y), slots.sampling, request.sampling),
    )
    draws = jax.tree.map(lambda x: x[None], first)
    made = Made(draws, jnp.ones(1, jnp.int32), goes_on[None], version)
    return _placed(slots, how), _whole(made, how)


@partial(jax.jit, static_argnames=("most", "cfg", "how"), donate_argnames="slots")
def step(
    params: Any,
    slots: Slots,
    count: jax.Array,
    wake: jax.Array,
    version: jax.Array,
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
      wake: bool scalar, whether to return as soon as a text ends, as somebody waits for the slot.
      version: int32 scalar, of the weights.
      most: N of what is returned.
      cfg: the model.
      how: layout, implementations, type of activations.

    Returns:
      The new state, and the tokens [N, B].
    """
    began, rows = slots.active, slots.token.shape[0]

    def go_on(carry):
        number, slots, _, _ = carry
        ended = (began & ~slots.active).any()
        return (number < count) & slots.active.any() & ~(wake & ended)

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
    return slots, _whole(Made(draws, counts, slots.active, version), how)


@partial(jax.jit, donate_argnames="slots")
def retire(slots: Slots, slot: jax.Array) -> Slots:
    """Ends the sequence of a slot; the other slots continue."""
    return slots.replace(active=slots.active.at[slot].set(False))


def padded(stop_ids: Sequence[int], room: int) -> np.ndarray:
    """Stop ids as int32 [room], filled with -1."""
    stops = np.full(room, -1, np.int32)
    stops[: len(stop_ids)] = stop_ids
    return stops


def _read(params, inputs, length, kind, cfg, how):
    """Scores of the token after a prompt, [1, V], and the prompt's cache of each layer."""
    inputs = inputs[None] if inputs.ndim == 1 else inputs[None].astype(kind)
    return decoder.prefill(params, inputs, length[None], cfg=cfg, how=how)


def _take_over(whole, rows, slot):
    """The cache [B, S, K, C] with all rows of a slot replaced, by [1, T, K, C] and zeros."""
    room = whole.shape[1] - rows.shape[1]
    rows = jnp.pad(rows.astype(whole.dtype), ((0, 0), (0, room), (0, 0), (0, 0)))
    return jax.lax.dynamic_update_slice(whole, rows, (slot, 0, 0, 0))


def _advance(params, slots: Slots, cfg, how) -> tuple[Slots, Draw]:
    """One more token for every active slot; the others are computed too, and ignored."""
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
    """The caches split as activations are; the rest whole everywhere, as it is small."""
    caches = jax.tree.map(lambda x: constrain(x, _CACHE, how.layout), slots.caches)
    return _whole(slots.replace(caches=[]), how).replace(caches=caches)


def _whole(tree, how):
    """Whole on every device, so that every process can read it."""
    return jax.tree.map(lambda x: constrain(x, (None,) * jnp.ndim(x), how.layout), tree)
