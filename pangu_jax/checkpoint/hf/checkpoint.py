"""An opened checkpoint of another library: its configuration matched with its tensors."""

import abc
import dataclasses
import logging
import os
import re
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from pangu_jax.checkpoint import safetensors_files
from pangu_jax.checkpoint.hf.config import CONFIG, read_config
from pangu_jax.checkpoint.hf.families.family import Family
from pangu_jax.checkpoint.hf.families.registry import named
from pangu_jax.checkpoint.hf.tensors import TensorPlace, tensor_places
from pangu_jax.checkpoint.safetensors_files import DTYPES, StoredTensor
from pangu_jax.core.errors import InputError
from pangu_jax.core.tree import check_finite, map_named
from pangu_jax.models import registry

EMBEDDING, HEAD = "embed/table", "head/kernel"


@dataclasses.dataclass(frozen=True)
class OpenCheckpoint:
    """A checkpoint's contents, read from its headers alone.

    Attributes:
      cfg: the model; untied where the tensors say so, whatever config.json says.
      family: whose names the tensors have.
      stored: the tensors present, by the family's names.
      described: the name of the file that describes the model.
    """

    cfg: Any
    family: Family
    stored: dict[str, StoredTensor]
    described: str = CONFIG


class TensorFile(Protocol):
    """One file that both describes a model and holds its tensors, such as a GGUF file."""

    @property
    def path(self) -> Path:
        """The file."""
        ...

    def read_headers(self) -> tuple[Any, Family, dict[str, StoredTensor]]:
        """The model, its family, and the tensors under the family's names."""
        ...


class LazyLeaf(abc.ABC):
    """A leaf of the parameters whose parts are computed on demand.

    Attributes:
      shape: of the leaf.
    """

    shape: tuple[int, ...]

    @abc.abstractmethod
    def at(self, index: tuple[int, ...]) -> np.ndarray:
        """The values at leading indices; all are finite."""

    @abc.abstractmethod
    def dtype_at(self, index: tuple[int, ...]) -> np.dtype:
        """The dtype of the values at leading indices."""


@dataclasses.dataclass(frozen=True)
class FileLeaf(LazyLeaf):
    """A leaf of the parameters that stays in its file until a part of it is read.

    Attributes:
      shape: of the leaf.
      parts: the tensor of each part, by leading indices.
      stored: the tensors.
    """

    shape: tuple[int, ...]
    parts: dict[tuple[int, ...], TensorPlace]
    stored: dict[str, StoredTensor]

    def at(self, index: tuple[int, ...]) -> np.ndarray:
        """The values at leading indices: a view of the mapped file; all are finite."""
        place = self._place(index)
        return read_part(self.stored[place.tensor], place, index[len(place.at) :])

    def dtype_at(self, index: tuple[int, ...]) -> np.dtype:
        """The dtype of the values at leading indices."""
        found = self.stored[self._place(index).tensor].numpy
        assert found is not None  # `assign_tensors` has seen to it
        return found

    def _place(self, index: tuple[int, ...]) -> TensorPlace:
        """The tensor that holds a part; a fused one holds more."""
        leads = (index[:n] for n in range(len(index) + 1))
        return self.parts[next(lead for lead in leads if lead in self.parts)]


def read_headers(folder: str | Path | TensorFile) -> OpenCheckpoint:
    """Reads config.json and headers; if they disagree on the head, the tensors are compared.

    A file of tensors may describe itself. In a folder, as in transformers, the family's prefix may
    be missing, and a head beside a tied embedding is tied if both are equal.

    Raises:
      InputError: either cannot be read.
    """
    if not isinstance(folder, str | os.PathLike):
        return OpenCheckpoint(*folder.read_headers(), folder.path.name)
    cfg, name = read_config(folder)
    family = named(name)
    stored = _prefixed(safetensors_files.find(folder), family)
    leaves = {leaf for leaf, tensor in family.tensors.items() if tensor in stored}
    cfg = family.infer_from_tensors(_resolve_tie(cfg, family, stored, folder), leaves)
    return OpenCheckpoint(cfg, family, stored)


