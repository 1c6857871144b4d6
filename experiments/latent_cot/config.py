"""Presets: which tasks, with which model, by which methods, for how long."""

import dataclasses

from pangu_jax.reasoning.latent.curriculum import CurriculumConfig
from pangu_jax.reasoning.latent.registry import METHODS


@dataclasses.dataclass(frozen=True)
class Plan:
    """Methods on one task, all for as many steps.

    Attributes:
      task: a name that `reasoning.latent.task` knows.
      model: a name of `models.presets`, with a token for each word of the task.
      steps: optimizer steps of every method.
      stage_steps: steps of each stage of coconut and pause.
      stages: steps of the chain that are replaced.
      slots_per_stage: thoughts or pauses for each.
      token_steps: steps of each stage of icot, which takes one token away.
      problems: drawn to train on.
      tests: problems measured on.
      test_file: their file in --data; "" draws them.
      batch: problems per step.
      learning_rate: constant after the warm-up.
      methods: names of `reasoning.latent.registry`.
    """

    task: str
    model: str
    steps: int
    stage_steps: int
    stages: int
    token_steps: int
    problems: int
    tests: int
    test_file: str = ""
    slots_per_stage: int = 1
    batch: int = 64
    learning_rate: float = 1e-3
    methods: tuple[str, ...] = tuple(METHODS)

    def curriculum(self, method: str) -> CurriculumConfig:
        """The curriculum of a method."""
        stage = self.token_steps if method == "icot" else self.stage_steps
        return CurriculumConfig(self.steps, stage, self.stages, self.slots_per_stage)


@dataclasses.dataclass(frozen=True)
class Experiment:
    """One comparison.

    Attributes:
      plans: a plan for each task.
      seeds: of the initial values and of the problems; the figures of each are averaged.
      timed: problems that are answered one by one to time them.
      dtype: type of the activations.
    """

    plans: tuple[Plan, ...]
    seeds: tuple[int, ...] = (0,)
    timed: int = 20
    dtype: str = "float32"


_MULTIPLICATION = Plan(
    "mult4x4",
    "dense-small",
    steps=24_000,
    stage_steps=1_500,
    stages=4,
    slots_per_stage=2,
    token_steps=400,
    problems=200_000,
    tests=1_000,
    test_file="mult_4x4_test.jsonl.gz",
    batch=256,
    learning_rate=5e-4,
)
_PROSQA = Plan(
    "prosqa",
    "dense-shallow",
    steps=21_000,
    stage_steps=2_500,
    stages=6,
    token_steps=300,
    problems=18_000,
    tests=500,
    test_file="prosqa_test.jsonl.gz",
    batch=128,
    learning_rate=1e-4,
    methods=("coconut", "pause", "cot", "no-cot", "codi", "looped"),
)

PRESETS = {
    "smoke": Experiment(
        (
            Plan(
                "mult1x1",
                "dense-tiny",
                steps=20,
                stage_steps=4,
                stages=1,
                token_steps=4,
                problems=200,
                tests=20,
                batch=8,
                methods=("cot", "pause", "coconut", "codi", "planning", "looped"),
            ),
        ),
        timed=2,
    ),
    "cpu": Experiment(
        (
            Plan(
                "mult2x2",
                "dense-tiny",
                steps=4_000,
                stage_steps=400,
                stages=2,
                token_steps=150,
                problems=20_000,
                tests=200,
            ),
        )
    ),
    "gpu": Experiment((_MULTIPLICATION, _PROSQA), dtype="bfloat16"),
    # The published runs begin with GPT-2 and take hours; nothing of them is in the presets above.
    "paper": Experiment((_MULTIPLICATION, _PROSQA), seeds=(0, 1, 2)),
}
