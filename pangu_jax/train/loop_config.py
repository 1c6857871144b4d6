"""Lengths and intervals of a training run."""

import dataclasses

from pangu_jax.core.errors import InputError


@dataclasses.dataclass(frozen=True)
class LoopConfig:
    """Length of a run, and its checkpoints and evaluations.

    Attributes:
      steps: optimizer steps.
      accumulate: microbatches per step.
      seed: of initial values and of the losses' keys. Several seeds train as many models at once:
        then all leaves of parameters and batches have a leading axis of seeds.
      checkpoint_every: steps between checkpoints; the last step is always saved.
      keep: number of latest checkpoints kept.
      evaluate_every: steps between evaluations; 0 for none before the end.
      chunk: steps that run without returning to Python, where nothing else is to be done before
        their end; signals wait for it. The others run one by one.
    """

    steps: int
    accumulate: int = 1
    seed: int | tuple[int, ...] = 0
    checkpoint_every: int = 500
    keep: int = 2
    evaluate_every: int = 0
    chunk: int = 1

    def __post_init__(self):
        for name in ("steps", "accumulate", "checkpoint_every", "keep", "chunk"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.evaluate_every < 0:
            raise InputError(f"evaluate_every must be at least 0, got {self.evaluate_every}")
        if self.seed == ():
            raise InputError("seed must name at least one seed")

    @property
    def seeds(self) -> tuple[int, ...]:
        """All seeds; one runs without an axis of them, which is faster on a CPU."""
        return self.seed if isinstance(self.seed, tuple) else (self.seed,)
