"""Writes a checkpoint that other libraries load, one tensor at a time."""

import dataclasses
import json
import os
import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from pangu_jax.checkpoint import safetensors_files
from pangu_jax.checkpoint.hf.checkpoint import LazyLeaf
from pangu_jax.checkpoint.hf.config import CONFIG, check_written, write_keys
from pangu_jax.checkpoint.hf.families.registry import FAMILIES, named
from pangu_jax.checkpoint.hf.tensors import TensorPlace, narrowed, tensor_places
from pangu_jax.checkpoint.safetensors_files import DTYPES, PendingTensor
from pangu_jax.core.errors import InputError
from pangu_jax.core.files import new_folder
from pangu_jax.core.spec import check
from pangu_jax.core.tree import check_finite, flatten
from pangu_jax.models import registry

# What travels with the weights unchanged.
COMPANIONS = (
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "chat_template.jinja",
    "generation_config.json",
    "config_sentence_transformers.json",
)


def save(
    params: dict[str, Any],
    cfg: Any,
    folder: str | Path,
    *,
    family: str,
    dtype: Any = None,
    max_shard_bytes: float = 5e9,
    source: str | Path | None = None,
    per_layer: bool = False,
    companions: Mapping[str, bytes] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """Writes a checkpoint that other libraries load; the folder appears whole or not at all.

    Host memory holds one tensor at a time.

    Args:
      params: tree of the model's spec, any float type; or of `LazyLeaf`s, as from `view`.
      cfg: the model, of the family's kind.
      folder: must not exist, or be empty.
      family: the name of one of `FAMILIES`.
      dtype: type of the tensors; None keeps each one's own.
      max_shard_bytes: upper bound on the tensors of a file, unless a single one is larger.
      source: folder whose config.json is the base, so that keys this library does not read
        survive, and whose tokenizer files are copied.
      per_layer: allow layers of different widths (see `write_keys`).
      companions: {name: content} of files beside the weights, in place of the source's.
      progress: called with bytes of tensors made, and bytes in all.

    Raises:
      InputError: the family cannot express the model (names what), a leaf is missing or
        mis-shaped, a value is not finite or does not fit the type, or the folder is not empty.
    """
    check(registry.spec(cfg), params)
    keys = write_keys(cfg, named(family), source, per_layer=per_layer)
    places = tensor_places(cfg, named(family))
    tensors = _pending(flatten(params), places, dtype)
    # What config.json calls the type is that of the embeddings.
    first = min(places, key=lambda path: not path.startswith("embed/"))
    name = "dtype" if "dtype" in keys else "torch_dtype"
    keys[name] = tensors[places[first][0].tensor].dtype.name
    if progress is not None:
        tensors = _counted(tensors, progress)
    with new_folder(folder) as temporary:
        safetensors_files.write(temporary, _shards(tensors, max_shard_bytes))
        for name in COMPANIONS:
            if source is not None and os.path.lexists(Path(source) / name):
                shutil.copyfile(safetensors_files.own_file(source, name), temporary / name)
        for name, content in (companions or {}).items():
            (temporary / name).write_bytes(content)
        for name, value in {CONFIG: keys, **named(family).write_sidecars(cfg)}.items():
            (temporary / name).parent.mkdir(exist_ok=True)
            text = json.dumps(value, indent=2, ensure_ascii=False)
            (temporary / name).write_text(text + "\n", encoding="utf-8")
        check_written(cfg, temporary, folder)


def save_first(
    params: dict[str, Any], cfg: Any, folder: str | Path, *, families: Sequence[str], **options: Any
) -> str:
    """Writes a checkpoint in the first of the families that can express the model.

    Args:
      params: as in `save`.
      cfg: the model.
      folder: must not exist, or be empty.
      families: at least one name.
      options: further arguments of `save`.

    Returns:
      The name of that family.

    Raises:
      InputError: none can, or see `save`.
    """
    reasons = []
    for name in families:
        try:
            save(params, cfg, folder, family=name, **options)
            return name
        except InputError as error:
            if len(families) == 1 or "cannot express" not in str(error):
                raise
            reasons.append(str(error))
    raise InputError(f"no family can express the model: {'; '.join(reasons)}")


def families_of(cfg: Any) -> list[str]:
    """The families of a model's kind.

    Raises:
      InputError: there is none.
    """
    kind = registry.kind_of(cfg).name
    found = [family.name for family in FAMILIES.values() if family.kind == kind]
    if not found:
        raise InputError(f"no family of the Hugging Face layout is of the kind {kind}")
    return found


def _pending(
    leaves: dict[str, Any], places: dict[str, list[TensorPlace]], dtype: Any
) -> dict[str, PendingTensor]:
    """Tensors to write, in the order of their names, with numbers sorted by value."""
    found = {}
    for path, parts in places.items():
        for place in parts:
            kind = _saved_dtype(path, leaves[path], place, dtype)
            make = partial(_tensor, leaves[path], place, kind)
            found[place.tensor] = PendingTensor(kind, place.shape, make)
    return {name: found[name] for name in sorted(found, key=_natural)}


def _counted(
    tensors: dict[str, PendingTensor], progress: Callable[[int, int], None]
) -> dict[str, PendingTensor]:
    """The same tensors, each reported as it is made."""
    done, total = 0, sum(tensor.nbytes for tensor in tensors.values())

    def made(tensor: PendingTensor) -> np.ndarray:
        nonlocal done
        array = tensor.make()
        done += tensor.nbytes
        progress(done, total)
        return array

    return {
        name: dataclasses.replace(tensor, make=partial(made, tensor))
        for name, tensor in tensors.items()
    }


def _saved_dtype(path: str, leaf: Any, place: TensorPlace, dtype: Any) -> np.dtype:
    if dtype is None:
        dtype = leaf.dtype_at(place.at) if isinstance(leaf, LazyLeaf) else leaf.dtype
    if np.dtype(dtype) not in DTYPES.values():
        raise InputError(
            f"{path} of type {np.dtype(dtype)} cannot be saved; float32, float16, bfloat16 can"
        )
    return np.dtype(dtype)


def _shards(tensors: dict[str, PendingTensor], limit: float) -> list[dict[str, PendingTensor]]:
    """Tensors grouped into files, in order."""
    shards, room = [], 0.0
    for name, tensor in tensors.items():
        if not shards or tensor.nbytes > room:
            shards.append({})
            room = limit
        room -= tensor.nbytes
        shards[-1][name] = tensor
    return shards


def _tensor(leaf: Any, place: TensorPlace, dtype: np.dtype) -> np.ndarray:
    if isinstance(leaf, LazyLeaf):
        array = leaf.at(place.at)
    else:
        array = np.asarray(leaf[place.at])
        check_finite(place.tensor, array)
    array = narrowed(array, dtype, place.tensor)
    return place.to_file(array.astype(dtype, copy=False))


def _natural(name: str) -> list[tuple[int, str]]:
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", name)]
