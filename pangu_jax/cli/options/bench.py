"""Measures a model by the answers that it writes: school maths, contests, code, choices."""

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
    """Names with commas between them, of gsm8k, math500, aime2024, aime2025, amc23, svamp,
    humaneval, mbpp, gpqa, livecodebench; or files in the form of one of these."""
    out: str
    """The run folder, which goes on where it was stopped."""
    data: str | None = None
    """The folder that has the files of names."""
    mode: Mode = "chat"
    """plain: the question as a text; few-shot: behind worked examples; chat: as a dialogue; slow,
    fast, auto: likewise, in that think mode, where the template has modes."""
    samples: int = 1
    """Answers to each question; more than one need a temperature."""
    questions: int | None = None
    """How many of each task, the first; None is all."""
    max_new_tokens: Annotated[int, tyro.conf.arg(aliases=["--max-new"])] = 1024
    """Most tokens of an answer."""
    sampling: SamplingConfig = SamplingConfig()
    seed: int = 0
    """Of the drawing, and of the interval of lengths."""
    batch: int = 32
    """Answers that are written at once."""
    allow_code_execution: bool = False
    """Run code that the model writes, in a sandbox, where a task is judged so."""
    judge: Literal["now", "later"] = "now"
    """later: answers are written and kept unjudged, as on a machine that cannot run code; the same
    command with now, wherever the run folder is, judges them and writes no more."""
    template: str = "auto"
    """How dialogues are written: pangu, llama3, chatml; "auto" takes the checkpoint's own."""
    system: str | None = None
    """What the model is told before the question, in a dialogue."""
    tokenizer: str | None = None
    """"bytes" or a tokenizer.json; None takes the checkpoint's own."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Type of parameters, activations and cache."""
