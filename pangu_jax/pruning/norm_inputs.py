"""Inputs of each norm, layer by layer, for measurements that need more than `stats.sweep` keeps."""

from collections.abc import Iterator
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from pangu_jax.models import decoder, transformer
from pangu_jax.models.decoder import DecoderConfig
from pangu_jax.nn.block import attention_half, mlp_half
from pangu_jax.nn.rotary import rotation

NORMS = ("attention_norm", "attention_post_norm", "mlp_norm", "mlp_post_norm")


def norm_inputs(
    params: dict[str, Any], tokens: jax.Array, *, cfg: DecoderConfig
) -> Iterator[tuple[str, jax.Array]]:
    """Inputs of every norm over the model width: ("<layer>/<norm>" or "norm", [B, T, D]).

    Args:
      params: tree of `decoder.spec(cfg)`, dense layers.
      tokens: int32 [B, T].
      cfg: the model.
    """
    x = decoder.embed(params, tokens, cfg=cfg)
    positions = jnp.arange(tokens.shape[1], dtype=jnp.int32)[None]
    index = 0
    for run, (layer, number) in enumerate(transformer.run_lengths(cfg)):
        turn = rotation(positions, layer.attention.head_dim, cfg.rope)
        for place in range(number):
            weights = params["runs"][run]
            x, found = _layer(weights, jnp.int32(place), x, turn, cfg=layer, eps=cfg.norm_eps)
            for name, value in found.items():
                yield f"{index}/{name}", value
            index += 1
    yield "norm", x


@partial(jax.jit, static_argnames=("cfg", "eps"))
def _layer(run, place, x, turn, *, cfg, eps):
    weights = jax.tree.map(lambda w: jax.lax.dynamic_index_in_dim(w, place, keepdims=False), run)
    found = {}

    def note(place, read):
        if place in NORMS:
            found[place] = read
        return read

    x, _ = attention_half(weights, x, turn, None, cfg=cfg, eps=eps, tap=note)
    x, _ = mlp_half(weights, x, cfg=cfg, eps=eps, tap=note)
    return x, found
