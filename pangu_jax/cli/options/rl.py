"""Trains a decoder by the rewards of its own answers to questions: GRPO, DAPO, Dr. GRPO.

By default rollouts and the trainer share the device. Updates train on answers whose weights are at
most --staleness updates old. The same command goes on where it was stopped.
"""

from dataclasses import dataclass
from typing import Annotated, Literal

import tyro

from pangu_jax.losses.policy_config import PolicyConfig
from pangu_jax.reasoning.bench_prompts import Mode
from pangu_jax.reasoning.rl_config import OPTIMIZER, RlConfig
from pangu_jax.reasoning.schedule_state import ScheduleConfig
from pangu_jax.train.optimizer_config import OptimizerConfig


@dataclass(frozen=True)
class Options:
    """Which model learns from which questions, and how."""

    model: str
    """A run folder, or a folder in the Hugging Face layout."""
    data: str
    """A file of questions with answers, in a form that `bench` knows."""
    out: str
    """The run's folder; OUT/model is the trained checkpoint in the model's layout, for other
    commands to take."""
    reward: Literal["math", "code"] = "math"
    """math: whether the final answer is right; code: whether it passes its tests, in a sandbox."""
    algorithm: Literal["grpo", "dapo", "dr-grpo"] = "grpo"
    """dapo also replaces groups of equal rewards, and takes up to half a point off answers in the
    last fifth of --max-new-tokens."""
    corrected: bool = True
    """Correct answers of older weights by how likely they are under the present ones."""
    kl: float = PolicyConfig.kl
    """Weight of the KL divergence from the model that the run began with."""
    staleness: int = ScheduleConfig.staleness
    """How many updates old the weights of an answer's first token may be; 0 is synchronous."""
    batch: int = ScheduleConfig.batch
    """Questions per update."""
    group: int = ScheduleConfig.group
    """Answers per question."""
    slots: int = ScheduleConfig.slots
    """Answers written at once."""
    updates: int = RlConfig.updates
    """Updates of the weights."""
    max_new_tokens: int = RlConfig.max_new_tokens
    """Maximum number of tokens per answer."""
    temperature: float = RlConfig.temperature
    """Sampling temperature of the answers, above 0."""
    accumulate: int = RlConfig.accumulate
    """Microbatches per update."""
    optimizer: Annotated[OptimizerConfig, tyro.conf.arg(name="optimizer")] = OPTIMIZER
    mode: Mode = "chat"
    """How questions are asked, as in `bench`."""
    template: str = "auto"
    """Chat template: pangu, llama3, chatml; "auto" takes the checkpoint's own."""
    tokenizer: str | None = None
    """"bytes" or a tokenizer.json; None takes the checkpoint's own."""
    allow_code_execution: bool = False
    """Run code that the model writes, in a sandbox."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Type of activations and cache; the parameters are float32."""
    remat: Literal["full", "dots"] | None = None
    """What the backward pass recomputes."""
    mesh: str = ""
    """Mesh of devices that train the model and write the answers, such as "fsdp=4,tensor=2"; empty
    is one device."""
    rules: str = "fsdp"
    """What is sharded over the mesh: ddp, fsdp, tensor, expert, h2p, joined with +."""
    coordinator: str = ""
    """host:port of process 0, if several processes train together; "auto" asks the cluster."""
    processes: int | None = None
    """Number of processes that train together."""
    process: int | None = None
    """Index of this process, from 0."""
    seed: int = RlConfig.seed
    """Seed of the order of questions, and of the answers."""
    rollouts: Literal["local", "ray"] = "local"
    """Who writes the answers: this process, or Ray's workers (pip install 'pangu-jax[ray]')."""
    workers: int = 2
    """Ray workers; each holds the whole model, and has its share of --slots."""
    worker_gpus: float = 0.0
    """GPUs per Ray worker."""
    curriculum: bool = False
    """Ask questions that are often solved first, and harder ones later."""
    save_every: int = RlConfig.save_every
    """Updates between checkpoints."""