def assign_tensors(
    opened: OpenCheckpoint, folder: str | Path | TensorFile
) -> dict[str, list[TensorPlace]]:
    """Assigns each tensor to its leaves, after checking that every one fits.

    Raises:
      InputError: a tensor is missing, surplus, of the wrong shape or type; names it and its file.
    """
    stored = opened.stored
    places = tensor_places(opened.cfg, opened.family, stored)
    used = set()
    for path, parts in places.items():
        for place in parts:
            if place.tensor not in stored:
                raise InputError(f"{folder} lacks the tensor {place.tensor} (for {path})")
            _check_one(place, stored[place.tensor], opened.described)
            used.add(place.tensor)
    for name, found in stored.items():
        skipped = any(re.fullmatch(pattern, name) for pattern in opened.family.skipped)
        if name not in used and not skipped:
            raise InputError(
                f"{found.file}: {name} is a tensor that {opened.described} has no use for"
            )
    return places


def view(folder: str | Path | TensorFile) -> tuple[dict[str, Any], Any]:
    """A checkpoint as a tree of `FileLeaf`, which `hf.save` can write without holding it in memory.

    Raises:
      InputError: see `assign_tensors`.
    """
    opened = read_headers(folder)
    places = assign_tensors(opened, folder)

    def leaf(name: str, spec: Any) -> FileLeaf:
        return FileLeaf(spec.shape, {place.at: place for place in places[name]}, opened.stored)

    return map_named(leaf, registry.spec(opened.cfg)), opened.cfg


def read_part(stored: StoredTensor, place: TensorPlace, index: tuple[Any, ...] = ()) -> np.ndarray:
    """A tensor's contribution to its leaf, or its part at `index`: a view of the mapped file.

    Only that part is read, so that taking a tensor part by part reads it once.

    Raises:
      InputError: it holds NaN or infinity.
    """
    array = place.to_leaf(stored.view())[index]
    check_finite(f"{stored.file}: {place.tensor}", array)
    return array


def _check_one(place: TensorPlace, found: StoredTensor, described: str) -> None:
    if found.shape != place.shape:
        raise InputError(
            f"{found.file}: {place.tensor} has shape {found.shape}, {described} says {place.shape}"
        )
    if found.numpy is None:
        raise InputError(
            f"{found.file}: {place.tensor} has type {found.dtype}, "
            f"only {', '.join(DTYPES)} can be read"
        )


def _prefixed(stored: dict[str, StoredTensor], family: Family) -> dict[str, StoredTensor]:
    """The tensors under the family's names; a prefix that files have or lack as a whole is settled.

    Those of a bare model, without head, lack it; a model with another head has it.
    """
    prefix, names = family.prefix, family.tensors.values()
    below = [name.removeprefix(prefix) for name in names if name.startswith(prefix)]
    roots = tuple({name.split(".")[0] + "." for name in below})
    found: dict[str, StoredTensor] = {}
    for name, where in stored.items():
        if below:
            full = prefix + name if name.startswith(roots) else name
        else:
            full = name.removeprefix(prefix)
        if full in stored and full != name:
            raise InputError(f"{where.file}: {name} is there both with and without {prefix}")
        found[full] = where
    return found


def _resolve_tie(
    cfg: Any, family: Family, stored: dict[str, StoredTensor], folder: str | Path
) -> Any:
    """Removes a head that repeats a tied embedding; one that differs unties the model."""
    embedding, head = family.tensors.get(EMBEDDING), family.tensors.get(HEAD)
    tied = getattr(cfg, "tied", False)  # which not every kind of model can be
    if not tied or embedding is None or head not in stored:
        return cfg
    if embedding not in stored:
        stored[embedding] = stored.pop(head)
        return cfg
    if _equal(stored[embedding], stored[head]):
        del stored[head]
        return cfg
    logging.getLogger(__name__).warning(
        "note: %s ties %s to %s, but they differ in the file, so they are not tied",
        Path(folder) / CONFIG,
        head,
        embedding,
    )
    return dataclasses.replace(cfg, tied=False)


def _equal(a: StoredTensor, b: StoredTensor) -> bool:
    """Whether two tensors have the same values, whatever their types."""
    if a.shape != b.shape or not a.shape or not {a.dtype, b.dtype} <= DTYPES.keys():
        return False
    one, two = a.view(), b.view()
    rows = max(1, 2**20 // max(1, int(np.prod(a.shape[1:]))))
    return all(
        np.array_equal(one[i : i + rows].astype(np.float32), two[i : i + rows].astype(np.float32))
        for i in range(0, len(one), rows)
    )
