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


ASKED = {"alone": False, "with the right answer": True}  # whether the evaluator is told it

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
      batch: windows per step.
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


# Each rule of `pangu-jax merge` with its options.
RULES = {
    "mean": {},
    "slerp": {},
    "task_arithmetic": {"scale": 1.5},
    "ties": {"density": 0.5},
    "dare": {"density": 0.5},
}

MERGES = {
    "smoke": Merging(20, (0,), steps=2, batch=2, length=64, dtype="float32"),
    "cpu": Merging(40, (0,), steps=20, batch=4, length=128, dtype="float32"),
    "gpu": Merging(500),
}


@dataclasses.dataclass(frozen=True)
class Speed:
    """How much sooner updates come where answers may be older, measured and simulated.

    The simulator knows tokens and updates alone. Where no slot is idle, an answer ends in the time
    that `mean / slots` tokens take, so these must take much longer than what the host does for each
    answer, or that is what is measured. And an update should take about as long as its answers'
    tokens then do: if it took much longer, a bound would buy little, as slots wait meanwhile; if
    much less, the trainer would be no part of it.

    Attributes:
      layers: of the decoder, whose weights are drawn: lengths are told, not learned.
      width: of the decoder.
      mean: of the log-normal lengths, in tokens, before the cut at 480.
      sigma: standard deviation of their logarithms.
      batch: groups per update.
      group: answers per group.
      slots: answers at once.
      updates: of each run.
      bounds: of staleness; the first is what the others are compared with.
      seeds: of the lengths.
      dtype: type of the activations.
    """

    layers: int
    width: int
    updates: int
    mean: float = 80.0
    sigma: float = 1.0
    batch: int = 16
    group: int = 4
    slots: int = 64
    bounds: tuple[int, ...] = (0, 1, 2, 4, 8)
    seeds: tuple[int, ...] = (0,)
    dtype: str = "float32"


@dataclasses.dataclass(frozen=True)
class Learning:
    """A small decoder learns sums by their solutions, then by rewards, at several bounds.

    Attributes:
      layers: of the decoder.
      width: of the decoder.
      digits: of the numbers that are added, at most.
      until: share of held-out questions answered right at which learning from solutions ends.
      sft_steps: most steps of that.
      updates: of reinforcement learning.
      seeds: of the weights, questions and samples.
      batch: questions per update.
      group: answers per question.
      questions: held-out questions that are measured with.
      learning_rate: of reinforcement learning; `sft_rate` is the other.
      sft_rate: of learning from solutions.
      dtype: type of the activations.
    """

    layers: int
    width: int
    digits: int
    updates: int
    until: float = 0.3
    sft_steps: int = 4000
    seeds: tuple[int, ...] = (0, 1, 2)
    batch: int = 32
    group: int = 8
    questions: int = 1024
    learning_rate: float = 1e-4
    sft_rate: float = 1e-3
    dtype: str = "float32"


@dataclasses.dataclass(frozen=True)
class Staleness:
    """Both parts."""

    speed: Speed
    learning: Learning


LONGEST = 480  # tokens; a prompt of two and this have room in a slot of 512
# How learning goes on by rewards.
ARMS = {
    "s = 0": {"staleness": 0, "corrected": True},
    "s = 4, corrected": {"staleness": 4, "corrected": True},
    "s = 8, not corrected": {"staleness": 8, "corrected": False},
}

STALENESS = {
    "smoke": Staleness(
        Speed(1, 16, 4, mean=6.0, sigma=0.3, batch=2, group=2, slots=4, bounds=(0, 2)),
        Learning(1, 32, 1, 3, 0.01, 100, (0,), 4, 4, 32),
    ),
    "cpu": Staleness(
        Speed(2, 64, 12, mean=30.0, batch=4, group=4, slots=16),
        Learning(2, 64, 1, 60, 0.4, 1500, (0,), 8, 8, 128),
    ),
    # 403 M parameters. With 6 layers of width 384 an H200 took 6 ms per answer at every bound,
    # which the tokens do not explain.
    "gpu": Staleness(
        Speed(24, 1024, 24, seeds=(0, 1, 2), dtype="bfloat16"), Learning(4, 192, 4, 200, batch=64)
    ),
}


@dataclasses.dataclass(frozen=True)
class WordProblems:
    """A chat model learns word problems from worked solutions, then by rewards.

    Attributes:
      sft_steps: of learning from solutions.
      sft_batch: rows of a step, into which solutions are packed.
      row_length: tokens of a row; a question whose longest answer would not fit in is not asked in
        reinforcement learning, so that updates are of few programs.
      updates: of reinforcement learning.
      batch: questions per update.
      group: answers per question.
      slots: answers at once, in reinforcement learning and where accuracy is measured.
      accumulate: microbatches per update.
      staleness: the bound of reinforcement learning.
      max_new_tokens: of an answer, wherever one is given.
      asdiv_tested: questions of ASDiv that are tested on.
      questions: of each test at most; None is all.
      compared: answers that are compared with those of transformers.
      sft_rate: greatest learning rate of learning from solutions.
      rl_rate: learning rate of reinforcement learning.
      save_every: updates between checkpoints of reinforcement learning.
      dtype: type of the activations, but where answers are compared.
    """

    sft_steps: int
    sft_batch: int
    row_length: int
    updates: int
    batch: int
    group: int
    slots: int
    accumulate: int = 1
    staleness: int = 1
    max_new_tokens: int = 256
    asdiv_tested: int = 1500
    questions: int | None = None
    compared: int = 64
    sft_rate: float = 3e-4
    rl_rate: float = 1e-5
    save_every: int = 25
    dtype: str = "float32"


WORD_PROBLEMS = {
    "smoke": WordProblems(
        *(2, 2, 512, 2, 2, 2, 4), max_new_tokens=12, asdiv_tested=2, questions=2, compared=2
    ),
    "cpu": WordProblems(*(14, 4, 256, 3, 3, 4, 12), max_new_tokens=64, questions=2, compared=3),
    "gpu": WordProblems(*(200, 64, 512, 80, 16, 8, 256), accumulate=2, dtype="bfloat16"),
}
