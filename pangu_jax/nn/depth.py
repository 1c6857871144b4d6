"""Layers that tokens may skip: a router decides for each token whether it runs the layer.

It is routing with two experts in one group, of which each token gets one: the layer (0) and leaving
the token as it is (1). The layer's change is weighed by its probability, so that the router learns:

    x + p (layer(x) - x)   where p = softmax(x R)[0] >= 1/2, and x elsewhere

A token's choice hangs on the token alone, so decoding makes that of training. Keys and values are
those of all tokens, skipped or not. Every token is computed and the skipped ones are masked: it
shows how deep a model wants to think about what, and saves no time.

Source: arXiv 2404.02258 (mixture of depths), section 3, with a choice by the token and a share that
is aimed at where the paper has the best tokens of a row, which looks at later tokens; our reading.
"""

from typing import Any

import jax
import jax.numpy as jnp
from einops import parse_shape, rearrange

from pangu_jax.core.spec import Normal, Spec
from pangu_jax.nn.moe import RouterStats, router_stats
from pangu_jax.ops.routing import router_weights

RUN = 0  # the "expert" that is the layer


def depth_spec(embed: int) -> dict[str, Any]:
    """Spec of a layer's router for model width `embed`."""
    return {"kernel": Spec((embed, 1, 2), ("embed", None, None), Normal(0.02))}


def skip(
    params: dict[str, Any], x: jax.Array, y: jax.Array, mask: jax.Array | None = None
) -> tuple[jax.Array, RouterStats]:
    """The layer's output for tokens routed through it, and its input for the rest.

    Args:
      params: tree of `depth_spec`.
      x: [B, T, D], what the layer read.
      y: [B, T, D], what it gave.
      mask: bool [B, T], false for padding, which the statistics leave out; None for no padding.

    Returns:
      [B, T, D] in the type of `x`, and the router's statistics: of `load` and `prob_sum`, [1, 2],
      the first is the layer's.
    """
    shape = parse_shape(x, "b t _")
    weights, ids, probs = router_weights(
        rearrange(x, "b t d -> (b t) d"), params["kernel"], None, k=1
    )
    share = jnp.where(ids == RUN, weights, 0).reshape(*x.shape[:2], 1)
    return x + share.astype(x.dtype) * (y - x), router_stats(ids, probs, mask, shape)
