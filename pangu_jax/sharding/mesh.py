"""Device meshes with one fixed set of axis names."""

import math
import re
from collections.abc import Sequence
from typing import Any

import numpy as np
from jax import devices as all_devices
from jax.sharding import AxisType, Mesh

from pangu_jax.core.errors import InputError

AXES = ("data", "fsdp", "tensor", "expert")


def make_mesh(
    *,
    data: int = 1,
    fsdp: int = 1,
    tensor: int = 1,
    expert: int = 1,
    devices: Sequence[Any] | None = None,
) -> Mesh:
    """A mesh of the axes data, fsdp, tensor and expert, all of type Auto.

    Args:
      data: number of replicas of the parameters among which the batch is split.
      fsdp: number of parts that parameters and batch are split into together.
      tensor: number of parts that heads, hidden units and the vocabulary are split into.
      expert: number of parts that expert groups are split into.
      devices: the devices to use; None takes all. One size may be -1: whatever is left.

    Raises:
      InputError: the sizes do not multiply to the number of devices.
    """
    devices = list(all_devices() if devices is None else devices)
    sizes = dict(zip(AXES, (data, fsdp, tensor, expert), strict=True))
    sizes = _fill(sizes, len(devices))
    if math.prod(sizes.values()) != len(devices):
        shape = " x ".join(f"{name} {size}" for name, size in sizes.items())
        raise InputError(f"a mesh of {shape} needs another number than {len(devices)} devices")
    types = (AxisType.Auto,) * len(AXES)
    return Mesh(np.asarray(devices).reshape(tuple(sizes.values())), AXES, axis_types=types)


def parse_mesh(text: str) -> dict[str, int]:
    """Axis sizes from the command line's form, "fsdp=4,tensor=2".

    Raises:
      InputError: an unknown axis, or a size that is neither positive nor -1.
    """
    sizes = {}
    for part in filter(None, text.split(",")):
        name, _, size = part.partition("=")
        if name not in AXES or not re.fullmatch(r"-1|[1-9][0-9]*", size):
            raise InputError(
                f"mesh {text!r} must read like fsdp=4,tensor=2 with axes of {', '.join(AXES)}"
            )
        sizes[name] = int(size)
    return sizes


def _fill(sizes: dict[str, int], devices: int) -> dict[str, int]:
    free = [name for name, size in sizes.items() if size == -1]
    if len(free) > 1 or any(size < 1 for size in sizes.values() if size != -1):
        raise InputError(f"mesh sizes must be positive, and at most one -1; got {sizes}")
    if not free:
        return sizes
    rest = math.prod(size for size in sizes.values() if size != -1)
    return {**sizes, free[0]: max(devices // rest, 1)}
