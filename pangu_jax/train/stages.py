"""What a run is made of: how long it is, and stages with losses and data of their own."""

import dataclasses
import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np
import optax

from pangu_jax.core.errors import InputError
from pangu_jax.sharding.layout import Layout
from pangu_jax.train.loop_config import LoopConfig
from pangu_jax.train.step import BatchLoss, Loss, TrainState, init_state


@dataclasses.dataclass(frozen=True)
class Stage:
    """A stretch of a run with its own loss and data.

    Attributes:
      steps: how long it is.
      loss: see `step.make_step`.
      batches: `batches(step)` gives the stage's batches from that step of it on, numpy arrays.
      optimizer: None keeps the previous stage's, and its state; another begins with a fresh state.
      schedule: the learning rate by the optimizer's step, for metrics.
      frozen: arrays that the loss reads and nobody trains, such as a teacher's parameters; None
        where there are none. They live where the caller put them.
    """

    steps: int
    loss: Loss | BatchLoss
    batches: Callable[[int], Iterator[Any]]
    optimizer: optax.GradientTransformation | None = None
    schedule: optax.Schedule | None = None
    frozen: Any = None


@dataclasses.dataclass(frozen=True)
class StageSequence:
    """Stages that begin and end at steps of the run, each with the optimizer that it uses."""

    stages: tuple[Stage, ...]
    ends: tuple[int, ...]
    cfg: LoopConfig
    trainable: str | None
    layout: Layout | None

    def stage_of(self, step: int) -> int:
        """The index of the stage that a step belongs to; a stage's last step is its own."""
        return next(i for i, end in enumerate(self.ends) if step <= end)

    def boundary(self, number: int, end: int) -> int:
        """The next step at which something is done beside training, the stage's end at most."""
        every = [n for n in (self.cfg.checkpoint_every, self.cfg.evaluate_every) if n]
        return min(end, *(number - number % n + n for n in every))

    def due(self, number: int) -> tuple[bool, bool]:
        """Whether to evaluate and whether to save after a step, the last one apart."""
        last, every = number == self.cfg.steps, self.cfg.evaluate_every
        evaluates = last or bool(every and number % every == 0)
        return evaluates, number % self.cfg.checkpoint_every == 0

    def told(self, index: int) -> dict[str, np.ndarray]:
        """What a checkpoint says of where in the plan it is, where there are several stages."""
        return {"stage": np.asarray(index + 1, np.int32)} if len(self.stages) > 1 else {}

    def optimizer(self, index: int) -> optax.GradientTransformation:
        """What a stage trains with."""
        given = (s.optimizer for s in self.stages[index::-1] if s.optimizer is not None)
        return next(given)

    def start(self, index: int, spec: Any, key: jax.Array, params: Any) -> TrainState:
        """A state for a stage, as of step 0."""
        optimizer = self.optimizer(index)
        more = {"layout": self.layout, "trainable": self.trainable}
        return init_state(spec, optimizer, key=key, params=params, **more)


def sequence(
    stages: Sequence[Stage], cfg: LoopConfig, trainable: str | None, layout: Layout | None
) -> StageSequence:
    """The stages of a run in their order.

    Raises:
      InputError: stages that do not make up the run, or settings that do not go together.
    """
    if not stages or any(stage.steps < 1 for stage in stages):
        raise InputError("a run needs stages of at least one step each")
    ends = tuple(itertools.accumulate(stage.steps for stage in stages))
    if ends[-1] != cfg.steps:
        raise InputError(f"the stages have {ends[-1]} steps together, the run {cfg.steps}")
    if stages[0].optimizer is None:
        raise InputError("the first stage needs an optimizer")
    if layout is not None and len(cfg.seeds) > 1:
        raise InputError("several seeds are trained on one device: give one seed, or no layout")
    return StageSequence(tuple(stages), ends, cfg, trainable, layout)
