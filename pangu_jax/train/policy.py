"""The policy loss of a decoder in the form the training step takes."""

from typing import Any

import jax

from pangu_jax.losses.language import token_log_probs
from pangu_jax.losses.policy import policy_loss
from pangu_jax.losses.policy_config import PolicyConfig
from pangu_jax.models import decoder
from pangu_jax.nn.how import HOW, How
from pangu_jax.train.step import Loss


def answer_log_probs(
    params: Any,
    batch: Any,
    *,
    cfg: decoder.DecoderConfig,
    temperature: float = 1.0,
    chunk: int | None = None,
    how: How = HOW,
) -> jax.Array:
    """Log-probabilities of labels, in nats, as the engine reports them for its samples.

    Args:
      params: tree of `decoder.spec(cfg)`.
      batch: tokens, labels and segments, int32 [B, T]; segments are 0 for padding.
      cfg: the model.
      temperature: the sampling temperature of the tokens.
      chunk: tokens whose logits are held at once; None as `losses.chunked.tokens_at_once`.
      how: layout, implementations, type of activations, and what backward recomputes.

    Returns:
      float32 [B, T].
    """
    out = decoder.apply(params, batch["tokens"], cfg=cfg, segments=batch["segments"], how=how)
    kernel, softcap = decoder.head_kernel(params), cfg.logit_softcap
    more: Any = {"softcap": softcap, "temperature": temperature, "chunk": chunk}
    more["layout"] = how.layout
    return token_log_probs(out.hidden, kernel, batch["labels"], **more)


def answer_loss(
    cfg: decoder.DecoderConfig,
    policy: PolicyConfig,
    *,
    temperature: float = 1.0,
    chunk: int | None = None,
    how: How = HOW,
) -> Loss:
    """`policy_loss` of a decoder; routed layers have no balance loss here.

    Args:
      cfg: the model.
      policy: the loss.
      temperature: the sampling temperature of the tokens.
      chunk: tokens whose logits are held at once; None as `losses.chunked.tokens_at_once`.
      how: layout, implementations, type of activations, and what backward recomputes.

    Returns:
      loss(params, None, batch, key); the batch has the inputs of `answer_log_probs`, behavior and
      mask, float32 [B, T], advantage, float32 [B], and, if needed, proximal and reference,
      float32 [B, T].
    """

    def loss(params, frozen, batch, key):
        del frozen, key
        found = answer_log_probs(
            params, batch, cfg=cfg, temperature=temperature, chunk=chunk, how=how
        )
        return policy_loss(
            found,
            batch["behavior"],
            batch["advantage"],
            batch["mask"],
            cfg=policy,
            proximal=batch.get("proximal"),
            reference=batch.get("reference"),
        )

    return loss
