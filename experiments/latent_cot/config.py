"""Presets: which tasks, with which model, by which methods, for how long."""

import dataclasses

from pangu_jax.reasoning.latent.config import OPTIMIZER
from pangu_jax.reasoning.latent.curriculum import CurriculumConfig
from pangu_jax.reasoning.latent.registry import METHODS
from pangu_jax.train.optimizer_config import OptimizerConfig


@dataclasses.dataclass(frozen=True)
class Plan:
    """Methods on one task, all for as many steps.

    Attributes:
      task: a name that `reasoning.latent.task` knows.
      model: a name of `models.presets`, with a token for each word of the task; "" is the
        checkpoint that --model names, with its tokenizer.
      steps: optimizer steps of every method; not read where the experiment counts tokens.
      stage_steps: steps of each stage of coconut and pause; None as in `CurriculumConfig`.
      stages: steps of the chain that are replaced.
      slots_per_stage: thoughts or pauses for each.
      token_steps: steps of each stage of icot, which takes one token away.
      problems: drawn to train on.
      tests: problems measured on.
      test_file: their file in --data; "" draws them.
      batch: problems per step.
      learning_rate: the top rate of each stage.
      warmup: share of each stage's steps over which the rate rises.
      decay: share of each stage's steps, the last ones, over which it falls; 0 leaves it.
      methods: names of `reasoning.latent.registry`.
      longest: most tokens of the question and of the chain of problems that are trained on; None
        trains on all. All are measured on.
      most_removed: of icot, after how many tokens all the rest goes at once; 0 for no such jump.
      first_steps: of coconut and pause, before anything goes; None as in `CurriculumConfig`.
      mixed: of coconut and pause, as in `CurriculumConfig`.
      unmarked: of coconut and pause, as in `CurriculumConfig`.
      keep_position: of icot, as in `CurriculumConfig`.
      token_rate: of icot, the top rate of each stage; None is `learning_rate`.
    """

    task: str
    model: str
    steps: int
    stage_steps: int | None
    stages: int
    token_steps: int | None
    problems: int
    tests: int
    test_file: str = ""
    slots_per_stage: int = 1
    batch: int = 64
    learning_rate: float = 1e-3
    warmup: float = 0.01
    decay: float = 0.0
    methods: tuple[str, ...] = tuple(METHODS)
    longest: tuple[int, int] | None = None
    most_removed: int = 0
    first_steps: int | None = None
    mixed: float = 0.0
    unmarked: bool = False
    keep_position: bool = False
    token_rate: float | None = None

    def optimizer(self, method: str) -> OptimizerConfig:
        """The optimizer of each stage of a method."""
        own = self.token_rate if method == "icot" else None
        falls = {"schedule": "wsd", "decay_fraction": self.decay, "end_fraction": 0.05}
        return dataclasses.replace(
            OPTIMIZER,
            learning_rate=own or self.learning_rate,
            warmup_fraction=self.warmup,
            **(falls if self.decay else {}),
        )

    def curriculum(self, method: str, steps: int | None = None) -> CurriculumConfig:
        """The curriculum of a method, of so many steps or the plan's."""
        return CurriculumConfig(
            self.steps if steps is None else steps,
            self.token_steps if method == "icot" else self.stage_steps,
            self.stages,
            self.slots_per_stage,
            most_removed=self.most_removed,
            first_steps=None if method == "icot" else self.first_steps,
            mixed=self.mixed,
            unmarked=self.unmarked,
            keep_position=self.keep_position,
        )


@dataclasses.dataclass(frozen=True)
class Experiment:
    """One comparison.

    Attributes:
      plans: a plan for each task.
      seeds: of the initial values and of the problems; the figures of each are averaged.
      timed: problems that are answered one by one to time them.
      dtype: type of the activations.
      tokens: what every method reads in training, tokens and thoughts or pauses, padding left out;
        0 trains all for the plan's steps.
    """

    plans: tuple[Plan, ...]
    seeds: tuple[int, ...] = (0,)
    timed: int = 20
    dtype: str = "float32"
    tokens: int = 0


_MULTIPLICATION = Plan(
    "mult4x4",
    "dense-small",
    steps=44_000,
    stage_steps=4_000,
    stages=4,
    slots_per_stage=2,
    token_steps=750,
    problems=200_000,
    tests=1_000,
    test_file="mult_4x4_test.jsonl.gz",
    batch=128,
    learning_rate=1e-4,
    mixed=0.1,
    unmarked=True,
    warmup=0.1,
    decay=0.3,
    keep_position=True,
    token_rate=2e-4,
)
_PROSQA = Plan(
    "prosqa-symbols",
    "dense-shallow",
    steps=36_000,
    stage_steps=2_500,
    first_steps=4_000,
    stages=6,
    token_steps=300,
    problems=200_000,
    tests=500,
    test_file="prosqa_test.jsonl.gz",
    batch=128,
    learning_rate=1e-4,
    mixed=0.1,
    unmarked=True,
    methods=("coconut", "pause", "cot", "no-cot", "codi", "looped", "adaptive"),
)
# With SmolLM2's tokens, 5,183 of GSM8K's 7,473 training questions are so short.
_GSM8K = Plan(
    "gsm8k",
    "",
    steps=0,
    stage_steps=None,
    stages=3,
    slots_per_stage=2,
    token_steps=None,
    most_removed=39,
    problems=0,
    tests=1_319,
    batch=64,
    learning_rate=1e-4,
    methods=tuple(name for name in METHODS if name not in ("looped", "adaptive")),
    longest=(80, 48),
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
                methods=("cot", "pause", "coconut", "codi", "planning", "looped", "adaptive"),
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
    "smollm2": Experiment((_GSM8K,), timed=0, dtype="bfloat16", tokens=2_400_000),
    # The published runs begin with GPT-2 and take hours; nothing of them is in the presets above.
    "paper": Experiment((_MULTIPLICATION, _PROSQA), seeds=(0, 1, 2)),
}
