"""Runs a program of an exported artifact on arrays; needs no model code."""

from dataclasses import dataclass
from typing import Annotated

import tyro


@dataclass(frozen=True)
class Options:
    """What to run on what."""

    artifact: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="ARTIFACT")]
    """A folder that `pangu-jax export` wrote."""
    program: str | None = None
    """Which of its programs; needed only if there are several."""
    inputs: str | None = None
    """An .npz file with one array for each input; None prints what the programs take and give."""
    out: str | None = None
    """The .npz file to write the results to; None prints their types and shapes."""
    check: bool = False
    """Run the samples that the artifact keeps, and compare with jax's results at export."""
    provider: str = "CPUExecutionProvider"
    """For ONNX: onnxruntime's provider, such as CANNExecutionProvider."""
