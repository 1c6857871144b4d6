"""Checkpoints in the Hugging Face layout, both ways, one tensor at a time."""

import contextlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from safetensors import SafetensorError

from pangu_jax.checkpoint import archive
from pangu_jax.checkpoint.archive import DTYPES, Stored
from pangu_jax.checkpoint.keys import CONFIG, read_config, write_keys
from pangu_jax.checkpoint.names.family import Family
from pangu_jax.checkpoint.names.registry import named
from pangu_jax.checkpoint.piece import Piece, pieces
from pangu_jax.core.errors import InputError
from pangu_jax.core.spec import Spec, check
from pangu_jax.core.tree import flatten, map_named
from pangu_jax.models import decoder
from pangu_jax.models.decoder import DecoderConfig
from pangu_jax.sharding.layout import Layout, shardings

__all__ = ["load", "read_config", "save"]

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
NAMES = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}

Maker = Callable[[], np.ndarray]


def load(
    folder: str | Path, *, dtype: Any = None, layout: Layout | None = None
) -> tuple[dict[str, Any], DecoderConfig]:
    """Reads a checkpoint, each tensor straight to its place in the leaves.

    Every leaf is allocated once, on the devices where it will stay; besides the leaves, host memory
    holds one tensor at a time.

    Args:
      folder: holds config.json and safetensors files, one or several with an index.
      dtype: type of the parameters; None keeps each tensor's own.
      layout: where the parameters live; None is the default device.

    Returns:
      The parameters, a tree of `decoder.spec`, and the model's configuration.

    Raises:
      InputError: a tensor is missing, surplus, of the wrong shape or type; names it and its file.
    """
    cfg, name = read_config(folder)
    stored = archive.find(folder)
    places = pieces(cfg, named(name), stored)
    _check_tensors(places, stored, named(name), cfg, Path(folder))
    types = {path: _leaf_dtype(parts, stored, dtype) for path, parts in places.items()}
    tree = decoder.spec(cfg)

    def fill(path: str, leaf: Spec) -> jax.Array:
        where = _default_sharding() if layout is None else shardings(leaf, layout)
        return _fill(leaf.shape, types[path], where, places[path], stored)

    return map_named(fill, tree), cfg


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
) -> None:
    """Writes a checkpoint that other libraries load; the folder appears whole or not at all.

    Host memory holds one file's tensors at a time.

    Args:
      params: tree of `decoder.spec(cfg)`, any float type.
      cfg: the model.
      folder: must not exist, or be empty.
      family: llama, qwen2, qwen3, qwen3-moe, pangu-embedded or pangu-pro-moe.
      dtype: type of the tensors; None keeps each leaf's own.
      max_shard_bytes: upper bound on the tensors of a file, unless a single one is larger.
      source: folder whose config.json is the base, so that keys this library does not read
        survive, and whose tokenizer files are copied.
      per_layer: allow layers of different widths (see `keys.write_keys`).
      companions: {name: content} of files beside the weights, in place of the source's.

    Raises:
      InputError: the family cannot express the model (names what), a leaf is missing or
        mis-shaped, a value does not fit the type, or the folder is not empty.
    """
    folder = Path(folder)
    check(decoder.spec(cfg), params)
    leaves = flatten(params)
    types = {path: _saved_dtype(path, leaf, dtype) for path, leaf in leaves.items()}
    keys = write_keys(cfg, named(family), source, per_layer=per_layer)
    keys["dtype" if "dtype" in keys else "torch_dtype"] = types["embed/table"].name
    shards = _shards(leaves, types, pieces(cfg, named(family)), max_shard_bytes)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError(f"{folder} exists and is not empty; name a new folder")
    try:
        with _new_folder(folder) as temporary:
            archive.write(temporary, shards)
            for name in COMPANIONS:
                if source is not None and (Path(source) / name).exists():
                    shutil.copyfile(Path(source) / name, temporary / name)
            for name, content in (companions or {}).items():
                (temporary / name).write_bytes(content)
            text = json.dumps(keys, indent=2, ensure_ascii=False)
            (temporary / CONFIG).write_text(text + "\n", encoding="utf-8")
    except (OSError, SafetensorError) as error:
        raise InputError(f"cannot write {folder}: {error}") from error


