"""A layout is a mesh and two rule tables, passed down unchanged; None means one device."""

import dataclasses
import math
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from pangu_jax.core.spec import init as init_leaves
from pangu_jax.core.spec import is_spec
from pangu_jax.core.tree import flatten
from pangu_jax.sharding.rules import Rules, Table


@dataclasses.dataclass(frozen=True)
class Layout:
    """The placement of arrays: a device mesh, and rules that split logical axes over it."""

    mesh: Mesh
    rules: Rules


def shardings(spec: Any, layout: Layout) -> Any:
    """The tree of `NamedSharding`s for a spec tree; dimensions that do not divide stay whole."""
    return jax.tree.map(lambda s: _sharding(s.axes, s.shape, layout), spec, is_leaf=is_spec)


def whole(spec: Any, layout: Layout) -> list[str]:
    """One line per dimension that the rules would split but the mesh does not divide."""
    lines = []
    for name, leaf in flatten(spec, is_leaf=is_spec).items():
        for axis, size in zip(leaf.axes, leaf.shape, strict=True):
            parts = _parts(_wanted(axis, layout.rules.params, layout.mesh), layout.mesh)
            if parts > 1 and size % parts:
                lines.append(f"{name}: {axis} of {size} is not split into {parts}")
    return lines


def constrain(x: jax.Array, axes: tuple[str | None, ...], layout: Layout | None) -> jax.Array:
    """Tells the compiler how an activation is split; without a layout it changes nothing.

    Args:
      x: an activation.
      axes: a logical axis name, or None, for each dimension of `x`.
      layout: the layout or None.
    """
    if layout is None:
        return x
    partition = _partition(axes, x.shape, layout.rules.activations, layout.mesh)
    return jax.lax.with_sharding_constraint(x, NamedSharding(layout.mesh, partition))


def batch_sharding(shape: tuple[int, ...], layout: Layout) -> NamedSharding:
    """The sharding of an input whose first dimension is the batch."""
    axes = ("batch",) + (None,) * (len(shape) - 1)
    partition = _partition(axes, shape, layout.rules.activations, layout.mesh)
    return NamedSharding(layout.mesh, partition)


def batch_axes(rows: int, layout: Layout | None) -> tuple[str, ...]:
    """The mesh axes that split a batch of `rows` rows; none without a layout."""
    if layout is None:
        return ()
    entry = batch_sharding((rows,), layout).spec[0]
    return (entry,) if isinstance(entry, str) else entry or ()


def batch_parts(layout: Layout) -> int:
    """Number of parts into which the rules would split a batch that they divide."""
    return _parts(_wanted("batch", layout.rules.activations, layout.mesh), layout.mesh)


def init(spec: Any, *, key: jax.Array, dtype: Any = None, layout: Layout | None = None) -> Any:
    """Initial values for a spec tree, each device computing just its own part.

    The values do not depend on the layout.
    """
    out = None if layout is None else shardings(spec, layout)
    return jax.jit(lambda k: init_leaves(spec, key=k, dtype=dtype), out_shardings=out)(key)


def _sharding(axes: tuple, shape: tuple[int, ...], layout: Layout) -> NamedSharding:
    return NamedSharding(layout.mesh, _partition(axes, shape, layout.rules.params, layout.mesh))


def _partition(axes: tuple, shape: tuple[int, ...], table: Table, mesh: Mesh) -> PartitionSpec:
    taken: set[str] = set()
    dimensions = []
    for axis, size in zip(axes, shape, strict=True):
        free = tuple(name for name in _wanted(axis, table, mesh) if name not in taken)
        # Drop mesh axes from the right until what is left divides the dimension.
        while free and size % _parts(free, mesh):
            free = free[:-1]
        taken.update(free)
        dimensions.append(free or None)
    return PartitionSpec(*dimensions)


def _wanted(axis: str | None, table: Table, mesh: Mesh) -> tuple[str, ...]:
    names = table.get(axis, ()) if axis is not None else ()
    return tuple(name for name in names if mesh.shape.get(name, 1) > 1)


def _parts(names: tuple[str, ...], mesh: Mesh) -> int:
    return math.prod(mesh.shape[name] for name in names)
