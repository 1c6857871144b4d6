"""An exported artifact: a folder with programs, weights and a manifest of checksums.

    OUT/artifact.json     signature, platforms, versions, operator counts, checksums
    OUT/<program>.*       one file per program
    OUT/weights.*         the parameters that the programs share
    OUT/samples.npz       inputs and jax's results, so that any machine can check itself

Nothing here imports a model, so an artifact runs where none is known.
"""

import contextlib
import dataclasses
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from pangu_jax.core import files
from pangu_jax.core.config import check_choices, from_json, read_json, to_json
from pangu_jax.core.digest import json_digest, sha256
from pangu_jax.core.errors import InputError
from pangu_jax.core.files import regular

MANIFEST = "artifact.json"
OLD_MANIFEST = "artefact.json"  # what older exports call it
SAMPLES = "samples.npz"
SAMPLES_LIMIT = 2**28  # bytes; larger samples are compared at export and not kept


@dataclasses.dataclass(frozen=True)
class Tensor:
    """One input or result; a dimension given as a letter is chosen at each call."""

    name: str
    shape: tuple[int | str, ...]
    dtype: str

    def __post_init__(self):
        if not re.fullmatch(r"bool|u?int(8|16|32|64)|float(16|32|64)|bfloat16", self.dtype):
            raise InputError(f"{self.name} must be of a type such as float32, got {self.dtype!r}")


@dataclasses.dataclass(frozen=True)
class Compiled:
    """One program of an artifact.

    Attributes:
      name: its name.
      file: its file in the folder.
      inputs: in the order of the signature.
      outputs: the results.
      operators: number of nodes of each operator.
    """

    name: str
    file: str
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    operators: dict[str, int]


@dataclasses.dataclass(frozen=True)
class Artifact:
    """The manifest of an exported folder.

    Attributes:
      target: kind of programs.
      programs: the programs.
      files: SHA-256 of every file.
      platforms: platforms that run them.
      versions: of jax and this library at export, and of the format.
      weights: the file of weights, "" if they are inside the programs.
      tolerance: the relative error that parity was held to.
      facts: sizes a caller needs, such as the profiles and the slots of a decoder.
      notes: remarks of the exporter.
    """

    target: Literal["onnx", "stablehlo"]
    programs: tuple[Compiled, ...]
    files: dict[str, str]
    platforms: tuple[str, ...]
    versions: dict[str, str]
    weights: str = ""
    tolerance: float = 2e-5
    facts: dict[str, int | str | tuple[int, ...]] = dataclasses.field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def __post_init__(self):
        check_choices(self, "an artifact's")

    def program(self, name: str | None) -> Compiled:
        """The program of that name; None is the only one.

        Raises:
          InputError: no such program, or no name for one of several.
        """
        known = {p.name: p for p in self.programs}
        if name is None and len(known) == 1:
            return self.programs[0]
        if name not in known:
            asked = "name a program" if name is None else f"there is no program {name!r}"
            raise InputError(f"{asked}; the artifact has {', '.join(known)}")
        return known[name]


def save(artifact: Artifact, folder: Path) -> Artifact:
    """Writes the manifest, with the checksum of every other file of the folder.

    Returns:
      The artifact with these checksums.
    """
    names = sorted(p.name for p in folder.iterdir() if p.name != MANIFEST)
    artifact = dataclasses.replace(artifact, files={n: sha256(folder / n) for n in names})
    values = to_json(artifact)
    values["seal"] = json_digest(values)
    (folder / MANIFEST).write_text(json.dumps(values, indent=1) + "\n", encoding="utf-8")
    return artifact


def load(folder: str | Path) -> Artifact:
    """Reads the manifest and checks every file against it.

    Raises:
      InputError: no artifact, or one that was changed, cut short or is incomplete, or that names
        files outside its folder or without a checksum.
    """
    folder = Path(folder)
    path = folder / MANIFEST
    if not path.is_file() and (folder / OLD_MANIFEST).is_file():
        path = folder / OLD_MANIFEST
    if not path.is_file():
        raise InputError(f"{folder} is no artifact: it has no {MANIFEST}")
    values = read_json(path)
    if not isinstance(values, dict) or values.pop("seal", None) != json_digest(values):
        raise InputError(f"{path} was changed after the export: its seal does not fit")
    artifact = from_json(Artifact, values, str(path))
    for name, digest in artifact.files.items():
        if name != Path(name).name or name in ("", ".", ".."):
            raise InputError(f"{path} names a file outside its folder: {name!r}")
        if not (folder / name).exists():
            raise InputError(
                f"{folder} lacks {name}, which its manifest lists: the copy is not whole"
            )
        if (folder / name).is_symlink():
            raise InputError(f"{folder / name} is a link; put the file itself there")
        if sha256(regular(folder / name)) != digest:
            raise InputError(f"{folder / name} is damaged: it is not the file that was exported")
    used = [p.file for p in artifact.programs] + [artifact.weights] * bool(artifact.weights)
    for name in used:
        if name not in artifact.files:
            raise InputError(f"{path} has no checksum of {name!r}, which it uses")
    return artifact


@contextlib.contextmanager
def new_folder(path: str | Path) -> Iterator[Path]:
    """A folder to fill, which replaces `path` when the block succeeds.

    An existing artifact is replaced; anything else is left alone.

    Raises:
      InputError: `path` is neither an artifact nor an empty folder.
    """
    path = Path(path)
    if path.exists() and not (path.is_dir() and (not any(path.iterdir()) or _ours(path))):
        raise InputError(f"{path} exists and is no artifact of ours: choose another folder")
    with files.new_folder(path, replace=True) as folder:
        yield folder


