"""Settings of the optimizer."""

import dataclasses
from typing import Literal

from pangu_jax.core.config import check_choices
from pangu_jax.core.errors import InputError


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
