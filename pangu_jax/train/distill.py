"""Online distillation: the teacher predicts the student's own batches, step by step."""

from collections.abc import Sequence

import jax
import numpy as np

from pangu_jax.core.errors import InputError
from pangu_jax.losses.distill import hidden_state_loss, logit_kl
from pangu_jax.losses.language import cross_entropy
from pangu_jax.models import decoder
from pangu_jax.nn.how import HOW, How, in_training
from pangu_jax.train.distill_config import HIDDEN_WEIGHT, KL_WEIGHT, LM_WEIGHT, TEMPERATURE
from pangu_jax.train.step import Loss


def distill_loss(
    teacher_cfg: decoder.DecoderConfig,
    cfg: decoder.DecoderConfig,
    *,
    kl_weight: float = KL_WEIGHT,
    lm_weight: float = LM_WEIGHT,
    hidden_weight: float = HIDDEN_WEIGHT,
    hidden: Sequence[int] | None = None,
    temperature: float = TEMPERATURE,
    chunk: int | None = None,
    how: How = HOW,
) -> Loss:
    """KL to the teacher's predictions plus the language-modeling loss.

    Args:
      teacher_cfg: the teacher, whose parameters the loss gets as `frozen`.
      cfg: the student, of the same vocabulary.
      kl_weight: of KL(teacher || student).
      lm_weight: of the cross-entropy with the text.
      hidden_weight: of the match of the last hidden states.
      hidden: the teacher's channels that the student kept, if their widths differ.
      temperature: softens both predictions in the KL.
      chunk: tokens whose logits are held at once; None as `losses.chunked.tokens_at_once`.
      how: layout, implementations, type of activations, and what backward recomputes.

    Returns:
      loss(params, teacher, batch, key) -> (sum, tokens, {"nats", "kl"[, "hidden"]}), all sums over
      tokens.

    Raises:
      InputError: different vocabularies, negative weights, or widths that do not match.
    """
    if teacher_cfg.vocab != cfg.vocab:
        raise InputError(
            f"the teacher's vocabulary has {teacher_cfg.vocab} ids, the student's {cfg.vocab}"
        )
    if min(kl_weight, lm_weight, hidden_weight) < 0 or temperature <= 0:
        raise InputError("distillation weights must not be negative, the temperature positive")
    if hidden_weight and len(hidden or range(teacher_cfg.width)) != cfg.width:
        raise InputError(
            f"matching hidden states needs to know which {cfg.width} of the teacher's "
            f"{teacher_cfg.width} channels the student kept (plan.json)"
        )
    channels = None if hidden is None else np.asarray(hidden)

    def loss(params, teacher, batch, key):
        inputs = {"positions": batch["positions"], "segments": batch["segments"]}
        form = {"how": in_training(how), **inputs}
        out = decoder.apply(params, batch["tokens"], cfg=cfg, key=key, **form)
        theirs = decoder.apply(teacher, batch["tokens"], cfg=teacher_cfg, **form)
        target = jax.lax.stop_gradient(theirs.hidden)
        kernel, weights = decoder.head_kernel(params), batch["weights"]
        nats, weight = cross_entropy(
            out.hidden,
            kernel,
            batch["labels"],
            weights,
            softcap=cfg.logit_softcap,
            chunk=chunk,
            layout=how.layout,
        )
        kl = logit_kl(
            (out.hidden, kernel),
            (target, decoder.head_kernel(teacher)),
            weights,
            temperature=temperature,
            softcaps=(cfg.logit_softcap, teacher_cfg.logit_softcap),
            chunk=chunk,
        )
        total, metrics = lm_weight * nats + kl_weight * kl, {"nats": nats, "kl": kl}
        if hidden_weight:
            target = target if channels is None else target[..., channels]
            metrics["hidden"] = hidden_state_loss(out.hidden, target, weights)
            total = total + hidden_weight * metrics["hidden"]
        return total, weight, metrics

    return loss
