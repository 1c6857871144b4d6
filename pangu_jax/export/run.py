"""Runs an artifact of either kind, and checks it against its stored results."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from pangu_jax.core.errors import InputError
from pangu_jax.export.artifact import (
    SAMPLES,
    Artifact,
    Compiled,
    fit_inputs,
    load,
    load_samples,
)
from pangu_jax.export.parity import Row, compare

Runner = Callable[[str | None, Mapping[str, Any]], dict[str, np.ndarray]]


def open_runner(
    folder: str | Path, *, provider: str = "CPUExecutionProvider"
) -> tuple[Artifact, Runner]:
    """The manifest of an artifact, and a function of (program, inputs) that runs it.

    Args:
      folder: the artifact.
      provider: of onnxruntime, for ONNX: "CPUExecutionProvider", "CANNExecutionProvider"...

    Raises:
      InputError: the artifact is damaged, or cannot run here.
    """
    artifact = load(folder)
    if artifact.target == "stablehlo":
        from pangu_jax.export import stablehlo

        return artifact, stablehlo.open_artifact(folder)
    return artifact, _onnx_runner(artifact, Path(folder), provider)


def _onnx_runner(artifact: Artifact, folder: Path, provider: str) -> Runner:
    from pangu_jax.export.onnx.write import Session

    sessions: dict[str, Session] = {}

    def run(name: str | None, inputs: Mapping[str, Any]) -> dict[str, np.ndarray]:
        program = artifact.program(name)
        fitted = fit_inputs(program, inputs)
        if program.name not in sessions:
            sessions[program.name] = Session(folder / program.file, provider)
        try:
            return sessions[program.name](fitted)
        except Exception as error:  # its types have no common public base
            raise InputError(f"onnxruntime cannot run {program.name}: {error}") from error

    return run


def check(
    folder: str | Path, *, provider: str = "CPUExecutionProvider"
) -> tuple[Artifact, list[Row]]:
    """Runs the samples that the artifact keeps and compares with jax's results at export.

    Raises:
      InputError: the artifact is damaged, keeps no samples, or cannot run here.
    """
    artifact, run = open_runner(folder, provider=provider)
    rows = []
    for (program, sample), (inputs, results) in load_samples(artifact, folder).items():
        _check_results(artifact.program(program), sample, results)
        rows += compare(program, sample, results, run(program, inputs))
    if not rows:
        raise InputError(f"{Path(folder) / SAMPLES} holds no samples: nothing can be compared")
    return artifact, rows


def _check_results(program: Compiled, sample: str, results: Mapping[str, np.ndarray]) -> None:
    """Checks that a sample has every result of the program, as numbers."""
    wanted = {t.name for t in program.outputs}
    if results.keys() != wanted:
        name = sorted(results.keys() ^ wanted)[0]
        what = "lacks the result" if name in wanted else "has a result that it does not give,"
        raise InputError(f"the sample {sample!r} of {program.name} {what} {name!r}")
    for name, array in results.items():
        if array.dtype.kind not in "biuf":
            raise InputError(
                f"the result {name!r} of the sample {sample!r} of {program.name} is "
                f"{array.dtype}, it must be of numbers"
            )
