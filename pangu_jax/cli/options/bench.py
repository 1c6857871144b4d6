"""Measures a model by the answers it writes: school maths, contests, code, multiple choice."""

from dataclasses import dataclass
from typing import Annotated, Literal

import tyro

from pangu_jax.decode.sampling_config import SamplingConfig
from pangu_jax.reasoning.bench_prompts import Mode


@dataclass(frozen=True)
class Options:
    """Which model, what it is asked, and how."""

    model: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="MODEL")]
    """A run folder, or a folder in the Hugging Face layout."""
    tasks: str
    """Tasks, separated by commas: gsm8k, math500, aime2024, aime2025, amc23, svamp, humaneval,
    mbpp, gpqa, livecodebench; or files in the form of one of these."""
    out: str
    """The run's folder; an existing run is resumed."""
    data: str | None = None
    """The folder that holds the files of tasks given by name."""
    mode: Mode = "chat"
    """plain: the question as plain text; few-shot: after worked examples; chat: as a dialogue;
    slow, fast, auto: as a dialogue in that thinking mode, if the template has modes."""
    samples: int = 1
    """Answers per question; more than one need a temperature."""
    questions: int | None = None
    """How many questions of each task, from its start; None is all."""
    max_new_tokens: Annotated[int, tyro.conf.arg(aliases=["--max-new"])] = 1024
    """Maximum number of tokens per answer."""
    sampling: SamplingConfig = SamplingConfig()
    seed: int = 0
    """Seed of the sampling, and of the intervals of lengths."""
    batch: int = 32
    """Answers written at once."""
    allow_code_execution: bool = False
    """Run code that the model writes, in a sandbox, for tasks that are judged by running it."""
    judge: Literal["now", "later"] = "now"
    """later: write answers without judging them, as on a machine that cannot run code; the same
    command with now, wherever the run's folder then is, judges them and writes no more."""
    template: str = "auto"
    """Chat template: pangu, llama3, chatml; "auto" takes the checkpoint's own."""
    system: str | None = None
    """The system message of a dialogue."""
    tokenizer: str | None = None
    """"bytes" or a tokenizer.json; None takes the checkpoint's own."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Type of parameters, activations and cache."""
