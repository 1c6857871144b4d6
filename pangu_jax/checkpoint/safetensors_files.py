"""Folders of safetensors files: finding, viewing and writing their tensors."""

import dataclasses
import json
import os
import struct
from collections.abc import Callable, Mapping
from pathlib import Path

import ml_dtypes
import numpy as np
from safetensors import SafetensorError, safe_open

from pangu_jax.core.config import parse_json, read_json
from pangu_jax.core.errors import InputError
from pangu_jax.core.files import atomic_write, regular

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"

DTYPES = {
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
}
NAMES = {dtype: name for name, dtype in DTYPES.items()}


@dataclasses.dataclass(frozen=True)
class StoredTensor:
    """The location of one tensor.

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

    @property
    def numpy(self) -> np.dtype | None:
        """The dtype of `view`, None if the format's type cannot be read."""
        return DTYPES.get(self.dtype)

    def view(self) -> np.ndarray:
        """The tensor as an array on the mapped file: no memory is taken until it is read."""
        array = np.memmap(self.file, self.numpy, "r", self.offset, self.shape or (1,))
        return np.asarray(array).reshape(self.shape)


@dataclasses.dataclass(frozen=True)
class PendingTensor:
    """A tensor to write: its type, its shape, and a function that makes it on demand."""

    dtype: np.dtype
    shape: tuple[int, ...]
    make: Callable[[], np.ndarray]

    @property
    def nbytes(self) -> int:
        """Bytes that it takes."""
        return int(np.prod(self.shape, dtype=np.int64)) * self.dtype.itemsize


def find(folder: str | Path) -> dict[str, StoredTensor]:
    """All tensors of a folder by name: from the single file, else from those of the index.

    Raises:
      InputError: there are no safetensors files, one is missing or damaged, or the index and the
        files disagree.
    """
    folder = Path(folder)
    # A dangling link counts as there: the next kind of file must not be read instead.
    if os.path.lexists(folder / SINGLE):  # first, as in transformers
        return header(own_file(folder, SINGLE))
    if os.path.lexists(folder / INDEX):
        return _find_indexed(folder)
    if any(folder.glob("*.bin")):
        raise InputError(
            f"{folder} holds pickled weights (.bin), which are not read because pickle runs code; "
            "convert them where you trust them: AutoModelForCausalLM.from_pretrained(folder)"
            ".save_pretrained(new_folder)"
        )
    raise InputError(f"{folder} holds neither {SINGLE} nor {INDEX}")


def own_file(folder: str | Path, name: str) -> Path:
    """A file of a checkpoint's folder; a link is followed if it stays inside.

    In the cache of the Hugging Face hub, models--*/snapshots/REVISION holds links to
    models--*/blobs, so there the whole repository is inside.

    Raises:
      InputError: it is missing, no ordinary file, or a link that leads elsewhere or to nothing.
    """
    path = Path(folder) / name
    if path.is_symlink() and not os.path.exists(path):
        raise InputError(f"{path} is a link to {os.readlink(path)}, which is not there")
    regular(path)
    inside = Path(folder).resolve()
    for parent in inside.parents:
        if parent.name == "snapshots" and parent.parent.name.startswith("models--"):
            inside = parent.parent
    if not path.resolve().is_relative_to(inside):
        raise InputError(
            f"{path} is a link to {path.resolve()}, outside {inside}; put the file itself there"
        )
    return path


def write(folder: Path, shards: list[dict[str, PendingTensor]]) -> None:
    """Writes shards of tensors, one tensor at a time, and the index if there are several.

    Args:
      folder: folder to write to.
      shards: for each file, its tensors by name.

    Raises:
      InputError: the written files do not read back as intended.
    """
    weight_map, total = {}, 0
    for number, shard in enumerate(shards, start=1):
        single = len(shards) == 1
        file = SINGLE if single else f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        _write_file(folder / file, shard)
        weight_map |= dict.fromkeys(shard, file)
        total += sum(tensor.nbytes for tensor in shard.values())
    if len(shards) > 1:
        with atomic_write(folder / INDEX) as file:
            index = {"metadata": {"total_size": total}, "weight_map": weight_map}
            json.dump(index, file, indent=2)


def header(file: Path) -> dict[str, StoredTensor]:
    """The tensors of one safetensors file, from its header.

    Raises:
      InputError: it is not a complete safetensors file.
    """
    try:
        # The library checks the header: sizes, overlaps, the file's length.
        with safe_open(regular(file), framework="numpy"):
            pass
        with open(file, "rb") as stream:
            (length,) = struct.unpack("<Q", stream.read(8))
            found = parse_json(stream.read(length), str(file))
    except (SafetensorError, OSError) as error:
        raise InputError(f"{file} is not a whole safetensors file: {error}") from error
    found.pop("__metadata__", None)
    return {
        name: StoredTensor(file, entry["dtype"], tuple(entry["shape"]), 8 + length + start)
        for name, entry in found.items()
        for start in entry["data_offsets"][:1]
    }


def _write_file(path: Path, tensors: Mapping[str, PendingTensor]) -> None:
    """Writes one file tensor by tensor; the library would need all of them at once.

    Source: the format's description at github.com/huggingface/safetensors.
    """
    # In the library's order: wide types first, so that every tensor is aligned.
    order = sorted(tensors, key=lambda name: -tensors[name].dtype.itemsize)
    # transformers before 5 requires the name of the library whose layout this is.
    head: dict[str, object] = {"__metadata__": {"format": "pt"}}
    expected, end = {}, 0
    for name in order:
        tensor = tensors[name]
        dtype, begin, end = NAMES[tensor.dtype], end, end + tensor.nbytes
        head[name] = {"dtype": dtype, "shape": tensor.shape, "data_offsets": (begin, end)}
        expected[name] = (dtype, tensor.shape)
    text = json.dumps(head, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "xb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for name in order:
            array = np.ascontiguousarray(tensors[name].make(), tensors[name].dtype)
            file.write(array.reshape(-1).view(np.uint8).data)
    found = {name: (stored.dtype, stored.shape) for name, stored in header(path).items()}
    if found != expected:
        raise InputError(f"{path} was not written as it was meant")


def _find_indexed(folder: Path) -> dict[str, StoredTensor]:
    index = read_json(own_file(folder, INDEX))
    weight_map = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(weight_map, Mapping):
        raise InputError(f"{folder / INDEX} lacks weight_map")
    tensors: dict[str, StoredTensor] = {}
    for file in sorted(set(map(str, weight_map.values()))):
        if Path(file).name != file:
            raise InputError(f"{folder / INDEX} names a file outside its folder: {file!r:.200}")
        if not os.path.lexists(folder / file):
            raise InputError(f"{folder}: {file:.200} is missing, {INDEX} lists it")
        for name, stored in header(own_file(folder, file)).items():
            if name in tensors:
                raise InputError(f"tensor {name} is both in {tensors[name].file} and {file}")
            tensors[name] = stored
    for name, file in weight_map.items():
        if name not in tensors:
            raise InputError(f"tensor {name} is not in {folder / file}, where {INDEX} has it")
    return tensors
