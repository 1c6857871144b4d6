"""The tensors of a folder of safetensors files: finding, viewing and writing them."""

import dataclasses
import json
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from pangu_jax.core.config import read_json
from pangu_jax.core.errors import InputError
from pangu_jax.core.files import atomic_write

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"

DTYPES = {
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
}


@dataclasses.dataclass(frozen=True)
class Stored:
    """Where one tensor lies.

    Attributes:
      file: its file.
      dtype: the format's name of its type, such as "BF16".
      shape: its shape.
      offset: of its first byte in the file.
    """

    file: Path
    dtype: str
    shape: tuple[int, ...]
    offset: int


def find(folder: str | Path) -> dict[str, Stored]:
    """All tensors of a folder by name, from one file or from those that the index lists.

    Raises:
      InputError: there are no safetensors files, one is missing or damaged, or the index and the
        files disagree.
    """
    folder = Path(folder)
    if (folder / INDEX).exists():
        return _find_indexed(folder)
    if (folder / SINGLE).exists():
        return _header(folder / SINGLE)
    if any(folder.glob("*.bin")):
        raise InputError(
            f"{folder} holds pickled weights (.bin), which are not read because pickle runs code; "
            "convert them where you trust them: AutoModelForCausalLM.from_pretrained(folder)"
            ".save_pretrained(new_folder)"
        )
    raise InputError(f"{folder} holds neither {SINGLE} nor {INDEX}")


def view(stored: Stored) -> np.ndarray:
    """A tensor as an array on the mapped file: no memory is taken until it is read."""
    shape = stored.shape or (1,)
    array = np.memmap(stored.file, DTYPES[stored.dtype], "r", stored.offset, shape)
    return np.asarray(array).reshape(stored.shape)


def write(folder: Path, shards: list[dict[str, Any]]) -> None:
    """Writes shards of tensors, each made when it is its turn, and the index if there are several.

    Args:
      folder: where to write.
      shards: for each file, {tensor name: function that makes the array}.
    """
    weight_map, total = {}, 0
    for number, shard in enumerate(shards, start=1):
        single = len(shards) == 1
        file = SINGLE if single else f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        arrays = {name: make() for name, make in shard.items()}
        # transformers before 5 wants to be told which library's layout the tensors have.
        save_file(arrays, folder / file, metadata={"format": "pt"})
        # The library makes the file private; it gets the mode an ordinary one would have.
        (folder / file).chmod(0o666 & folder.stat().st_mode)
        weight_map |= dict.fromkeys(arrays, file)
        total += sum(array.nbytes for array in arrays.values())
    if len(shards) > 1:
        with atomic_write(folder / INDEX) as file:
            index = {"metadata": {"total_size": total}, "weight_map": weight_map}
            json.dump(index, file, indent=2)


def _find_indexed(folder: Path) -> dict[str, Stored]:
    index = read_json(folder / INDEX)
    weight_map = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(weight_map, Mapping):
        raise InputError(f"{folder / INDEX} lacks weight_map")
    tensors: dict[str, Stored] = {}
    for file in sorted(set(map(str, weight_map.values()))):
        if Path(file).name != file:
            raise InputError(f"{folder / INDEX} names a file outside its folder: {file!r}")
        if not (folder / file).exists():
            raise InputError(f"{folder / file} is missing, {INDEX} lists it")
        for name, stored in _header(folder / file).items():
            if name in tensors:
                raise InputError(f"tensor {name} is both in {tensors[name].file} and {file}")
            tensors[name] = stored
    for name, file in weight_map.items():
        if name not in tensors:
            raise InputError(f"tensor {name} is not in {folder / file}, where {INDEX} has it")
    return tensors


def _header(file: Path) -> dict[str, Stored]:
    try:
        # The library checks the header: sizes, overlaps, the file's length.
        with safe_open(file, framework="numpy"):
            pass
        with open(file, "rb") as stream:
            (length,) = struct.unpack("<Q", stream.read(8))
            header = json.loads(stream.read(length), object_pairs_hook=_once)
    except _Twice as error:
        raise InputError(f"{file} names {error} twice") from error
    except (SafetensorError, OSError) as error:
        raise InputError(f"{file} is not a whole safetensors file: {error}") from error
    header.pop("__metadata__", None)
    return {
        name: Stored(file, entry["dtype"], tuple(entry["shape"]), 8 + length + start)
        for name, entry in header.items()
        for start in entry["data_offsets"][:1]
    }


class _Twice(Exception):
    pass


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object none of whose names comes twice, as Python would take the last in silence."""
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        raise _Twice(next(name for name in names if names.count(name) > 1))
    return found
