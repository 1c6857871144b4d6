"""Trains a decoder to answer with a chain of thought, without one, or with latent thoughts.

The same command goes on where it was stopped, in the same bits.
"""

from dataclasses import dataclass
from typing import Annotated, Literal

import tyro

from pangu_jax.reasoning.latent.config import OPTIMIZER, MethodConfig
from pangu_jax.reasoning.latent.curriculum import CurriculumConfig
from pangu_jax.train.loop_config import LoopConfig
from pangu_jax.train.optimizer_config import OptimizerConfig


@dataclass(frozen=True)
class Options:
    """Which method, on which task, with which model, for how long."""

    method: Literal[
        "cot", "no-cot", "pause", "icot", "coconut", "codi", "planning", "looped", "adaptive"
    ]
    """cot and no-cot write the steps or leave them out; icot takes their tokens away one by one;
    coconut replaces steps by hidden states that are fed back, pause by as many empty slots; codi
    learns thoughts from its own written chain; planning begins each step with a token of its kind;
    looped writes no steps, and runs its layers several times; adaptive lets tokens skip some."""
    task: str
    """mult4x4 (any mult<D>x<D>), prosqa or prosqa-symbols (in numbers), whose problems
    are drawn; gsm8k, whose questions are in --data; or a .jsonl file, possibly .gz, of question,
    steps and answer, of question, cot and answer, or as GSM8K has them."""
    out: str
    """The run's folder: model, tokenizer, metrics, checkpoints."""
    data: str | None = None
    """For gsm8k: the folder with gsm8k_train.jsonl and gsm8k_test.jsonl, possibly .gz."""
    test: str | None = None
    """A file of problems to measure on; without it they are drawn, GSM8K's test questions, or the
    file's last ones. None of them is trained on."""
    problems: int = 100_000
    """How many problems are drawn to train on; of a file all are taken."""
    tests: int = 500
    """Maximum number of problems to measure on."""
    preset: str = "dense-tiny"
    """Name of a dense model: dense-tiny, dense-small, dense-shallow."""
    init: str | None = None
    """A decoder (run folder or Hugging Face folder) to start from, instead of a preset."""
    tokenizer: Literal["words", "bytes"] = "words"
    """With a preset: a token for each word of the task, or for each byte."""
    curriculum: Annotated[CurriculumConfig, tyro.conf.arg(name="curriculum")] = CurriculumConfig()
    own: Annotated[MethodConfig, tyro.conf.arg(name="own")] = MethodConfig()
    batch: int = 64
    """Problems per step."""
    accumulate: int = LoopConfig.accumulate
    """Microbatches per batch."""
    optimizer: Annotated[OptimizerConfig, tyro.conf.arg(name="optimizer")] = OPTIMIZER
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Type of the activations; parameters are float32."""
    remat: Literal["full", "dots"] | None = None
    """What the backward pass recomputes."""
    seed: int = 0
    """Seed of the initial values, the drawn problems and their order."""
    checkpoint_every: int = LoopConfig.checkpoint_every
    """Steps between checkpoints."""
    evaluate_every: int = LoopConfig.evaluate_every
    """Steps between measurements, in the form of the last stage and with thoughts exchanged; 0
    measures at the end only."""
