"""Which rule merges checkpoints, and how far it goes."""

import dataclasses
import math
from typing import Literal

from pangu_jax.core.config import check_choices, check_size
from pangu_jax.core.errors import InputError

# "delta" is an older name of task_arithmetic.
Method = Literal["mean", "task_arithmetic", "slerp", "ties", "dare", "delta"]
FROM_BASE = ("task_arithmetic", "ties", "dare")


@dataclasses.dataclass(frozen=True)
class Recipe:
    """How to merge.

    Attributes:
      method: one of `Method`; "delta" becomes "task_arithmetic".
      scale: how far to go from the base (task_arithmetic, ties, dare), or from the first to the
        second (slerp); the mean has none.
      density: share of each difference that is kept (ties, dare).
      weights: of each tree; None is 1 each for the mean and for ties, which divide by their sum,
        and one by their number for the others, which do not.
      rescale: what DARE makes up for what it drops: "norm" keeps the sum of magnitudes, as
        mergekit does, "density" divides by the share that is kept, as the paper does.
      seed: of what DARE drops.
    """

    method: Method
    scale: float = 1.0
    density: float = 0.5
    weights: tuple[float, ...] | None = None
    rescale: Literal["norm", "density"] = "norm"
    seed: int = 0

    def __post_init__(self):
        """Raises InputError for what makes no sense."""
        check_choices(self)
        if self.method == "delta":
            object.__setattr__(self, "method", "task_arithmetic")
        check_size("seed", self.seed, least=0)
        if self.method == "mean" and self.scale != 1:
            raise InputError(
                "a mean has no scale; method task_arithmetic goes part of the way from a base"
            )
        if not 0 <= self.scale <= (1 if self.method == "slerp" else float("inf")):
            raise InputError(f"scale must be at least 0, for slerp at most 1; got {self.scale:g}")
        if not 0 < self.density <= 1:
            raise InputError(f"density must be above 0 and at most 1, got {self.density:g}")
        weights = self.weights
        if weights is not None and not (all(map(math.isfinite, weights)) and sum(weights) > 0):
            raise InputError(f"weights must be finite and add up to more than 0, got {weights}")

    def check(self, trees: int, base: bool) -> None:
        """Checks that so many trees, and a base or none, can be merged so.

        Raises:
          InputError: they cannot.
        """
        if trees < 2:
            raise InputError(f"merging takes at least two models, got {trees}")
        if self.method == "slerp" and trees != 2:
            raise InputError(f"slerp is between two models, got {trees}")
        if base != (self.method in FROM_BASE):
            takes = "takes a base that the models come from" if not base else "takes no base"
            raise InputError(f"method {self.method} {takes}")
        if self.weights is not None and len(self.weights) != trees:
            raise InputError(f"there are {len(self.weights)} weights for {trees} models")
        if self.method == "slerp" and self.weights is not None:
            raise InputError("slerp takes a scale, no weights")
