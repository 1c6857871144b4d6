"""The decoder one layer at a time, where a measurement needs more than `stats.sweep` keeps."""

from collections.abc import Iterator
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from pangu_jax.models import decoder
from pangu_jax.models.decoder import DecoderConfig
from pangu_jax.nn.attention import attention
from pangu_jax.nn.mlp import mlp
from pangu_jax.nn.norm import rms_norm
from pangu_jax.nn.rotary import rotation


def norm_inputs(
    params: dict[str, Any], tokens: jax.Array, *, cfg: DecoderConfig
) -> Iterator[tuple[str, jax.Array]]:
    """What every norm over the model width reads: ("<layer>/<norm>" or "norm", [B, T, D]).

    Args:
      params: tree of `decoder.spec(cfg)`, dense layers.
      tokens: int32 [B, T].
      cfg: the model.
    """
    x = decoder.embed(params, tokens)
    positions = jnp.arange(tokens.shape[1], dtype=jnp.int32)[None]
    index = 0
    for run, (layer, number) in enumerate(decoder.run_lengths(cfg)):
        turn = rotation(positions, layer.attention.head_dim, cfg.rope)
        for place in range(number):
            x, found = _layer(params["runs"][run], jnp.int32(place), x, turn, eps=cfg.norm_eps)
            for name, value in found.items():
                yield f"{index}/{name}", value
            index += 1
    yield "norm", x


@partial(jax.jit, static_argnames="eps")
def _layer(run, place, x, turn, *, eps):
    weights = jax.tree.map(lambda w: jax.lax.dynamic_index_in_dim(w, place, keepdims=False), run)
    found = {"attention_norm": x}

    def add(x, name, branch):
        if name in weights:
            found[name] = branch
            branch = rms_norm(weights[name], branch, eps=eps)
        return x + branch

    normed = rms_norm(weights["attention_norm"], x, eps=eps)
    x = add(
        x, "attention_post_norm", attention(weights["attention"], normed, turn, None, eps=eps)[0]
    )
    found["mlp_norm"] = x
    branch = mlp(weights["mlp"], rms_norm(weights["mlp_norm"], x, eps=eps))
    return add(x, "mlp_post_norm", branch), found