def _check_tensors(
    places: dict[str, list[Piece]],
    stored: Mapping[str, Stored],
    family: Family,
    cfg: DecoderConfig,
    folder: Path,
) -> None:
    used = set()
    for path, parts in places.items():
        for piece in parts:
            if piece.tensor not in stored:
                raise InputError(f"{folder} lacks the tensor {piece.tensor} (for {path})")
            found = stored[piece.tensor]
            if found.shape != piece.shape:
                raise InputError(
                    f"{found.file}: {piece.tensor} has shape {found.shape}, "
                    f"{CONFIG} says {piece.shape}"
                )
            if found.dtype not in DTYPES:
                raise InputError(
                    f"{found.file}: {piece.tensor} has type {found.dtype}, "
                    f"only {', '.join(DTYPES)} can be read"
                )
            used.add(piece.tensor)
    # A tied model's file may repeat the embedding as the head.
    known = {family.tensors["head/kernel"]} if cfg.tied else set()
    for name in stored:
        if name not in used | known and not any(re.fullmatch(p, name) for p in family.skipped):
            raise InputError(
                f"{stored[name].file}: {name} is a tensor that {CONFIG} has no use for"
            )


def _leaf_dtype(parts: list[Piece], stored: Mapping[str, Stored], dtype: Any) -> np.dtype:
    if dtype is not None:
        return np.dtype(dtype)
    first = stored[parts[0].tensor]
    for piece in parts:
        found = stored[piece.tensor]
        if found.dtype != first.dtype:
            raise InputError(
                f"{found.file}: {piece.tensor} has type {found.dtype} and {parts[0].tensor} "
                f"{first.dtype}, which share one array; give dtype"
            )
    return DTYPES[first.dtype]


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
                array = piece.to_leaf(archive.view(stored[piece.tensor]))[tuple(index[lead:])]
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


def _saved_dtype(path: str, leaf: Any, dtype: Any) -> np.dtype:
    found = np.dtype(leaf.dtype if dtype is None else dtype)
    if found not in DTYPES.values():
        raise InputError(f"{path} of type {found} cannot be saved; float32, float16, bfloat16 can")
    return found


def _shards(
    leaves: dict[str, Any],
    types: dict[str, np.dtype],
    places: dict[str, list[Piece]],
    limit: float,
) -> list[dict[str, Maker]]:
    """Tensors in the order of their names, numbers by value, cut into files."""
    tensors = [(piece, path) for path, parts in places.items() for piece in parts]
    shards, room = [], 0.0
    for piece, path in sorted(tensors, key=lambda item: _natural(item[0].tensor)):
        size = int(np.prod(piece.shape)) * types[path].itemsize
        if not shards or size > room:
            shards.append({})
            room = limit
        room -= size
        shards[-1][piece.tensor] = partial(_tensor, leaves[path], piece, types[path])
    return shards


def _tensor(leaf: Any, piece: Piece, dtype: np.dtype) -> np.ndarray:
    array = piece.to_file(np.asarray(leaf[piece.at]))
    if array.dtype == dtype:
        return array
    with np.errstate(over="ignore"):
        cast = array.astype(dtype)
    if np.isfinite(array).all() and not np.isfinite(cast).all():
        raise InputError(f"{piece.tensor} has values beyond the range of {dtype}")
    return cast


def _natural(name: str) -> list[tuple[int, str]]:
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", name)]


@contextlib.contextmanager
def _new_folder(folder: Path):
    """A temporary folder beside `folder` that takes its place when the block ends well."""
    folder = folder.absolute()
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        # mkdtemp makes the folder private; the result gets the mode of an ordinary one.
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o777 & ~umask)
        yield temporary
        os.replace(temporary, folder)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
