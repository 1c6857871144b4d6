"""Choice and repair of units: the settings of a pruning run other than its target."""

import dataclasses

from pangu_jax.core.config import check_choice
from pangu_jax.core.errors import InputError
from pangu_jax.pruning import importance
from pangu_jax.pruning import plan as plans
from pangu_jax.pruning import repair as repairs

# What a params or flops target cuts unless told otherwise.
PRUNABLE_AXES = {
    "pangu-light": ("groups", "ffn", "hidden"),
    "minitron": ("groups", "ffn", "hidden"),
}


@dataclasses.dataclass(frozen=True)
class Recipe:
    """Settings for the choice and repair of units.

    Attributes:
      method: one of `importance.METHODS`.
      repair: one of `repair.METHODS`.
      ridge: of the ridge repairs; None chooses it on held-out windows.
      allocation: "equal" (the same share of each layer), "cosine" (SlimLLM's softmax of
        similarity), or "global" (one threshold on standardized scores, as FLAP).
      alpha: unevenness of "cosine".
      pruned_layers: number of layers that "cosine" prunes; None is all.
      propagate: "pruned" (scores and repairs see the pruned layers before) or "dense".
      greedy: whether SlimLLM's swaps are done.
      keep_lowest: share of the least important channels that are kept nevertheless, a quirk of the
        released code (0.01 there).
      prunable_axes: axes that a params or flops target cuts; empty is the method's own.
      norm: re-initialization of RMSNorm gains when hidden channels go.
      clap: whether removed layers hand their best KV groups on.
      gain_correct: whether those are corrected for the other layer's norm.
      seed: of the random method.
    """

    method: str = "slimllm"
    repair: str = "ridge"
    ridge: float | None = None
    allocation: str = "equal"
    alpha: float = 10.0
    pruned_layers: int | None = None
    propagate: str = "pruned"
    greedy: bool = True
    keep_lowest: float = 0.0
    prunable_axes: tuple[str, ...] = ()
    norm: str = "l2"
    clap: bool = True
    gain_correct: bool = True
    seed: int = 0

    def __post_init__(self):
        importance.check_method(self.method)
        repairs.check_method(self.repair)
        for name, known in (
            ("allocation", ("equal", "cosine", "global")),
            ("propagate", ("pruned", "dense")),
            ("norm", plans.NORMS),
        ):
            check_choice(name, getattr(self, name), known)
        if not 0 <= self.keep_lowest < 1:
            raise InputError(f"keep_lowest must be in [0, 1), got {self.keep_lowest}")
        if self.ridge is not None and self.ridge < 0:
            raise InputError(f"ridge must not be negative, got {self.ridge}")
        for name in self.prunable_axes:
            check_choice("a prunable axis", name, ("groups", "ffn", "hidden"))

    @property
    def axes(self) -> tuple[str, ...]:
        """The axes that a params or flops target cuts."""
        return self.prunable_axes or PRUNABLE_AXES.get(self.method, ("groups", "ffn"))
