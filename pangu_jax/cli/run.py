"""Runs `pangu-jax run`; its options are in `cli/options/run.py`."""

from pathlib import Path

import numpy as np

from pangu_jax.cli.options.run import Options
from pangu_jax.cli.progress import working
from pangu_jax.core.errors import InputError
from pangu_jax.core.files import atomic_write
from pangu_jax.export import parity
from pangu_jax.export.artifact import load_npz
from pangu_jax.export.run import check, open_runner


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
