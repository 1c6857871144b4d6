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
    """Which of its programs; may be left out where there is one."""
    inputs: str | None = None
    """An .npz with one array for each input."""
    out: str | None = None
    """Where to write the results as .npz; None prints what they are."""
    check: bool = False
    """Run the samples that the artifact keeps, and compare with jax's results at export."""
    provider: str = "CPUExecutionProvider"
    """For ONNX: onnxruntime's provider, such as CANNExecutionProvider."""
