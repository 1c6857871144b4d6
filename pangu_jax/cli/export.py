"""Runs `pangu-jax export`; its options are in `cli/options/export.py`."""

import sys
from pathlib import Path

from pangu_jax.cli.options.export import Options
from pangu_jax.cli.progress import progress, working
from pangu_jax.export.artifact import SAMPLES, Artifact
from pangu_jax.export.ascend import atc
from pangu_jax.task.export import SCRIPT, atc_commands, export_folder, platforms
from pangu_jax.task.watch import Watch


def main(options: Options) -> None:
    """Exports, compares with jax and prints the table; above the tolerance, nothing is kept."""
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
