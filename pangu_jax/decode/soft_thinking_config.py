"""Settings of soft thinking."""

import dataclasses
import math

from pangu_jax.core.config import check_size
from pangu_jax.core.errors import InputError


@dataclasses.dataclass(frozen=True)
class SoftThinkingConfig:
    """Settings for thinking in mixtures of tokens.

    Attributes:
      think_tokens: maximum number of mixtures.
      think_temperature: divides the logits, above 0.
      think_top_k: maximum number of tokens in a mixture.
      think_top_p: of these, the smallest set of best ones whose probability reaches it.
      think_min_p: of these, those with at least this share of the likeliest's probability.
      think_noise: temperature of a Gumbel softmax over them, so that mixtures are random; 0 for
        none.
      cold_entropy: below it, in nats, a distribution counts as nearly certain; 0 never does.
      cold_steps: number of such steps in a row after which thinking ends.
    """

    think_tokens: int = 256
    think_temperature: float = 0.6
    think_top_k: int = 10
    think_top_p: float = 0.95
    think_min_p: float = 0.001
    think_noise: float = 0.0
    cold_entropy: float = 0.01
    cold_steps: int = 256

    def __post_init__(self):
        for name in ("think_tokens", "think_top_k", "cold_steps"):
            check_size(name, getattr(self, name))
        if not 1e-30 <= self.think_temperature < math.inf:
            raise InputError(
                f"think_temperature must be 1e-30 or more, got {self.think_temperature}"
            )
        if 0 < self.think_noise < 1e-30:
            raise InputError(f"think_noise must be 0, or 1e-30 or more, got {self.think_noise}")
        if not 0 < self.think_top_p <= 1:
            raise InputError(f"think_top_p must be in (0, 1], got {self.think_top_p}")
        if not 0 <= self.think_min_p <= 1:
            raise InputError(f"think_min_p must be in [0, 1], got {self.think_min_p}")
        for name in ("think_noise", "cold_entropy"):
            if not 0 <= getattr(self, name) < math.inf:
                raise InputError(f"{name} must be 0 or more, got {getattr(self, name)}")
