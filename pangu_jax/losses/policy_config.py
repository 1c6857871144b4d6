"""Settings of policy gradients."""

import dataclasses
from typing import Literal

from pangu_jax.core.config import check_choices
from pangu_jax.core.errors import InputError


@dataclasses.dataclass(frozen=True)
class PolicyConfig:
    """Settings of the policy loss and its advantages.

    Attributes:
      divide_by_std: whether advantages are divided by the rewards' standard deviation in their
        group.
      clip_low: how far below 1 the ratio of probabilities has a gradient.
      clip_high: how far above 1.
      average_over: what one unit of the loss is: a token; a sequence, whose tokens share it; or a
        sequence whose tokens are divided by `longest`, however many there are.
      longest: of `average_over` constant: tokens that an answer has at most.
      kl: weight of the divergence from a reference policy; 0 is none.
      largest_weight: of a token, for how much likelier it is now than when it was sampled; what is
        above is cut to it.
    """

    divide_by_std: bool = True
    clip_low: float = 0.2
    clip_high: float = 0.2
    average_over: Literal["token", "sequence", "constant"] = "sequence"
    longest: int | None = None
    kl: float = 0.0
    largest_weight: float = 5.0

    def __post_init__(self):
        check_choices(self, "policy")
        if not 0 <= self.clip_low <= 1 or not self.clip_high >= 0:
            raise InputError(
                f"clip_low must be in [0, 1] and clip_high at least 0, got {self.clip_low} and "
                f"{self.clip_high}"
            )
        if (self.average_over == "constant") != (self.longest is not None):
            raise InputError("longest is for average_over=constant, which needs it")
        if self.longest is not None and self.longest < 1:
            raise InputError(f"longest must be at least 1, got {self.longest}")
        if not self.kl >= 0 or not self.largest_weight >= 1:
            raise InputError(
                f"kl must be at least 0 and largest_weight at least 1, got {self.kl} and "
                f"{self.largest_weight}"
            )
