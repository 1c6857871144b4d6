"""The language-modeling loss in the form the training step takes, and training with it."""

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from pangu_jax.checkpoint import store
from pangu_jax.core.run_folder import Claim
from pangu_jax.core.tree import content_hash
from pangu_jax.losses.balance import load_balancing_loss
from pangu_jax.losses.language import cross_entropy
from pangu_jax.models import decoder, registry, transformer
from pangu_jax.nn.how import HOW, How, in_training
from pangu_jax.sharding.launch import first_process
from pangu_jax.train.language_config import AUX_WEIGHT
from pangu_jax.train.loop import train
from pangu_jax.train.loop_config import LoopConfig
from pangu_jax.train.optimizer import make_optimizer, schedule
from pangu_jax.train.optimizer_config import OptimizerConfig
from pangu_jax.train.step import Loss


def language_loss(
    cfg: decoder.DecoderConfig,
    *,
    aux_weight: float = AUX_WEIGHT,
    chunk: int | None = None,
    documents: int | None = None,
    how: How = HOW,
) -> Loss:
    """Next-token cross-entropy plus the experts' auxiliary loss.

    Args:
      cfg: the model.
      aux_weight: alpha of the auxiliary loss, which is averaged over the routed layers and
        defined on a microbatch.
      chunk: tokens whose logits a device holds at once; None as `losses.chunked.tokens_at_once`.
      documents: the most documents a row of the batches holds, or None; see `transformer.apply`.
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
            documents=documents,
            key=key,
            how=in_training(how),
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
                layout=how.layout,
            )
        aux = auxiliary(out.router, cfg)
        if aux is None:
            return nats, weight, {"nats": nats}
        return nats + aux_weight * aux * weight, weight, {"nats": nats, "aux": aux * weight}

    return loss


def auxiliary(router: list, cfg: decoder.DecoderConfig) -> jax.Array | None:
    """Mean of the auxiliary loss over the routed layers, a scalar, or None if there are none."""
    layers = []
    for stats, (layer, _) in zip(router, transformer.run_lengths(cfg), strict=True):
        if stats is not None:
            active = layer.moe.groups * layer.moe.top_k
            layers.append(
                load_balancing_loss(stats.load, stats.prob_sum, stats.tokens, active=active)
            )
    return jnp.concatenate(layers).mean() if layers else None


def train_language(
    cfg: decoder.DecoderConfig,
    batches: Callable[[int], Iterator[Any]],
    folder: str | Path,
    *,
    loop: LoopConfig,
    params: Any = None,
    optimizer: OptimizerConfig = OptimizerConfig(),
    aux_weight: float = AUX_WEIGHT,
    chunk: int | None = None,
    documents: int | None = None,
    how: How = HOW,
    label: str = "train",
) -> Any:
    """Trains a model, or resumes from the last checkpoint in `folder`.

    Args:
      cfg: the model; kept in the folder, which commands then take as a checkpoint, of bytes unless
        the caller keeps a tokenizer there, too (`data.tokenizer_save.tokenizer_files`).
      batches: as in `loop.train`; where several processes train, each one's own rows
        (`sharding.launch.batch_share`).
      folder: the run's folder; a run of another model or of other settings is refused.
      loop: length and checkpoints.
      params: float32 parameters to start from, whose buffers the training takes over; None draws
        them.
      optimizer: AdamW and its schedule.
      aux_weight: as in `language_loss`.
      chunk: as in `language_loss`.
      documents: as in `language_loss`.
      how: as in `language_loss`; parameters, optimizer state and batches are laid out by its
        layout, too.
      label: label of the progress line.

    Returns:
      The parameters after the last step.

    Raises:
      InputError: as in `loop.train` and `store.begin`.
      Stopped: as in `loop.train`.
    """
    # Without options that change results by rounding alone.
    settings = {
        "model": registry.to_json(cfg),
        "steps": loop.steps,
        "accumulate": loop.accumulate,
        "seed": loop.seed,
        "optimizer": optimizer,
        "aux_weight": aux_weight,
        "dtype": None if how.dtype is None else str(how.dtype),
    }
    if params is not None:
        settings["parameters"] = content_hash(params)
    with contextlib.ExitStack() as held:
        place: str | Path | Claim = folder
        if first_process():
            place = held.enter_context(store.begin(cfg, folder, settings))
        state = train(
            language_loss(cfg, aux_weight=aux_weight, chunk=chunk, documents=documents, how=how),
            decoder.spec(cfg),
            batches,
            cfg=loop,
            optimizer=make_optimizer(optimizer, loop.steps),
            schedule=schedule(optimizer, loop.steps),
            folder=place,
            params=params,
            label=label,
            layout=how.layout,
        )
    return state.params
