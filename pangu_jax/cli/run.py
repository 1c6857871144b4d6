"""Runs a program of an exported artifact on arrays; needs no model code."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import tyro

from pangu_jax.cli.progress import working
from pangu_jax.core.errors import InputError
from pangu_jax.core.files import atomic_write
from pangu_jax.export import parity
from pangu_jax.export.artifact import load_npz
from pangu_jax.export.run import check, open_runner


@dataclass(frozen=True)
class Options:
    """What to run on what."""

    artifact: Annotated[str, tyro.conf.Positional]
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


def main(options: Options) -> None:
    """Runs a program, or the check; without either, prints the signature."""
    if options.check:
        with working(f"checking {options.artifact}"):
            artifact, rows = check(options.artifact, provider=options.provider)
        print(parity.table(rows))
        parity.require(rows, artifact.tolerance, "the results are not those of the export")
        return
    artifact, run = open_runner(options.artifact, provider=options.provider)
    if options.inputs is None:
        print(_signature(artifact))
        return
    results = run(options.program, load_npz(options.inputs))
    if options.out is None:
        for name, array in results.items():
            print(f"{name:12} {array.dtype.name} {list(array.shape)}")
        return
    if Path(options.out).suffix != ".npz":
        raise InputError(f"--out is {options.out!r}; results are written as .npz")
    with atomic_write(options.out, "wb") as file:
        np.savez(file, **results)


def _signature(artifact) -> str:
    lines = []
    for program in artifact.programs:
        lines.append(program.name)
        for side, tensors in (("in ", program.inputs), ("out", program.outputs)):
            lines += [
                f"  {side} {t.name:14} {t.dtype} [{', '.join(map(str, t.shape))}]" for t in tensors
            ]
    return "\n".join(lines)
