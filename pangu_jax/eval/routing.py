"""The experts a model selects on text."""

from functools import partial
from typing import Any

import jax
import numpy as np
from einops import rearrange

from pangu_jax.core.errors import InputError
from pangu_jax.models import decoder
from pangu_jax.nn.how import HOW, How


def chosen_experts(
    params: Any,
    batches: Any,
    *,
    cfg: decoder.DecoderConfig,
    how: How = HOW,
) -> list[np.ndarray]:
    """The experts of every token, by routed layer.

    Args:
      params: tree of `decoder.spec(cfg)`.
      batches: dicts with tokens, segments and positions, int32 [B, T]; padding is left out.
      cfg: a model with at least one routed layer.
      how: layout, implementations, and the type of activations.

    Returns:
      One int32 [tokens, experts per token] array per routed layer, in order of layers; experts are
      numbered over all groups.

    Raises:
      InputError: the model has no routed layer.
    """
    if all(layer.moe is None for layer in cfg.layers):
        raise InputError("the model has no routed layer")
    run = jax.jit(partial(_ids, cfg=cfg, how=how))
    layers: list[list[np.ndarray]] = []
    for batch in batches:
        real = rearrange(np.asarray(batch["segments"]), "b t -> (b t)") > 0
        found = run(params, *(batch[name] for name in ("tokens", "segments", "positions")))
        flat = [
            ids[real]
            for part in found
            for ids in rearrange(np.asarray(part), "l b t g k -> l (b t) (g k)")
        ]
        layers = layers or [[] for _ in flat]
        for layer, ids in zip(layers, flat, strict=True):
            layer.append(ids)
    return [np.concatenate(layer) for layer in layers]


def _ids(params, tokens, segments, positions, **options):
    out = decoder.apply(params, tokens, segments=segments, positions=positions, **options)
    return [stats.ids for stats in out.router if stats is not None]
