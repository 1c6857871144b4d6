"""Parameter specs: one description of every leaf, shared by all code that handles parameters.

A spec tree has the shape of the parameter tree and a `Spec` at each leaf. Initialization, counting,
sharding, abstract restoring, pruning and export all read it, so that a model says what its
parameters are in one place.
"""

import dataclasses
import hashlib
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from pangu_jax.core.config import check_choice
from pangu_jax.core.errors import InputError
from pangu_jax.core.tree import flatten, map_named

Initializer = Callable[[jax.Array, tuple[int, ...], Any], jax.Array]

# The logical axes: what dimensions of parameters and activations are called (CONTRIBUTING.md). A
# name that no rule knows would leave its dimension unsplit without a word.
LOGICAL_AXES = (
    "batch",
    "length",
    "embed",
    "mlp",
    "expert_mlp",
    "kv_heads",
    "q_per_kv",
    "head_dim",
    "vocab",
    "expert",
    "group",
    "layers",
    "state",
)


def zeros(key: jax.Array, shape: tuple[int, ...], dtype: Any) -> jax.Array:
    """An array of zeros; the key is unused."""
    del key
    return jnp.zeros(shape, dtype)


def ones(key: jax.Array, shape: tuple[int, ...], dtype: Any) -> jax.Array:
    """An array of ones; the key is unused."""
    del key
    return jnp.ones(shape, dtype)


@dataclasses.dataclass(frozen=True)
class Normal:
    """A normal distribution with mean 0 and standard deviation `std`."""

    std: float

    def __call__(self, key: jax.Array, shape: tuple[int, ...], dtype: Any) -> jax.Array:
        """Draws an array."""
        # Drawn in float32 whatever the storage type, so that bfloat16 weights are rounded ones.
        return (self.std * jax.random.normal(key, shape, jnp.float32)).astype(dtype)


@dataclasses.dataclass(frozen=True)
class Constant:
    """One value everywhere."""

    value: float

    def __call__(self, key: jax.Array, shape: tuple[int, ...], dtype: Any) -> jax.Array:
        """An array filled with the value."""
        del key
        return jnp.full(shape, self.value, dtype)


@dataclasses.dataclass(frozen=True)
class Uniform:
    """A uniform distribution between -`bound` and `bound`."""

    bound: float

    def __call__(self, key: jax.Array, shape: tuple[int, ...], dtype: Any) -> jax.Array:
        """Draws an array."""
        draws = jax.random.uniform(key, shape, jnp.float32, -self.bound, self.bound)
        return draws.astype(dtype)


@dataclasses.dataclass(frozen=True)
class Spec:
    """Description of one parameter.

    Attributes:
      shape: the array's shape.
      axes: for each dimension one of `LOGICAL_AXES`, or None: what sharding rules, pruning and
        export call it.
      init: `init(key, shape, dtype) -> array`.
      dtype: how the parameter is stored unless a caller asks for another type.
    """

    shape: tuple[int, ...]
    axes: tuple[str | None, ...]
    init: Initializer = zeros
    dtype: Any = jnp.float32

    def __post_init__(self):
        if len(self.shape) != len(self.axes):
            raise ValueError(f"shape {self.shape} and axes {self.axes} differ in length")
        for axis in self.axes:
            if axis is not None:
                check_choice("logical axis", axis, LOGICAL_AXES)


def is_spec(leaf: Any) -> bool:
    """Whether a tree node is a `Spec`."""
    return isinstance(leaf, Spec)


def init(spec: Any, *, key: jax.Array, dtype: Any = None) -> Any:
    """Initial values for every leaf of a spec tree.

    Each leaf's key comes from `key` and the leaf's path, so a leaf's values do not depend on which
    other leaves there are. Run it under `jax.jit(..., out_shardings=...)` and every device makes
    just its own part.

    Args:
      spec: tree of `Spec`.
      key: PRNG key.
      dtype: storage type of all leaves; None keeps each spec's own.

    Returns:
      The tree of arrays.
    """

    def make(name: str, leaf: Spec) -> jax.Array:
        digest = hashlib.sha256(name.encode()).digest()
        leaf_key = jax.random.fold_in(key, int.from_bytes(digest[:4], "little"))
        return leaf.init(leaf_key, leaf.shape, dtype or leaf.dtype)

    return map_named(make, spec)


def abstract(spec: Any, dtype: Any = None) -> Any:
    """The spec tree as `jax.ShapeDtypeStruct`s: shapes and types without memory."""
    return jax.tree.map(
        lambda s: jax.ShapeDtypeStruct(s.shape, dtype or s.dtype), spec, is_leaf=is_spec
    )


def count(spec: Any) -> int:
    """Number of parameters in a spec tree or in a tree of arrays."""
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(spec, is_leaf=is_spec))


def nbytes(spec: Any, dtype: Any = None) -> int:
    """Bytes of all leaves, stored as `dtype`, or each in its own type if that is None."""
    leaves = jax.tree.leaves(spec, is_leaf=is_spec)
    return sum(math.prod(x.shape) * np.dtype(dtype or x.dtype).itemsize for x in leaves)


def stack(spec: Any, layers: int) -> Any:
    """The same leaves with a leading `layers` axis."""
    return jax.tree.map(
        lambda s: dataclasses.replace(s, shape=(layers, *s.shape), axes=("layers", *s.axes)),
        spec,
        is_leaf=is_spec,
    )


def check(spec: Any, params: Any, where: str = "parameters") -> Any:
    """Returns `params` if its leaves have the names and shapes of the spec.

    Args:
      spec: tree of `Spec`.
      params: tree of arrays (any float type).
      where: how the error names the tree, usually a file.

    Raises:
      InputError: names the first missing, surplus or mis-shaped leaf.
    """
    wanted, found = flatten(spec, is_leaf=is_spec), flatten(params)
    for name in wanted:
        if name not in found:
            raise InputError(f"{where} lack {name} of shape {wanted[name].shape}")
    for name, leaf in found.items():
        if name not in wanted:
            raise InputError(f"{where} have a leaf {name} that the configuration does not")
        if tuple(leaf.shape) != wanted[name].shape:
            raise InputError(
                f"{where}: {name} has shape {tuple(leaf.shape)}, "
                f"the configuration says {wanted[name].shape}"
            )
    return params
