"""Distillation losses between a student's and a teacher's predictions."""

import jax
import jax.numpy as jnp

from pangu_jax.losses.chunked import chunked_sum, tokens_at_once
from pangu_jax.ops.soft_cap import soft_cap


def logit_kl(
    student: tuple[jax.Array, jax.Array],
    teacher: tuple[jax.Array, jax.Array],
    weights: jax.Array,
    *,
    temperature: float = 1.0,
    softcaps: tuple[float | None, float | None] = (None, None),
    chunk: int | None = None,
) -> jax.Array:
    """Summed KL(teacher || student) of the next token, in nats, times temperature squared.

    Tokens are taken `chunk` at a time, so no more than two arrays [chunk, V] are alive.

    Args:
      student: hidden states [B, T, D] and output projection [D, V].
      teacher: the same of the teacher, whose D may differ.
      weights: float32 [B, T].
      temperature: both distributions are softened by it.
      softcaps: bounds of the student's and of the teacher's logits, by tanh; None for none.
      chunk: tokens per chunk; None as `tokens_at_once` says.

    Returns:
      float32 scalar, sum over tokens of weight * KL * temperature^2.

    Source: arXiv 1503.02531, section 2; the factor keeps gradients of one size.
    """
    kernels = [kernel.astype(hidden.dtype) for hidden, kernel in (student, teacher)]

    def divergence(mine, theirs, weight):
        scores = [
            soft_cap(jnp.dot(x, kernel, preferred_element_type=jnp.float32), cap) / temperature
            for x, kernel, cap in zip((mine, theirs), kernels, softcaps, strict=True)
        ]
        q, p = (jax.nn.log_softmax(x, axis=-1) for x in scores)
        return (weight * (jnp.exp(p) * (p - q)).sum(-1)).sum()

    hidden = (student[0], jax.lax.stop_gradient(teacher[0]))
    chunk = tokens_at_once(chunk, kernels[0].shape[1])
    return chunked_sum(divergence, *hidden, weights, chunk=chunk) * temperature**2


def hidden_state_loss(student: jax.Array, teacher: jax.Array, weights: jax.Array) -> jax.Array:
    """Summed squared error of hidden states, relative to the teacher's mean square.

    Args:
      student: [B, T, D].
      teacher: [B, T, D], the channels that the student has.
      weights: float32 [B, T].

    Returns:
      float32 scalar, sum over tokens of weight * mean((student - teacher)^2) / mean(teacher^2).
    """
    target = jax.lax.stop_gradient(teacher.astype(jnp.float32))
    error = ((student.astype(jnp.float32) - target) ** 2).mean(-1)
    scale = (weights[..., None] * target**2).sum() / (
        jnp.maximum(weights.sum(), 1) * target.shape[-1]
    )
    return (weights * error).sum() / jnp.maximum(scale, 1e-12)
