"""First-order Taylor importance (LLM-Pruner style): the loss's gradient times the weights.

Source: arXiv 2305.11627, the first-order term of its element-wise importance: the sum over a unit's
weights of |weight * gradient|.
"""

import dataclasses
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from einops import reduce

from pangu_jax.losses.language import cross_entropy
from pangu_jax.models import decoder, transformer
from pangu_jax.models.decoder import DecoderConfig
from pangu_jax.nn.how import HOW, How


def saliency(
    params: dict[str, Any],
    windows: np.ndarray,
    *,
    cfg: DecoderConfig,
    batch: int = 8,
    how: How = HOW,
) -> list[dict[str, np.ndarray]]:
    """Taylor scores per layer: {"heads": [K, Q], "groups": [K], "channels": [F]}, float64.

    Q counts the query heads per KV head. The gradients of all parameters are needed at once, in
    their own dtype.

    Args:
      params: tree of `decoder.spec(cfg)`.
      windows: int32 [windows, T]; each token predicts the next.
      cfg: a dense decoder.
      batch: windows computed at once.
      how: implementations, type of activations, and what backward recomputes; by default all of a
        layer.
    """
    how = dataclasses.replace(how, remat=how.remat or "full")
    total = None
    for first in range(0, len(windows), batch):
        tokens = jnp.asarray(windows[first : first + batch], jnp.int32)
        found = _gradient(params, tokens, cfg=cfg, how=how)["runs"]
        total = found if total is None else jax.tree.map(jnp.add, total, found)
    products = jax.tree.map(lambda w, g: jnp.abs(w * g), params["runs"], total)
    return [
        _units(jax.tree.map(lambda x, i=i: np.asarray(x[i], np.float64), run))
        for run, (_, number) in zip(products, transformer.run_lengths(cfg), strict=True)
        for i in range(number)
    ]


@partial(jax.jit, static_argnames=("cfg", "how"))
def _gradient(params, tokens, *, cfg, how):
    """The gradient of the summed loss; compiled once for all models of a form."""

    def loss(params):
        out = decoder.apply(params, tokens[:, :-1], cfg=cfg, how=how)
        weights = jnp.ones(tokens[:, 1:].shape, jnp.float32)
        nats, _ = cross_entropy(
            out.hidden,
            decoder.head_kernel(params),
            tokens[:, 1:],
            weights,
            softcap=cfg.logit_softcap,
            chunk=512,
        )
        return nats

    return jax.grad(loss)(params)


def _units(layer: dict[str, Any]) -> dict[str, np.ndarray]:
    attention, mlp = layer["attention"], layer["mlp"]
    query, key, value, out = (attention[n]["kernel"] for n in ("query", "key", "value", "out"))
    heads = reduce(query, "d k q c -> k q", "sum") + reduce(out, "k q c d -> k q", "sum")
    shared = sum(reduce(kernel, "d k c -> k", "sum") for kernel in (key, value))
    channels = mlp["gate"]["kernel"].sum(0) + mlp["up"]["kernel"].sum(0)
    return {
        "heads": heads,
        "groups": heads.sum(1) + shared,
        "channels": channels + mlp["down"]["kernel"].sum(1),
    }
