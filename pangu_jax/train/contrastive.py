"""The contrastive loss as the training step wants it: pairs are embedded, and compared at once."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax

from pangu_jax.core.errors import InputError
from pangu_jax.losses.contrastive import info_nce
from pangu_jax.models import embedder, encoder
from pangu_jax.models.embedder import EmbedderConfig
from pangu_jax.models.encoder import EncoderConfig
from pangu_jax.models.pooling_config import check_pooling
from pangu_jax.nn.how import HOW, How
from pangu_jax.sharding.layout import Layout
from pangu_jax.train.step import BatchLoss


def contrastive_loss(
    embed: Callable[[Any, Any, jax.Array], jax.Array],
    *,
    temperature: float = 0.05,
    symmetric: bool = False,
    layout: Layout | None = None,
) -> BatchLoss:
    """InfoNCE over the whole batch, however many microbatches and devices it is embedded in.

    Args:
      embed: `embed(params, inputs, key) -> [B, D]`, a row for each of the inputs', which do not see
        each other.
      temperature: what similarities are divided by.
      symmetric: whether documents look for their queries, too.
      layout: where arrays live; None is one device.

    Returns:
      The loss. Its batch has "queries" and "documents", inputs of `embed` of B rows each, and, if
      wanted, "negatives", those of as many hard ones: inputs with leading axes [B, n] (every query
      meets all of the batch's); and "weights", float [B], 0 for padding. It counts pairs and names
      "accuracy", the share of queries whose own document is nearest.

    Raises:
      InputError: the temperature is not above 0.
    """
    if not temperature > 0:
        raise InputError(f"temperature must be above 0, got {temperature}")

    def rows(params, frozen, batch, key):
        del frozen
        keys = jax.random.split(key, 3)
        found = {
            name: embed(params, batch[name], key)
            for name, key in zip(("queries", "documents"), keys[:2], strict=True)
        }
        if "negatives" in batch:
            many = jax.tree.leaves(batch["negatives"])[0].shape[:2]
            flat = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), batch["negatives"])
            vectors = embed(params, flat, keys[2])
            found["negatives"] = vectors.reshape(*many, vectors.shape[-1])
        return found

    def compare(found, frozen, batch):
        del frozen
        nats, weight, right = info_nce(
            found["queries"],
            found["documents"],
            found.get("negatives"),
            batch.get("weights"),
            temperature=temperature,
            symmetric=symmetric,
            layout=layout,
        )
        return nats, weight, {"accuracy": right}

    return BatchLoss(rows, compare)


def text_vectors(
    cfg: EncoderConfig | EmbedderConfig, *, how: How = HOW
) -> Callable[[Any, Any, jax.Array], jax.Array]:
    """The `embed` of `contrastive_loss` for a model of texts: vectors of length 1, float32 [B, D].

    Args:
      cfg: the model, which pools as it says; its prefix is the caller's to put before texts.
      how: layout, implementations, type of activations, and what backward recomputes.

    Returns:
      `embed(params, inputs, key)`, whose inputs have "tokens", int32 [B, T], and "valid", bool
      [B, T]; the key is not used.

    Raises:
      InputError: nobody said how the model pools.
    """
    check_pooling(cfg)
    scaled = dataclasses.replace(cfg, normalize=True)

    def embed(params: Any, inputs: Any, key: jax.Array) -> jax.Array:
        del key
        tokens, valid = inputs["tokens"], inputs["valid"]
        if isinstance(scaled, EncoderConfig):
            return encoder.embed(params, tokens, valid, cfg=scaled, how=how)
        return embedder.embed(params, tokens, valid, cfg=scaled, how=how)

    return embed
