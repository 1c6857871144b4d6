"""Recovers a pruned student by online distillation from the model it was cut from."""

from dataclasses import dataclass
from typing import Annotated, Literal

import tyro

from pangu_jax.train.distill_config import (
    HIDDEN_WEIGHT,
    KL_WEIGHT,
    LM_WEIGHT,
    OPTIMIZER,
    TEMPERATURE,
)
from pangu_jax.train.loop_config import LoopConfig
from pangu_jax.train.optimizer_config import OptimizerConfig


@dataclass(frozen=True)
class Options:
    """Which student learns from which teacher, on which data, for how long."""

    teacher: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="TEACHER")]
    """The original checkpoint."""
    student: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="STUDENT")]
    """The pruned checkpoint."""
    data: str
    """A file or folder of .txt or .jsonl, either possibly .gz; "stdlib"; "packages"."""
    out: str
    """The run's folder; OUT/model is the recovered checkpoint in the student's layout, for other
    commands to take."""
    steps: int = 500
    """Optimizer steps."""
    batch: int = 8
    """Windows per step."""
    length: int = 256
    """Tokens per window."""
    kl_weight: float = KL_WEIGHT
    """Weight of KL(teacher || student)."""
    lm_weight: float = LM_WEIGHT
    """Weight of the language-modeling loss."""
    hidden_weight: float = HIDDEN_WEIGHT
    """Weight of matching the last hidden states."""
    temperature: float = TEMPERATURE
    """Temperature of both distributions in the KL."""
    optimizer: Annotated[OptimizerConfig, tyro.conf.arg(name="optimizer")] = OPTIMIZER
    field: str = "text"
    """The key of the text in .jsonl lines."""
    tokenizer: str | None = None
    """"bytes" or a tokenizer.json; None takes the teacher's."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Type of the activations; the student's parameters are float32."""
    remat: Literal["full", "dots"] | None = None
    """What the backward pass recomputes."""
    seed: int = 0
    """Seed of the data order."""
    checkpoint_every: int = LoopConfig.checkpoint_every
    """Steps between checkpoints."""