def save_samples(folder: Path, samples: Mapping[tuple[str, str], tuple[Any, Any]]) -> bool:
    """Keeps {(program, sample): (inputs, results)}, arrays by name, unless it is large."""
    flat = {
        f"{program}/{sample}/{side}/{name}": np.asarray(array)
        for (program, sample), pair in samples.items()
        for side, arrays in zip(("in", "out"), pair, strict=True)
        for name, array in arrays.items()
    }
    if sum(a.nbytes for a in flat.values()) > SAMPLES_LIMIT:
        return False
    # npz has no bfloat16; float32 holds every one of its values.
    plain = {n: a.astype(np.float32) if a.dtype.kind == "V" or a.dtype.name == "bfloat16" else a
             for n, a in flat.items()}  # fmt: skip
    np.savez(folder / SAMPLES, **plain)
    return True


def load_samples(
    artifact: Artifact, folder: str | Path
) -> dict[tuple[str, str], tuple[dict, dict]]:
    """{(program, sample): (inputs, jax's results)} of an artifact that was loaded from a folder.

    Raises:
      InputError: the artifact keeps none, or some that do not match its programs.
    """
    path = Path(folder) / SAMPLES
    if SAMPLES not in artifact.files:
        raise InputError(f"{folder} keeps no samples: they were too large; give inputs")
    found: dict[tuple[str, str], tuple[dict, dict]] = {}
    for key, array in load_npz(path).items():
        parts = key.split("/", 3)
        if len(parts) != 4 or parts[2] not in ("in", "out"):
            raise InputError(f"{path} holds {key!r}, not program/sample/in or out/name")
        program, sample, side, name = parts
        pair = found.setdefault((artifact.program(program).name, sample), ({}, {}))
        pair[side == "out"][name] = array
    return found


def load_npz(path: str | Path) -> dict[str, np.ndarray]:
    """Arrays of an .npz file.

    Raises:
      InputError: no such file, or not a plain .npz.
    """
    try:
        with regular(path).open("rb") as file:
            found = np.load(file, allow_pickle=False)
            if isinstance(found, np.ndarray):
                raise InputError(f"{path} is one array; inputs are an .npz of named arrays")
            return {name: _array(found[name], name, path) for name in found.files}
    except InputError:
        raise
    except Exception as error:  # numpy, zipfile and zlib raise many kinds
        raise InputError(f"cannot read {path} as .npz: {error or type(error).__name__}") from error


def _array(found: Any, name: str, path: str | Path) -> np.ndarray:
    if not isinstance(found, np.ndarray):  # numpy returns bytes for members that are not arrays
        raise InputError(f"cannot read {path} as .npz: {name!r} is no array")
    return found


def fit_inputs(program: Compiled, given: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """The inputs in the signature's types.

    Raises:
      InputError: an input is missing, unknown, or of another shape or type, or a decoder's row has
        more tokens than the program takes.
    """
    wanted = {t.name: t for t in program.inputs}
    surplus = [n for n in given if n not in wanted]
    if surplus:
        raise InputError(
            f"{program.name} has no input {surplus[0]!r}; it takes {', '.join(wanted)}"
        )
    sizes: dict[str, tuple[int, str]] = {}
    fitted = {}
    for name, tensor in wanted.items():
        if name not in given:
            raise InputError(f"{program.name} lacks the input {name!r} {_form(tensor)}")
        array = np.asarray(given[name])
        dtype = _as_numpy(tensor.dtype)
        same = array.dtype == dtype or (array.dtype == np.float32 and tensor.dtype == "bfloat16")
        if not same:
            raise InputError(f"input {name!r} is {array.dtype.name}, it must be {tensor.dtype}")
        _fit_shape(name, tensor, array.shape, sizes)
        fitted[name] = array.astype(dtype, copy=False)
    _check_places(program, fitted)
    return fitted


def _check_places(program: Compiled, inputs: Mapping[str, np.ndarray]) -> None:
    """Checks where a decoder's rows end, which its graphs do not."""
    for name, beside, first in (("length", "tokens", 1), ("position", "past_key_0", 0)):
        if {name, beside} <= inputs.keys():
            last = inputs[beside].shape[1] - 1 + first
            outside = [n for n in inputs[name].flat if not first <= n <= last]
            if outside:
                raise InputError(
                    f"input {name!r} has {outside[0]}; {program.name} takes {first} to {last}"
                )


def _fit_shape(name: str, tensor: Tensor, shape: Sequence[int], sizes: dict) -> None:
    if len(shape) != len(tensor.shape):
        raise InputError(f"input {name!r} has shape {tuple(shape)}, it must be {_form(tensor)}")
    for size, wanted in zip(shape, tensor.shape, strict=True):
        if isinstance(wanted, str):
            first = sizes.setdefault(wanted, (size, name))
            if size != first[0]:
                raise InputError(
                    f"input {name!r} has {wanted} = {size}, {first[1]!r} has {first[0]}"
                )
        elif size != wanted:
            raise InputError(f"input {name!r} has shape {tuple(shape)}, it must be {_form(tensor)}")


def _form(tensor: Tensor) -> str:
    return f"{tensor.dtype} [{', '.join(map(str, tensor.shape))}]"


def _as_numpy(name: str) -> np.dtype:
    import ml_dtypes

    return np.dtype(ml_dtypes.bfloat16) if name == "bfloat16" else np.dtype(name)


def _ours(path: Path) -> bool:
    return (path / MANIFEST).is_file() or (path / OLD_MANIFEST).is_file()
