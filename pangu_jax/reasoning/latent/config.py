"""Settings of latent methods and of their training."""

import dataclasses
import math

from pangu_jax.core.config import check_size
from pangu_jax.core.errors import InputError
from pangu_jax.models.turns import MOST_TURNS
from pangu_jax.train.optimizer_config import OptimizerConfig

# For small models from scratch. Every phase begins with a fresh state, so the rate rises again.
OPTIMIZER = OptimizerConfig(
    learning_rate=1e-3, schedule="constant", warmup_fraction=0.01, b2=0.99, weight_decay=0.01
)


@dataclasses.dataclass(frozen=True)
class MethodConfig:
    """Numbers of single methods, which the others do not read.

    Attributes:
      turns: of `looped` and `adaptive`, how often the layers run.
      plans: of `planning`, how many kinds of steps there are at most.
      align: of `codi`, weight of the distance between the student's and the teacher's states.
      teach: of `codi`, weight of the teacher's own loss.
      depth: of `adaptive`, the share of tokens that are to run each layer of later turns.
      steer: of `adaptive`, weight of how far the shares are from it.

    Raises:
      InputError: numbers out of range.
    """

    turns: int = 4
    plans: int = 3
    align: float = 1.0
    teach: float = 1.0
    depth: float = 0.5
    steer: float = 1.0

    def __post_init__(self):
        check_size("turns", self.turns, most=MOST_TURNS)
        check_size("plans", self.plans, most=1000)
        if not 0 <= self.depth <= 1:
            raise InputError(f"depth must be a share, 0 to 1, got {self.depth}")
        for name in ("align", "teach", "steer"):
            if not 0 <= getattr(self, name) < math.inf:
                raise InputError(f"{name} must be 0 or more, got {getattr(self, name)}")
