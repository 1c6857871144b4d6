"""Exports a checkpoint: StableHLO for CPU, GPU and TPU, or ONNX, or ONNX checked for Ascend."""

from dataclasses import dataclass
from typing import Annotated

import tyro

from pangu_jax.task.options import ExportOptions


@dataclass(frozen=True, kw_only=True)
class Options(ExportOptions):
    """What to export, to which target, and how to check it."""

    checkpoint: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="CHECKPOINT")]
    """A run folder, a folder in the Hugging Face layout, or a trained forecaster's folder."""
    out: str
    """The folder to write; an existing artifact is replaced."""
