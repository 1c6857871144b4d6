"""Settings of sampling, of one request."""

import dataclasses
import math

from pangu_jax.core.errors import InputError


@dataclasses.dataclass(frozen=True)
class SamplingConfig:
    """How the next token is drawn.

    Attributes:
      temperature: divides the logits; 0 is greedy decoding.
      top_k: sample from the k most likely tokens; 0 for all.
      top_p: only the smallest set of best tokens whose probability reaches it; 1 for all.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0

    def __post_init__(self):
        if not 0 <= self.temperature < math.inf:
            raise InputError(f"temperature must be 0 or more, got {self.temperature}")
        if self.top_k < 0:
            raise InputError(f"top_k must be 0 or more, got {self.top_k}")
        if not 0 < self.top_p <= 1:
            raise InputError(f"top_p must be in (0, 1], got {self.top_p}")
