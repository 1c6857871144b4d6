"""AdamW with a warm-up schedule, clipping, and weight decay on kernels alone."""

import dataclasses
from typing import Any, Literal

import optax

from pangu_jax.core.config import check_choices
from pangu_jax.core.errors import InputError
from pangu_jax.core.tree import map_named


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """AdamW and its schedule.

    Attributes:
      learning_rate: at the top of the schedule; the default is for small models from scratch.
      schedule: cosine (falls over all steps), wsd (warm-up, stable, linear decay at the end), or
        constant.
      warmup_fraction: share of the steps over which the rate rises linearly from 0.
      decay_fraction: share of the steps that wsd decays over.
      end_fraction: the last rate, as a share of the top one.
      b1: decay of the first moment.
      b2: decay of the second moment.
      eps: added to the root of the second moment.
      weight_decay: decoupled, on kernels and embedding tables; never on gains, biases, and router
        scales.
      clip_norm: largest global norm of a gradient; 0 for no clipping.
    """

    learning_rate: float = 4e-3
    schedule: Literal["cosine", "wsd", "constant"] = "cosine"
    warmup_fraction: float = 0.05
    decay_fraction: float = 0.2
    end_fraction: float = 0.1
    b1: float = 0.9
    b2: float = 0.95
    eps: float = 1e-8
    weight_decay: float = 0.1
    clip_norm: float = 1.0

    def __post_init__(self):
        check_choices(self, "optimizer")
        for name in ("warmup_fraction", "decay_fraction", "end_fraction", "b1", "b2"):
            if not 0 <= getattr(self, name) <= 1:
                raise InputError(f"optimizer {name} must be in [0, 1], got {getattr(self, name)}")
        for name in ("learning_rate", "weight_decay", "clip_norm"):
            if getattr(self, name) < 0:
                raise InputError(f"optimizer {name} must not be negative")


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
