"""The loss of language modelling, as the training step wants it, and a training with it."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from pangu_jax.checkpoint import store
from pangu_jax.losses.balance import balance
from pangu_jax.losses.language import cross_entropy
from pangu_jax.models import decoder, transformer
from pangu_jax.nn.how import HOW, How
from pangu_jax.train.loop import LoopConfig, train
from pangu_jax.train.optimizer import OptimizerConfig, make_optimizer, schedule
from pangu_jax.train.step import Loss


def language_loss(
    cfg: decoder.DecoderConfig,
    *,
    aux_weight: float = 0.001,
    chunk: int = 1024,
    how: How = HOW,
) -> Loss:
    """Next-token cross-entropy plus the experts' auxiliary loss.

    Args:
      cfg: the model.
      aux_weight: alpha of the auxiliary loss, which is averaged over the routed layers and
        defined on a microbatch.
      chunk: tokens whose logits are held at once.
      how: layout, implementations, type of activations, and what backward recomputes.

    Returns:
      loss(params, None, batch, key) -> (sum in nats, tokens, {"nats", "aux"}); the batch has
      tokens, labels, weights, segments and positions, each [B, T].
    """

    def loss(params, frozen, batch, key):
        del frozen
        out = decoder.apply(
            params,
            batch["tokens"],
            cfg=cfg,
            positions=batch["positions"],
            segments=batch["segments"],
            key=key,
            how=how,
        )
        with jax.named_scope("head"):
            kernel = decoder.head_kernel(params)
            nats, weight = cross_entropy(
                out.hidden,
                kernel,
                batch["labels"],
                batch["weights"],
                softcap=cfg.logit_softcap,
                chunk=chunk,
            )
        aux = auxiliary(out.router, cfg)
        if aux is None:
            return nats, weight, {"nats": nats}
        return nats + aux_weight * aux * weight, weight, {"nats": nats, "aux": aux * weight}

    return loss


def auxiliary(router: list, cfg: decoder.DecoderConfig) -> jax.Array | None:
    """Mean of the auxiliary loss over the routed layers, or None where there are none."""
    layers = []
    for stats, (layer, _) in zip(router, transformer.run_lengths(cfg), strict=True):
        if stats is not None:
            active = layer.moe.groups * layer.moe.top_k
            layers.append(balance(stats.load, stats.prob_sum, stats.tokens, active=active))
    return jnp.concatenate(layers).mean() if layers else None


def train_language(
    cfg: decoder.DecoderConfig,
    batches: Callable[[int], Iterator[Any]],
    folder: str | Path,
    *,
    loop: LoopConfig,
    optimizer: OptimizerConfig,
    label: str = "train",
    **options: Any,
) -> Any:
    """Trains a model from scratch, or goes on from the last checkpoint in `folder`.

    Args:
      cfg: the model; kept in the folder, which commands then take as a checkpoint.
      batches: as in `loop.train`.
      folder: the run's folder.
      loop: length and checkpoints.
      optimizer: AdamW and its schedule.
      label: what the progress line says.
      options: further arguments of `language_loss`.

    Returns:
      The parameters after the last step.

    Raises:
      InputError: as in `loop.train`.
      Stopped: as in `loop.train`.
    """
    store.save_model(cfg, folder)
    state = train(
        language_loss(cfg, **options),
        decoder.spec(cfg),
        batches,
        cfg=loop,
        optimizer=make_optimizer(optimizer, loop.steps),
        schedule=schedule(optimizer, loop.steps),
        folder=folder,
        label=label,
    )
    return state.params
