"""Checkpoints in the Hugging Face layout, both ways, one tensor at a time."""

import dataclasses
import json
import os
import re
import shutil
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np

from pangu_jax.checkpoint import archive
from pangu_jax.checkpoint.archive import DTYPES, Planned, Stored
from pangu_jax.checkpoint.gguf_file import Gguf
from pangu_jax.checkpoint.keys import CONFIG, read_config, write_keys
from pangu_jax.checkpoint.names.registry import named
from pangu_jax.checkpoint.opened import EMBEDDING, Leaf, place, read_part, survey, view
from pangu_jax.checkpoint.piece import Piece, pieces
from pangu_jax.core.errors import InputError
from pangu_jax.core.files import new_folder
from pangu_jax.core.spec import Spec, check
from pangu_jax.core.tree import check_finite, flatten, map_named
from pangu_jax.models import decoder
from pangu_jax.models.decoder import DecoderConfig
from pangu_jax.sharding.layout import Layout, shardings

__all__ = ["load", "read_config", "save", "survey", "view"]

# What travels with the weights unchanged.
COMPANIONS = (
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    "generation_config.json",
)


def load(
    folder: str | Path | Gguf, *, dtype: Any = None, layout: Layout | None = None
) -> tuple[dict[str, Any], DecoderConfig]:
    """Reads a checkpoint, each tensor straight to its place in the leaves.

    Every leaf is allocated once, on the devices where it will stay; besides the leaves, host memory
    holds one tensor at a time.

    Args:
      folder: holds config.json and safetensors files, one or several with an index; or an opened
        GGUF file.
      dtype: type of the parameters; None keeps each tensor's own.
      layout: where the parameters live; None is the default device.

    Returns:
      The parameters, a tree of `decoder.spec`, and the model's configuration.

    Raises:
      InputError: a tensor is missing, surplus, of the wrong shape or type, or holds values that
        are not finite or beyond `dtype`; names it and its file.
    """
    opened = survey(folder)
    places = place(opened, folder)
    types = {path: _leaf_dtype(parts, opened.stored, dtype) for path, parts in places.items()}
    tree = decoder.spec(opened.cfg)

    def fill(path: str, leaf: Spec) -> jax.Array:
        where = _default_sharding() if layout is None else shardings(leaf, layout)
        return _fill(leaf.shape, types[path], where, places[path], opened.stored)

    return map_named(fill, tree), opened.cfg


