"""AdamW with a warm-up schedule, clipping, and weight decay on kernels alone."""

from typing import Any

import optax

from pangu_jax.core.tree import map_named
from pangu_jax.train.optimizer_config import OptimizerConfig


def schedule(cfg: OptimizerConfig, steps: int) -> optax.Schedule:
    """The learning rate as a function of the step, for a run of `steps`."""
    warmup = round(cfg.warmup_fraction * steps)
    rise = optax.linear_schedule(0.0, cfg.learning_rate, max(warmup, 1))
    low, rest = cfg.end_fraction * cfg.learning_rate, max(steps - warmup, 1)
    if cfg.schedule == "constant":
        return optax.join_schedules([rise, optax.constant_schedule(cfg.learning_rate)], [warmup])
    if cfg.schedule == "cosine":
        fall = optax.cosine_decay_schedule(cfg.learning_rate, rest, cfg.end_fraction)
        return optax.join_schedules([rise, fall], [warmup])
    decay = max(round(cfg.decay_fraction * steps), 1)
    stable = optax.constant_schedule(cfg.learning_rate)
    fall = optax.linear_schedule(cfg.learning_rate, low, decay)
    return optax.join_schedules([rise, stable, fall], [warmup, max(steps - decay, warmup)])


def decay_mask(params: Any) -> Any:
    """True for the leaves that weight decay applies to: kernels and embedding tables."""
    return map_named(lambda name, _: name.endswith(("kernel", "table")), params)


def make_optimizer(cfg: OptimizerConfig, steps: int) -> optax.GradientTransformation:
    """Clipping, then AdamW under the schedule."""
    adamw = optax.adamw(
        schedule(cfg, steps),
        b1=cfg.b1,
        b2=cfg.b2,
        eps=cfg.eps,
        weight_decay=cfg.weight_decay,
        mask=decay_mask,
    )
    clip = optax.clip_by_global_norm(cfg.clip_norm) if cfg.clip_norm else optax.identity()
    return optax.chain(clip, adamw)
