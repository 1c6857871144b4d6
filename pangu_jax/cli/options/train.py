"""Trains a language model on text; the same command resumes a stopped run."""

from dataclasses import dataclass
from typing import Annotated, Literal

import tyro

from pangu_jax.train.language_config import AUX_WEIGHT
from pangu_jax.train.loop_config import LoopConfig
from pangu_jax.train.optimizer_config import OptimizerConfig


@dataclass(frozen=True)
class Options:
    """What to train, on which data, for how long."""

    data: str
    """A file or folder of .txt or .jsonl, either possibly .gz; "stdlib"; "packages"."""
    out: str
    """The run's folder: configuration, metrics, checkpoints."""
    preset: str = "moge-tiny"
    """Name of a model: pangu-pro-moe, moge-tiny, moge-small, moge-medium, dense-tiny,
    dense-small, dense-shallow."""
    init: str | None = None
    """A checkpoint (run folder or Hugging Face folder) to start from, instead of a preset."""
    tokenizer: str = "bytes"
    """"bytes", or a Hugging Face tokenizer.json (or the folder that holds it)."""
    field: str = "text"
    """The key of the text in .jsonl lines."""
    held_out: float = 0.1
    """Share of documents held out for evaluation, chosen by the hash of their name."""
    steps: int = 1000
    """Optimizer steps."""
    batch: int = 8
    """Windows per step."""
    length: int = 256
    """Tokens per window."""
    accumulate: int = LoopConfig.accumulate
    """Microbatches per batch (gradient accumulation)."""
    optimizer: Annotated[OptimizerConfig, tyro.conf.arg(name="optimizer")] = OptimizerConfig()
    aux_weight: float = AUX_WEIGHT
    """Weight of the auxiliary load-balancing loss."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Type of the activations; parameters are float32."""
    remat: Literal["full", "dots"] | None = None
    """What the backward pass recomputes."""
    mesh: str = ""
    """Mesh of devices, such as "fsdp=4,tensor=2"; empty is one device."""
    coordinator: str = ""
    """host:port of process 0, if several processes train together; "auto" asks the cluster."""
    processes: int | None = None
    """Number of processes that train together."""
    process: int | None = None
    """Index of this process, from 0."""
    rules: str = "fsdp"
    """What is sharded over the mesh: ddp, fsdp, tensor, expert, h2p, joined with +."""
    seed: int = 0
    """Seed of the initial values and of the data order."""
    checkpoint_every: int = LoopConfig.checkpoint_every
    """Steps between checkpoints."""
    evaluate_every: int = LoopConfig.evaluate_every
    """Steps between evaluations on held-out text; 0 evaluates at the end only."""
    profile: bool = False
    """Profile a few steps into the run's folder profile/, and print where time and memory go."""
    evaluate_tokens: int = 100_000
    """Approximate number of held-out tokens per evaluation."""
