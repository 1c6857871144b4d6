"""Reads a checkpoint into arrays, one tensor at a time."""

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from pangu_jax.checkpoint.hf.checkpoint import TensorFile, assign_tensors, read_headers, read_part
from pangu_jax.checkpoint.hf.tensors import TensorPlace, narrowed
from pangu_jax.checkpoint.safetensors_files import StoredTensor
from pangu_jax.core.errors import InputError
from pangu_jax.core.spec import Spec
from pangu_jax.core.tree import map_named
from pangu_jax.models import registry
from pangu_jax.sharding.layout import Layout, shardings


def load(
    folder: str | Path | TensorFile, *, dtype: Any = None, layout: Layout | None = None
) -> tuple[dict[str, Any], Any]:
    """Reads a checkpoint, each tensor straight into its place in the leaves.

    Every leaf is allocated once, on the devices where it will stay; besides the leaves, host memory
    holds one tensor at a time.

    Args:
      folder: holds config.json and safetensors files, one or several with an index; or an opened
        file that describes itself, such as a GGUF file.
      dtype: type of the parameters; None keeps each tensor's own.
      layout: placement of the parameters; None is the default device.

    Returns:
      The parameters, a tree of the model's spec, and the model's configuration.

    Raises:
      InputError: a tensor is missing, surplus, of the wrong shape or type, or holds values that
        are not finite or beyond `dtype`; names it and its file.
    """
    opened = read_headers(folder)
    places = assign_tensors(opened, folder)
    types = {path: _leaf_dtype(parts, opened.stored, dtype) for path, parts in places.items()}

    def fill(path: str, leaf: Spec) -> jax.Array:
        where = _default_sharding() if layout is None else shardings(leaf, layout)
        return _fill(leaf.shape, types[path], where, places[path], opened.stored)

    return map_named(fill, registry.spec(opened.cfg)), opened.cfg


def _leaf_dtype(
    parts: list[TensorPlace], stored: Mapping[str, StoredTensor], dtype: Any
) -> np.dtype:
    if dtype is not None:
        return np.dtype(dtype)
    first = stored[parts[0].tensor]
    for place in parts:
        found = stored[place.tensor]
        if found.numpy != first.numpy:
            raise InputError(
                f"{found.file}: {place.tensor} has type {found.dtype} and {parts[0].tensor} "
                f"{first.dtype}, which share one array; give dtype"
            )
    return np.dtype(first.numpy)


def _default_sharding() -> jax.sharding.Sharding:
    return jnp.zeros(()).sharding


def _fill(
    shape: tuple[int, ...],
    dtype: np.dtype,
    sharding: jax.sharding.Sharding,
    parts: list[TensorPlace],
    stored: Mapping[str, StoredTensor],
) -> jax.Array:
    """Fills one leaf: each device allocates its part, and gets its part of every tensor."""
    shards = []
    for device, index in sharding.addressable_devices_indices_map(shape).items():
        ranges = [range(size)[part] for part, size in zip(index, shape, strict=True)]
        shard = jnp.zeros([len(r) for r in ranges], dtype, device=device)
        for place in parts:
            lead = len(place.at)
            if all(i in r for i, r in zip(place.at, ranges[:lead], strict=True)):
                array = read_part(stored[place.tensor], place, tuple(index[lead:]))
                array = narrowed(array, dtype, f"{stored[place.tensor].file}: {place.tensor}")
                at = [r.index(i) for i, r in zip(place.at, ranges[:lead], strict=True)]
                at = np.array(at + [0] * (len(shape) - lead), np.int32)
                # Waiting keeps a single tensor in flight.
                shard = _place(shard, jax.device_put(array, device), at).block_until_ready()
        shards.append(shard)
    return jax.make_array_from_single_device_arrays(shape, sharding, shards)


@partial(jax.jit, donate_argnums=0)
def _place(leaf: jax.Array, part: jax.Array, at: jax.Array) -> jax.Array:
    part = part.reshape((1,) * (leaf.ndim - part.ndim) + part.shape).astype(leaf.dtype)
    return jax.lax.dynamic_update_slice(leaf, part, tuple(at))
