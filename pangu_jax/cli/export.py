"""Exports a checkpoint: StableHLO for CPU, GPU and TPU, or ONNX, or ONNX checked for Ascend."""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from pangu_jax.cli.progress import progress, working
from pangu_jax.export.artifact import SAMPLES, Artifact
from pangu_jax.export.ascend import atc
from pangu_jax.task.export import SCRIPT, atc_commands, export_folder, platforms
from pangu_jax.task.options import ExportOptions
from pangu_jax.task.watch import Watch


@dataclass(frozen=True, kw_only=True)
class Options(ExportOptions):
    """What to export, to which target, and how to check it."""

    checkpoint: Annotated[str, tyro.conf.Positional]
    """A run folder, a folder in the Hugging Face layout, or a trained forecaster's folder."""
    out: str
    """The folder to write; an existing artifact is replaced."""


def main(options: Options) -> None:
    """Exports, compares with jax, prints the table; keeps nothing above the tolerance."""
    watch = Watch(print, working, progress)
    artifact, compared = export_folder(options.checkpoint, options.out, options, watch=watch)
    for note in artifact.notes:
        print(f"note: {note}")
    if not compared:
        print(
            f"not compared: this machine is none of {', '.join(platforms(options))}; on one that "
            f"is, run pangu-jax run {options.out} --check"
        )
    if options.target == "ascend":
        _compile(options, artifact)
    count = len(artifact.programs)
    check = " --check" if SAMPLES in artifact.files else ""
    print(f"{options.out} holds {count} programs; try: pangu-jax run {options.out}{check}")


def _compile(options: Options, artifact: Artifact) -> None:
    commands = atc_commands(options, artifact)
    for words in commands:
        print(" ".join(words))
    outcome = atc.run_atc(Path(options.out), commands, script_name=SCRIPT)
    print(outcome.message)
    if any(outcome.statuses.values()):
        print("the ONNX programs are good; the failure is atc's", file=sys.stderr)
        raise SystemExit(1)
