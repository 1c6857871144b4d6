"""Path names for the leaves of a pytree."""

import hashlib
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


def split(tree: Any, pattern: str | None) -> tuple[Any, Any]:
    """Splits a tree into leaves whose whole path matches and the rest; each has None for the other.

    None is no leaf, so what maps over such a tree, or makes zeros for it, sees its own part alone.
    Without a pattern every leaf matches.

    Raises:
      InputError: no leaf matches, or the pattern is no regular expression.
    """
    if pattern is None:
        return tree, jax.tree.map(lambda _: None, tree)
    try:
        found = re.compile(pattern)
    except re.error as error:
        raise InputError(f"{pattern!r} is no regular expression: {error}") from error
    chosen = map_named(lambda name, _: found.fullmatch(name) is not None, tree)
    if not any(jax.tree.leaves(chosen)):
        names = ", ".join(list(flatten(tree))[:3])
        raise InputError(f"{pattern!r} matches no parameter's whole path; there are {names}, ...")
    return (
        jax.tree.map(lambda taken, x: x if taken else None, chosen, tree),
        jax.tree.map(lambda taken, x: None if taken else x, chosen, tree),
    )


def join(tree: Any, others: Any) -> Any:
    """Joins the two trees that `split` returned."""
    return jax.tree.map(lambda a, b: b if a is None else a, tree, others, is_leaf=_is_none)


def _is_none(leaf: Any) -> bool:
    return leaf is None


def map_named(function: Callable[..., Any], tree: Any, *rest: Any) -> Any:
    """`jax.tree.map` whose function receives the leaf's path first."""
    return jax.tree_util.tree_map_with_path(
        lambda path, *leaves: function(path_name(path), *leaves), tree, *rest
    )


def content_hash(tree: Any) -> str:
    """SHA-256 of a tree's arrays, paths, types and shapes, in hexadecimal digits."""
    found = hashlib.sha256()
    for name, leaf in sorted(flatten(tree).items()):
        array = np.ascontiguousarray(leaf)
        found.update(f"{name} {array.dtype} {array.shape}\n".encode())
        found.update(array.reshape(-1).view(np.uint8))
    return found.hexdigest()


def check_finite(name: str, array: Any) -> None:
    """Checks that all values are finite; one that is not would spoil every result.

    Args:
      name: how the error names the array: its file, and its name there.
      array: numpy or jax array; of any type but IEEE floats it is finite.

    Raises:
      InputError: it holds NaN or infinity.
    """
    if not jnp.issubdtype(array.dtype, jnp.floating):
        return
    if isinstance(array, jax.Array) and next(iter(array.devices())).platform != "cpu":
        finite = bool(jnp.isfinite(array).all())
    elif isinstance(array, jax.Array):  # there numpy reads them in place, and nothing is compiled
        finite = all(_is_finite(np.asarray(part.data)) for part in array.addressable_shards)
    else:
        finite = _is_finite(array)
    if not finite:
        raise InputError(f"{name} holds NaN or infinity")


def check_all_finite(tree: Any, where: str) -> None:
    """`check_finite` on every leaf of a tree; `where` names the file or folder in errors."""
    for name, leaf in flatten(tree).items():
        check_finite(f"{where}: {name}", leaf)


def _is_finite(array: np.ndarray) -> bool:
    """Tested on the bits, as numpy is slow on bfloat16; in blocks, to save memory."""
    unsigned = f"u{array.dtype.itemsize}"
    exponent = np.array(np.inf, array.dtype).view(unsigned)
    bits = array.ravel(order="K").view(unsigned)  # in the order of memory, whatever the axes'
    blocks = (bits[i : i + 2**18] for i in range(0, bits.size, 2**18))
    return not any(((block & exponent) == exponent).any() for block in blocks)
