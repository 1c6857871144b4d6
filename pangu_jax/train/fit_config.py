"""How long and how fast a forecaster is trained."""

import dataclasses

from pangu_jax.core.errors import InputError


@dataclasses.dataclass(frozen=True)
class FitConfig:
    """How a forecaster is trained.

    Attributes:
      batch: windows per step.
      learning_rate: of Adam in epochs 1 and 2; it halves with every epoch after.
      epochs: at most.
      patience: epochs without a better validation error before a seed stops.
    """

    batch: int = 16
    learning_rate: float = 1e-4
    epochs: int = 10
    patience: int = 3

    def __post_init__(self):
        for name in ("batch", "epochs", "patience"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.learning_rate <= 0:
            raise InputError(f"learning_rate must be above 0, got {self.learning_rate}")
