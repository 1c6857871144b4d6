"""Presets: how many questions, and how the head is trained."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Experiment:
    """One measurement of two judges.

    Attributes:
      questions: how many that have a right and a wrong answer; None is all.
      held_out: share of the questions that the head is not trained on.
      seeds: of the split and of the head's training; the figures of each stand in the report.
      judged: how many held-out pairs the evaluator is asked about.
      max_new_tokens: tokens of its reply.
      batch: rows, and replies, at once.
      steps: optimizer steps of the head.
      decay: see `preference.fit`.
      dtype: type of the activations.
    """

    questions: int | None
    held_out: float = 0.3
    seeds: tuple[int, ...] = (0, 1, 2)
    judged: int = 60
    max_new_tokens: int = 8
    batch: int = 8
    steps: int = 300
    decay: float = 0.1
    dtype: str = "float32"


PRESETS = {
    "smoke": Experiment(12, judged=2, seeds=(0,), steps=20),
    "cpu": Experiment(240),
    "gpu": Experiment(None, judged=400, batch=64, dtype="bfloat16"),
    "paper": Experiment(None, judged=400, batch=64),
}


@dataclasses.dataclass(frozen=True)
class Merging:
    """Two checkpoints fine-tuned on halves of the same questions, and their merges.

    Attributes:
      held_out: solutions that the gate measures.
      seeds: of the halves and of the training; the mean and spread over them stand in the report.
      steps: optimizer steps of a fine-tuning.
      batch: windows a step.
      length: tokens per window.
      learning_rate: the greatest of the schedule.
      dtype: type of the activations in training.
    """

    held_out: int
    seeds: tuple[int, ...] = (0, 1, 2)
    steps: int = 100
    batch: int = 16
    length: int = 512
    learning_rate: float = 1e-4
    dtype: str = "bfloat16"


MERGES = {
    "smoke": Merging(20, (0,), steps=2, batch=2, length=64, dtype="float32"),
    "cpu": Merging(40, (0,), steps=20, batch=4, length=128, dtype="float32"),
    "gpu": Merging(500),
}