def save(
    params: dict[str, Any],
    cfg: DecoderConfig,
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
      params: tree of `decoder.spec(cfg)`, any float type; or what `view` gives.
      cfg: the model.
      folder: must not exist, or be empty.
      family: llama, qwen2, qwen3, qwen3-moe, pangu-embedded or pangu-pro-moe.
      dtype: type of the tensors; None keeps each one's own.
      max_shard_bytes: upper bound on the tensors of a file, unless a single one is larger.
      source: folder whose config.json is the base, so that keys this library does not read
        survive, and whose tokenizer files are copied.
      per_layer: allow layers of different widths (see `keys.write_keys`).
      companions: {name: content} of files beside the weights, in place of the source's.
      progress: called with bytes of tensors made, and bytes in all.

    Raises:
      InputError: the family cannot express the model (names what), a leaf is missing or
        mis-shaped, a value is not finite or does not fit the type, or the folder is not empty.
    """
    check(decoder.spec(cfg), params)
    keys = write_keys(cfg, named(family), source, per_layer=per_layer)
    tensors = _plan(flatten(params), pieces(cfg, named(family)), dtype)
    embedding = tensors[named(family).tensors[EMBEDDING]]
    keys["dtype" if "dtype" in keys else "torch_dtype"] = embedding.dtype.name
    if progress is not None:
        tensors = _counted(tensors, progress)
    with new_folder(folder) as temporary:
        archive.write(temporary, _shards(tensors, max_shard_bytes))
        for name in COMPANIONS:
            if source is not None and os.path.lexists(Path(source) / name):
                shutil.copyfile(archive.own_file(source, name), temporary / name)
        for name, content in (companions or {}).items():
            (temporary / name).write_bytes(content)
        text = json.dumps(keys, indent=2, ensure_ascii=False)
        (temporary / CONFIG).write_text(text + "\n", encoding="utf-8")


def _leaf_dtype(parts: list[Piece], stored: Mapping[str, Stored], dtype: Any) -> np.dtype:
    if dtype is not None:
        return np.dtype(dtype)
    first = stored[parts[0].tensor]
    for piece in parts:
        found = stored[piece.tensor]
        if found.numpy != first.numpy:
            raise InputError(
                f"{found.file}: {piece.tensor} has type {found.dtype} and {parts[0].tensor} "
                f"{first.dtype}, which share one array; give dtype"
            )
    return np.dtype(first.numpy)


def _default_sharding() -> jax.sharding.Sharding:
    return jnp.zeros(()).sharding


def _fill(
    shape: tuple[int, ...],
    dtype: np.dtype,
    sharding: jax.sharding.Sharding,
    parts: list[Piece],
    stored: Mapping[str, Stored],
) -> jax.Array:
    """One leaf: each device's part is allocated there, and gets its part of every tensor."""
    shards = []
    for device, index in sharding.addressable_devices_indices_map(shape).items():
        ranges = [range(size)[part] for part, size in zip(index, shape, strict=True)]
        shard = jnp.zeros([len(r) for r in ranges], dtype, device=device)
        for piece in parts:
            lead = len(piece.at)
            if all(i in r for i, r in zip(piece.at, ranges[:lead], strict=True)):
                array = read_part(stored[piece.tensor], piece, tuple(index[lead:]))
                array = _narrow(array, dtype, f"{stored[piece.tensor].file}: {piece.tensor}")
                at = [r.index(i) for i, r in zip(piece.at, ranges[:lead], strict=True)]
                at = np.array(at + [0] * (len(shape) - lead), np.int32)
                # Waiting keeps a single tensor in flight.
                shard = _place(shard, jax.device_put(array, device), at).block_until_ready()
        shards.append(shard)
    return jax.make_array_from_single_device_arrays(shape, sharding, shards)


@partial(jax.jit, donate_argnums=0)
def _place(leaf: jax.Array, part: jax.Array, at: jax.Array) -> jax.Array:
    part = part.reshape((1,) * (leaf.ndim - part.ndim) + part.shape).astype(leaf.dtype)
    return jax.lax.dynamic_update_slice(leaf, part, tuple(at))


def _plan(leaves: dict[str, Any], places: dict[str, list[Piece]], dtype: Any) -> dict[str, Planned]:
    """What is to be written, in the order of the tensors' names, numbers by value."""
    found = {}
    for path, parts in places.items():
        for piece in parts:
            kind = _saved_dtype(path, leaves[path], piece, dtype)
            make = partial(_tensor, leaves[path], piece, kind)
            found[piece.tensor] = Planned(kind, piece.shape, make)
    return {name: found[name] for name in sorted(found, key=_natural)}


def _counted(
    tensors: dict[str, Planned], progress: Callable[[int, int], None]
) -> dict[str, Planned]:
    """The same tensors, which say that they were made."""
    done, total = 0, sum(tensor.nbytes for tensor in tensors.values())

    def made(tensor: Planned) -> np.ndarray:
        nonlocal done
        array = tensor.make()
        done += tensor.nbytes
        progress(done, total)
        return array

    return {
        name: dataclasses.replace(tensor, make=partial(made, tensor))
        for name, tensor in tensors.items()
    }


def _saved_dtype(path: str, leaf: Any, piece: Piece, dtype: Any) -> np.dtype:
    if dtype is None:
        dtype = leaf.dtype_at(piece.at) if isinstance(leaf, Leaf) else leaf.dtype
    if np.dtype(dtype) not in DTYPES.values():
        raise InputError(
            f"{path} of type {np.dtype(dtype)} cannot be saved; float32, float16, bfloat16 can"
        )
    return np.dtype(dtype)


def _shards(tensors: dict[str, Planned], limit: float) -> list[dict[str, Planned]]:
    """Tensors cut into files, in their order."""
    shards, room = [], 0.0
    for name, tensor in tensors.items():
        if not shards or tensor.nbytes > room:
            shards.append({})
            room = limit
        room -= tensor.nbytes
        shards[-1][name] = tensor
    return shards


def _tensor(leaf: Any, piece: Piece, dtype: np.dtype) -> np.ndarray:
    if isinstance(leaf, Leaf):
        array = leaf.at(piece.at)
    else:
        array = np.asarray(leaf[piece.at])
        check_finite(piece.tensor, array)
    array = _narrow(array, dtype, piece.tensor)
    return piece.to_file(array.astype(dtype, copy=False))


def _narrow(array: np.ndarray, dtype: np.dtype, name: str) -> np.ndarray:
    """Finite values in a type of a smaller range; others as they are.

    Raises:
      InputError: a value is beyond the range.
    """
    if ml_dtypes.finfo(array.dtype).max <= ml_dtypes.finfo(dtype).max:
        return array
    with np.errstate(over="ignore"):
        cast = array.astype(dtype)
    try:
        check_finite(name, cast)
    except InputError as error:
        raise InputError(f"{name} has values beyond the range of {dtype}") from error
    return cast


def _natural(name: str) -> list[tuple[int, str]]:
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", name)]
