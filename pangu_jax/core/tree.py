"""Names for the leaves of a pytree."""

import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from pangu_jax.core.errors import InputError


def flatten(tree: Any, is_leaf: Callable[[Any], bool] | None = None) -> dict[str, Any]:
    """Leaves by path, in tree order: {"runs/0/attention/query/kernel": leaf, ...}."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree, is_leaf=is_leaf)
    return {path_name(path): leaf for path, leaf in leaves}


def path_name(path: tuple) -> str:
    """A jax key path as a name: "runs/0/norm/scale"."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


def select(tree: Any, pattern: str) -> dict[str, Any]:
    """The leaves whose whole path matches a regular expression, by path."""
    return {name: leaf for name, leaf in flatten(tree).items() if re.fullmatch(pattern, name)}


def map_named(function: Callable[..., Any], tree: Any, *rest: Any) -> Any:
    """`jax.tree.map` whose function gets the leaf's path first."""
    return jax.tree_util.tree_map_with_path(
        lambda path, *leaves: function(path_name(path), *leaves), tree, *rest
    )


def check_finite(tree: Any, where: str) -> None:
    """Refuses values that nothing can be computed with.

    Args:
      tree: of arrays.
      where: how the error names the place, usually the file or folder.

    Raises:
      InputError: a leaf holds NaN or infinity; names it.
    """
    for name, leaf in flatten(tree).items():
        library = np if isinstance(leaf, np.ndarray) else jnp
        if not bool(library.isfinite(leaf).all()):
            raise InputError(f"{where}: {name} holds NaN or infinity")
