"""The one scan: a prefix, thoughts that are fed back, and a tail, over one key-value cache.

With n thoughts the naive form runs the whole model n + 1 times over all columns up to the next
thought. Here every column is computed once: the prefix as one block, the thoughts in one
`lax.scan` of one column each, the tail as one block, each reading the keys and values of all
columns before it. Gradients flow through all of them.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

from pangu_jax.models import decoder, transformer
from pangu_jax.nn.attention import LayerCache
from pangu_jax.nn.how import HOW, How
from pangu_jax.ops.attention import visible
from pangu_jax.reasoning.latent.feedback import Feedback, hidden


@struct.dataclass
class Reading:
    """A model's states on a batch.

    Attributes:
      hidden: [B, T, D], the state of every column, after the final norm.
      thoughts: [B, n, D], the inputs of the thoughts' slots.
    """

    hidden: jax.Array
    thoughts: jax.Array


def read(
    params: dict[str, Any],
    batch: dict[str, jax.Array],
    *,
    cfg: decoder.DecoderConfig,
    start: int,
    thoughts: int,
    feedback: Feedback = hidden,
    note: Callable[[jax.Array], None] | None = None,
    how: How = HOW,
) -> Reading:
    """Reads prefixes, thinks, and reads tails.

    Without thoughts it is `decoder.apply`, to the bit.

    Args:
      params: tree of `decoder.spec(cfg)`, whose layers are applied in loops; or of
        `transformer.by_layer`, which takes longer to compile and less to run.
      batch: tokens, positions and segments, int32 [B, T], as `slots.collate` makes them; T may end
        with the thoughts.
      cfg: the model.
      start: columns of the prefix, at least 1.
      thoughts: n, number of thoughts after it.
      feedback: maps the state before a thought to the thought's input.
      note: called with each layer's output in the tail, [B, T', D]; without thoughts, in all
        columns.
      how: implementations, type of activations; with `remat` the backward pass computes each
        thought again, and one turn of the loop over thoughts applies about `unroll` layers.

    Returns:
      The states, and the thoughts' inputs.

    Source: arXiv 2412.06769, section 3; one scan in place of its n + 1 passes is ours.
    """
    x = decoder.embed(params, batch["tokens"], cfg=cfg, how=how)
    places = {name: batch[name] for name in ("positions", "segments")}
    if not thoughts and note is None:
        out = transformer.apply(params, x, cfg=cfg, how=how, **places)
        return Reading(out.hidden, x[:, :0])
    # One query has nothing to gain from fused kernels, whose gradients want other shapes.
    how = dataclasses.replace(how, impl={"attention": "reference", **(how.impl or {})})
    body, after = _Body(params, places, cfg, how), start + thoughts
    if not thoughts:
        return Reading(body.block(x, 0, body.room([], x.shape[1]), note)[0], x[:, :0])

    def think(carry, column):
        state, caches = carry
        given = feedback(params, state).astype(x.dtype)
        states, caches = body.block(given[:, None], column, caches)
        return (states[:, 0], caches), (given, states[:, 0])

    before, caches = body.block(x[:, :start], 0, body.room([], start))
    if how.remat is not None:
        think = jax.checkpoint(think)
    columns = start + jnp.arange(thoughts, dtype=jnp.int32)
    begin = before[:, -1], body.room(caches, after)
    unroll = min(max((how.unroll or 1) // len(cfg.layers), 1), thoughts)
    (_, caches), (inputs, states) = jax.lax.scan(think, begin, columns, unroll=unroll)
    inputs, states = jnp.swapaxes(inputs, 0, 1), jnp.swapaxes(states, 0, 1)
    found = [before, states]
    if x.shape[1] > after:
        tail, room = x[:, after:], body.room(caches, x.shape[1])
        found.append(body.block(tail, after, room, note)[0])
    return Reading(jnp.concatenate(found, axis=1), inputs)


class _Body:
    """The layers, applied to stretches of columns."""

    def __init__(self, params, places, cfg, how):
        self._params, self._places, self._cfg, self._how = params, places, cfg, how

    def room(self, caches, length):
        """The caches with room for `length` columns; new ones if there are none."""
        if not caches:
            return [self._empty(heads, lead, length) for heads, lead in self._runs()]

        def grown(part):
            more = length - part.shape[-3]
            return jnp.pad(part, (*[(0, 0)] * (part.ndim - 3), (0, more), (0, 0), (0, 0)))

        return jax.tree.map(grown, caches)

    def _runs(self):
        """Attention and leading axes of each cache: one per run, or one per layer of `by_layer`."""
        if "layers" in self._params:
            return [(layer.attention, ()) for layer in self._cfg.layers]
        return [(layer.attention, (n,)) for layer, n in transformer.run_lengths(self._cfg)]

    def _empty(self, heads, lead, length):
        kind = self._how.dtype or self._params["embed"]["table"].dtype
        batch = self._places["positions"].shape[0]
        shape = (*lead, batch, length, heads.kv_heads, heads.head_dim)
        return jnp.zeros(shape, kind), jnp.zeros(shape, kind)

    def block(self, x, column, caches, note=None):
        """States of the columns from `column` on, and the caches with theirs.

        Columns that are not written yet have later positions, so none sees them.
        """
        width, length = x.shape[1], caches[0][0].shape[-3]
        at = {
            name: jax.lax.dynamic_slice_in_dim(place, column, width, axis=1)
            for name, place in self._places.items()
        }
        sources = {name: place[:, :length] for name, place in self._places.items()}

        def sees(heads):
            return visible(
                at["segments"],
                at["positions"],
                sources["segments"],
                sources["positions"],
                causal=True,
                window=heads.window,
            )

        more = {"cfg": self._cfg, "how": self._how, **({} if note is None else {"note": note})}
        if "layers" in self._params:
            written = [LayerCache(*cache, column) for cache in caches]
            x, found = transformer.unrolled(
                self._params["layers"],
                x,
                at["positions"],
                sees,
                written,
                **more,
            )
            caches = [(cache.key, cache.value) for cache in found]
        else:
            x, caches = transformer.with_caches(
                self._params["runs"],
                x,
                at["positions"],
                sees,
                caches,
                column,
                **more,
            )
        return transformer.final_norm(self._params, x, cfg=self._cfg), caches
