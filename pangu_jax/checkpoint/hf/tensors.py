"""The mapping between tensors of a file and parts of leaves."""

import dataclasses
import itertools
import math
from collections.abc import Container
from typing import Any

import ml_dtypes
import numpy as np

from pangu_jax.checkpoint.hf.families.family import Family
from pangu_jax.core.errors import InputError
from pangu_jax.core.spec import Spec, is_spec
from pangu_jax.core.tree import check_finite, flatten
from pangu_jax.models import registry


@dataclasses.dataclass(frozen=True)
class TensorPlace:
    """One tensor's place in a leaf.

    The tensor, or its part along the second axis, is folded to the shape `folded` and its axes
    permuted by `order`: that is `leaf[at]`. Both are views.

    Attributes:
      tensor: name in the file.
      shape: shape in the file.
      at: leading indices in the leaf.
      folded: shape that splits the file's axes into the leaf's.
      order: permutation from `folded` to the leaf's axes.
      part: (which, of how many) equal parts of the tensor's second axis, None for all of it.
    """

    tensor: str
    shape: tuple[int, ...]
    at: tuple[int, ...]
    folded: tuple[int, ...]
    order: tuple[int, ...]
    part: tuple[int, int] | None = None

    def to_leaf(self, array: np.ndarray) -> np.ndarray:
        """The tensor in the leaf's layout, a view."""
        if self.part is not None:
            which, parts = self.part
            size = array.shape[1] // parts
            array = array[:, which * size : (which + 1) * size]
        return array.reshape(self.folded).transpose(self.order)

    def to_file(self, array: np.ndarray) -> np.ndarray:
        """The inverse, for tensors that are not in parts: contiguous."""
        return np.ascontiguousarray(array.transpose(np.argsort(self.order)).reshape(self.shape))


def tensor_places(
    cfg: Any, family: Family, names: Container[str] = ()
) -> dict[str, list[TensorPlace]]:
    """The tensors that make up every leaf, by the leaf's path.

    Args:
      cfg: the model.
      family: whose names.
      names: existing tensors; fused ones are used if they are among these.

    Raises:
      InputError: the family has no name for a leaf.
    """
    leaves = flatten(registry.spec(cfg), is_leaf=is_spec)
    starts = _starts(leaves)
    found = {}
    for path, leaf in leaves.items():
        run, inner = _split(path)
        if inner not in family.tensors:
            raise InputError(f"{family.architecture} has no tensor for {path}")
        if run is None:
            found[path] = [_place(inner, leaf.shape, (), family.tensors[inner])]
        else:
            found[path] = _run_places(inner, leaf, starts[run], family, names)
    return found


def _starts(leaves: dict[str, Spec]) -> list[int]:
    """The number of each run's first layer; a run's leaves have its layers as their first axis."""
    lengths = {
        run: leaf.shape[0] for path, leaf in leaves.items() if (run := _split(path)[0]) is not None
    }
    return list(itertools.accumulate((lengths[run] for run in sorted(lengths)), initial=0))


def _split(path: str) -> tuple[int | None, str]:
    if not path.startswith("runs/"):
        return None, path
    _, run, inner = path.split("/", 2)
    return int(run), inner


def _run_places(
    inner: str, leaf: Spec, start: int, family: Family, names: Container[str]
) -> list[TensorPlace]:
    found = []
    for layer in range(leaf.shape[0]):
        fused = family.fused.get(inner)
        if fused and fused[0].format(layer=start + layer) in names:
            found.append(_fused_place(leaf.shape, layer, start + layer, fused))
        elif "{expert}" in family.tensors[inner]:
            found += _expert_places(inner, leaf.shape, layer, start + layer, family)
        else:
            name = family.tensors[inner].format(layer=start + layer)
            found.append(_place(inner, leaf.shape, (layer,), name))
    return found


def _expert_places(
    inner: str, shape: tuple[int, ...], layer: int, number: int, family: Family
) -> list[TensorPlace]:
    _, groups, size, *_ = shape
    return [
        _place(
            inner,
            shape,
            (layer, group, expert),
            family.tensors[inner].format(layer=number, expert=group * size + expert),
        )
        for group in range(groups)
        for expert in range(size)
    ]


def _fused_place(
    shape: tuple[int, ...], layer: int, number: int, fused: tuple[str, int, int]
) -> TensorPlace:
    name, which, parts = fused
    _, groups, size, inputs, outputs = shape
    stored = (groups * size, parts * outputs, inputs)
    folded = (groups, size, outputs, inputs)
    return TensorPlace(
        name.format(layer=number), stored, (layer,), folded, (0, 1, 3, 2), (which, parts)
    )


def _place(inner: str, shape: tuple[int, ...], at: tuple[int, ...], name: str) -> TensorPlace:
    shape = shape[len(at) :]
    if not inner.endswith("/kernel"):
        # Tables have a row per embedded thing in both layouts; everything else is flat in files.
        flat = (1, math.prod(shape)) if inner == "moe/router/scale" else (math.prod(shape),)
        stored = shape if inner.endswith("/table") else flat
        return TensorPlace(name, stored, at, shape, tuple(range(len(shape))))
    # Files hold [outputs, inputs], each flat; leaves have inputs first, with their structure.
    count = 3 if inner.endswith("attention/out/kernel") else 1
    inputs, outputs = shape[:count], shape[count:]
    axes = range(len(shape))
    order = (*axes[len(outputs) :], *axes[: len(outputs)])
    return TensorPlace(name, (math.prod(outputs), math.prod(inputs)), at, outputs + inputs, order)


def narrowed(array: np.ndarray, dtype: np.dtype, name: str) -> np.ndarray:
    """Casts finite values to a type of a smaller range; returns others unchanged.

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
