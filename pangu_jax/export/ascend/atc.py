"""The atc command line: a pure function of the artifact, and the one place that runs it.

The flags are those of the ATC guide of CANN 8.0 to 9.0. Every program has static shapes, so each
becomes one .om with its shapes spelled out, and none of the dynamic-shape flags is needed.
"""

import dataclasses
import re
import shlex
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from pangu_jax.core.errors import InputError
from pangu_jax.core.files import atomic_write
from pangu_jax.export.artifact import Artifact, Compiled

# Names of --soc_version: "Ascend" and the name that `npu-smi info` shows. From the SoC table of
# Ascend's RecSDK (cust_op/ascendc_op/config/transform.json).
SOCS = (
    "Ascend310P1", "Ascend310P3", "Ascend310P5", "Ascend310P7",
    *(f"Ascend310P3Vir{n:02d}" for n in range(1, 9)),
    "Ascend310B1", "Ascend310B2", "Ascend310B3", "Ascend310B4",
    "Ascend910A", "Ascend910ProA", "Ascend910PremiumA", "Ascend910B",
    "Ascend910B1", "Ascend910B2", "Ascend910B2C", "Ascend910B3", "Ascend910B4", "Ascend910B4-1",
    "Ascend910_9391", "Ascend910_9392", "Ascend910_9381", "Ascend910_9382", "Ascend910_9372",
    "Ascend910_9362", "Ascend950PR", "Ascend950DT",
)  # fmt: skip

PRECISION_MODES = (
    "force_fp16", "force_fp32", "cube_fp16in_fp32out", "must_keep_origin_dtype",
    "allow_fp32_to_fp16", "allow_mix_precision",
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Outcome:
    """Result of compiling: whether atc ran, the exit status of each call, and a message."""

    ran: bool
    statuses: dict[str, int]
    message: str


def check_soc(name: str) -> str:
    """The SoC name as atc spells it.

    Raises:
      InputError: an unknown one.
    """
    known = {soc.lower(): soc for soc in SOCS}
    if name.lower() in known:
        return known[name.lower()]
    stem = re.sub(r"[^a-z0-9]", "", name.lower())
    near = [s for s in SOCS if stem and re.sub(r"[^a-z0-9]", "", s.lower()).startswith(stem[:9])]
    raise InputError(
        f"there is no SoC {name!r}; it is Ascend and the name that `npu-smi info` shows, such as "
        f"{', '.join(near[:4] or ['Ascend310P3', 'Ascend910B4'])}"
    )


def atc_command(
    program: Compiled, soc: str, *, precision_mode: str | None = None, log: str = "error"
) -> list[str]:
    """The words of the command that compiles one program, to be run in the artifact's folder.

    Args:
      program: a program of static shape.
      soc: name of the chip.
      precision_mode: precision of float32 operators; None leaves it to atc, which prefers float16.
      log: level of atc's log.

    Raises:
      InputError: an unknown chip or precision mode, or a symbolic dimension.
    """
    soc = check_soc(soc)
    if precision_mode is not None and precision_mode not in PRECISION_MODES:
        known = ", ".join(PRECISION_MODES)
        raise InputError(f"there is no precision mode {precision_mode!r}; known: {known}")
    for tensor in program.inputs:
        if any(isinstance(size, str) for size in tensor.shape):
            raise InputError(f"{program.name}: input {tensor.name} has an open dimension")
    shapes = ";".join(f"{t.name}:{','.join(map(str, t.shape))}" for t in program.inputs)
    words = [
        "atc",
        f"--model={program.file}",
        "--framework=5",
        f"--output={Path(program.file).stem}",
        f"--soc_version={soc}",
        "--input_format=ND",
        f"--input_shape={shapes}",
        f"--log={log}",
    ]
    return words if precision_mode is None else [*words, f"--precision_mode={precision_mode}"]


def select(artifact: Artifact, profiles: Sequence[int] | None) -> list[Compiled]:
    """The programs to compile: all, or the decoding step and the prefills of these lengths.

    Raises:
      InputError: a profile that was not exported.
    """
    if profiles is None:
        return list(artifact.programs)
    exported = artifact.facts.get("profiles", ())
    for length in profiles:
        if not isinstance(exported, tuple) or length not in exported:
            known = ", ".join(map(str, exported)) if isinstance(exported, tuple) else "none"
            raise InputError(f"profile {length} was not exported; the artifact has {known}")
    names = {f"prefill_{length}" for length in profiles} | {"decode"}
    return [p for p in artifact.programs if p.name in names]


def script(commands: Sequence[Sequence[str]]) -> str:
    """A shell script that runs the commands in its own folder and stops at the first failure."""
    lines = [
        "#!/bin/sh",
        "# Compiles the ONNX programs of this folder for Ascend; needs CANN's atc.",
        "set -eu",
        'cd "$(dirname "$0")"',
    ]
    return "\n".join([*lines, *(shlex.join(words) for words in commands)]) + "\n"


def write_script(path: Path, commands: Sequence[Sequence[str]]) -> None:
    """Writes `script`, executable."""
    with atomic_write(path) as file:
        file.write(script(commands))
    path.chmod(0o755)


def run_atc(folder: Path, commands: Sequence[Sequence[str]], *, script_name: str) -> Outcome:
    """Runs the commands if atc is installed, logging to atc.log; else says what to run where."""
    if shutil.which("atc") is None:
        return Outcome(
            False,
            {},
            "atc is not on this machine's PATH: copy the folder to a machine with CANN and run "
            f"./{script_name} there; or run the .onnx files as they are with onnxruntime's "
            "CANNExecutionProvider",
        )
    statuses, kept = {}, []
    for words in commands:
        done = subprocess.run(words, cwd=folder, capture_output=True, text=True, check=False)
        statuses[words[1].partition("=")[2]] = done.returncode
        kept.append(
            f"$ {shlex.join(words)}\n{done.stdout}{done.stderr}[status {done.returncode}]\n"
        )
    with atomic_write(folder / "atc.log") as file:
        file.write("\n".join(kept))
    failed = [name for name, status in statuses.items() if status]
    ended = (
        f"atc failed on {', '.join(failed)}" if failed else f"atc compiled {len(statuses)} programs"
    )
    return Outcome(True, statuses, f"{ended}; its output is in atc.log")
