"""Policy gradients from groups of answers: GRPO, DAPO, Dr. GRPO, and off-policy samples."""

import jax
import jax.numpy as jnp

from pangu_jax.core.errors import InputError
from pangu_jax.losses.policy_config import PolicyConfig

FARTHEST = 20.0  # nats between two log-probabilities of a token that are told apart

# Of arXiv 2402.03300, without its KL term, and of arXiv 2503.14476.
GRPO = PolicyConfig()
DAPO = PolicyConfig(clip_high=0.28, average_over="token")


def dr_grpo(longest: int) -> PolicyConfig:
    """Dr. GRPO's settings: no division by reward deviation or answer length.

    Args:
      longest: tokens that an answer has at most.

    Source: arXiv 2503.20783.
    """
    return PolicyConfig(divide_by_std=False, average_over="constant", longest=longest)


def advantages(
    rewards: jax.Array, usable: jax.Array, *, divide_by_std: bool = True
) -> tuple[jax.Array, jax.Array]:
    """The advantage of each answer over its group.

    Args:
      rewards: float [G, N], of G groups of N answers; any number where it is not usable.
      usable: bool [G, N], whether there is a reward.
      divide_by_std: whether to divide by the standard deviation (of the population) + 1e-6.

    Returns:
      float32 [G, N], 0 where an answer counts for nothing, and bool [G, N], where it counts: it is
      usable, and the usable rewards of its group are not all equal, so that they tell something.

    Source: arXiv 2402.03300; not divided: arXiv 2503.20783. That groups of equal
    rewards leave the KL term and the normalizer, too, is our choice.
    """
    rewards = jnp.where(usable, rewards.astype(jnp.float32), 0.0)
    count = jnp.maximum(usable.sum(-1, keepdims=True), 1)
    high = jnp.where(usable, rewards, -jnp.inf).max(-1, keepdims=True)
    low = jnp.where(usable, rewards, jnp.inf).min(-1, keepdims=True)
    counts = usable & (high > low)
    away = jnp.where(counts, rewards - rewards.sum(-1, keepdims=True) / count, 0.0)
    if divide_by_std:
        away = away / (jnp.sqrt((away**2).sum(-1, keepdims=True) / count) + 1e-6)
    return away, counts


def policy_loss(
    log_probs: jax.Array,
    behavior: jax.Array,
    advantage: jax.Array,
    mask: jax.Array,
    *,
    cfg: PolicyConfig,
    proximal: jax.Array | None = None,
    reference: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array, dict[str, jax.Array]]:
    """Summed clipped loss of answers; per token, the greater of two terms.

    With A the advantage and u the ratio of a token's probability to that under `proximal`, a
    token's loss is -w min(u A, clip(u, 1 - clip_low, 1 + clip_high) A) + kl k. Its weight w is how
    much likelier it was under `proximal` than when it was sampled, without gradient and truncated:
    so answers of older weights count for what they are worth, and clipping is about this update
    alone. k estimates the divergence from `reference`: exp(q) - q - 1 with q the reference's
    log-probability less that of now.

    Args:
      log_probs: float32 [B, T], of each token under the parameters that are trained.
      behavior: float32 [B, T], under the weights that it was sampled with, as the engine gives it.
      advantage: float32 [B], of each answer.
      mask: bool or float [B, T]; 0 where there is no token of an answer that counts.
      cfg: the settings.
      proximal: float32 [B, T], under the weights at the start of the update; None is `behavior`,
        with w 1.
      reference: float32 [B, T], under the reference policy; for `cfg.kl`.

    Returns:
      float32 scalars: the sum and what it is divided by (answered tokens, or sequences with any),
      and sums {"clipped": where the clipped loss is taken, "kl_behavior": how far the weights are
      from those that sampled, "weight_ratio": w, "kl": k, if there is a reference}: means over
      tokens, times the divisor.

    Raises:
      InputError: `cfg.kl` without a reference.

    Source: arXiv 1707.06347, equation 7; w: arXiv 2505.24298; k: arXiv 2402.03300. Truncating w is
    our choice.
    """
    if cfg.kl and reference is None:
        raise InputError("a KL term needs the log-probabilities of a reference policy")
    mask = mask.astype(jnp.float32)
    keep = lambda x: jnp.where(mask > 0, x.astype(jnp.float32), 0.0)  # noqa: E731
    log_probs, behavior = keep(log_probs), jax.lax.stop_gradient(keep(behavior))
    near = behavior if proximal is None else jax.lax.stop_gradient(keep(proximal))
    worth = jnp.minimum(jnp.exp(near - behavior), cfg.largest_weight)
    # Beyond this the ratio is clipped, or as good as 0; without it a gradient may be no number.
    ratio = jnp.exp(jnp.clip(log_probs - near, -FARTHEST, FARTHEST))
    gain = advantage.astype(jnp.float32)[:, None]
    free = ratio * gain
    held = jnp.clip(ratio, 1 - cfg.clip_low, 1 + cfg.clip_high) * gain
    loss = -worth * jnp.minimum(free, held)
    each, weight = _weights(mask, cfg)
    found = {
        "clipped": held < free,
        "kl_behavior": _k3(log_probs - behavior),
        "weight_ratio": worth,
    }
    if reference is not None:
        found["kl"] = _k3(jax.lax.stop_gradient(keep(reference)) - log_probs)
        loss = loss + cfg.kl * found["kl"]
    # Of tokens, whatever a unit of the loss is: how far a policy has gone does not depend on that.
    token = mask * weight / jnp.maximum(mask.sum(), 1)
    sums = {name: (token * jax.lax.stop_gradient(x)).sum() for name, x in found.items()}
    return (each * loss).sum(), weight, sums


def _weights(mask: jax.Array, cfg: PolicyConfig) -> tuple[jax.Array, jax.Array]:
    """Each token's weight, float32 [B, T], and the divisor of the sum."""
    if cfg.average_over == "token":
        return mask, mask.sum()
    tokens = mask.sum(-1, keepdims=True)
    sequences = (tokens > 0).sum().astype(jnp.float32)
    length = jnp.maximum(tokens, 1) if cfg.longest is None else jnp.float32(cfg.longest)
    return mask / length, sequences


def _k3(q: jax.Array) -> jax.Array:
    q = jnp.clip(q, -FARTHEST, FARTHEST)
    return jnp.expm1(q) - q
