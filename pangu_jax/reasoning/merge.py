"""Merges of trees of parameters that have one origin: mean, task arithmetic, slerp, TIES, DARE.

Every rule works on one tensor after the other, on the host and in float32 or wider, whatever the
type of the parameters. A tensor is what files of other libraries hold as one: a layer's, an
expert's.
"""

import itertools
import zlib
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from pangu_jax.core.errors import InputError
from pangu_jax.core.spec import is_spec
from pangu_jax.core.tree import flatten, map_named
from pangu_jax.reasoning.merge_recipe import Recipe

STACKED = ("layers", "group", "expert")  # axes whose entries are tensors of their own
COLLINEAR = 0.9995  # cosine from which slerp is linear, as in mergekit


def merge(trees: Sequence[Any], recipe: Recipe, *, base: Any = None, spec: Any = None) -> Any:
    """One tree of several.

    Args:
      trees: of equal structure and shapes. Leaves that are not floats are taken from the last;
        arrays that a tree has in two places are merged once.
      recipe: how.
      base: the tree that they all come from, for `FROM_BASE`.
      spec: the model's spec, whose axes say which leaves stack several tensors; None takes each
        leaf as one tensor. It matters for slerp, ties and dare.

    Returns:
      A tree of numpy arrays of the types of the base, or else of the first.

    Raises:
      InputError: trees differ in a leaf or its shape (names it), or see `Recipe.check`.
    """
    recipe.check(len(trees), base is not None)
    every = [*trees] if base is None else [*trees, base]
    for number, tree in enumerate(every[1:], start=2):
        same_shapes(every[0], tree, "the first tree", f"tree {number}")
    axes = {} if spec is None else {k: s.axes for k, s in flatten(spec, is_leaf=is_spec).items()}
    done: dict[tuple[int, ...], np.ndarray] = {}

    def leaf(path: str, *arrays: Any) -> np.ndarray:
        own = tuple(map(id, arrays))
        if own not in done:
            # Leading ones: a router's kernel has experts among its outputs.
            stacked = len(list(itertools.takewhile(STACKED.__contains__, axes.get(path, ()))))
            done[own] = _leaf(recipe, [np.asarray(a) for a in arrays], base, path, stacked)
        return done[own]

    return map_named(leaf, *every)


def _leaf(recipe: Recipe, arrays: list[np.ndarray], base: Any, path: str, stacked: int):
    merged = np.empty_like(arrays[0 if base is None else -1])
    for at in np.ndindex(merged.shape[:stacked]):
        parts = [array[at] for array in arrays]
        origin = None if base is None else parts.pop()
        merged[at] = merge_tensors(parts, recipe, base=origin, name=f"{path}{list(at)}")
    return merged


def same_shapes(one: Any, other: Any, first: str, second: str) -> None:
    """Checks that two trees have the same leaves of the same shapes.

    Args:
      one: a tree of whatever has a shape.
      other: another.
      first: how the error names the one.
      second: and the other.

    Raises:
      InputError: they do not; names a leaf.
    """
    a, b = flatten(one), flatten(other)
    for path in [*a, *b]:
        if path not in a or path not in b:
            lacks, has = (first, second) if path not in a else (second, first)
            raise InputError(f"{lacks} lacks {path}, which {has} has")
        if tuple(a[path].shape) != tuple(b[path].shape):
            shapes = f"{tuple(a[path].shape)} in {first} and {tuple(b[path].shape)} in {second}"
            raise InputError(f"{path} has shape {shapes}")


def merge_tensors(
    tensors: Sequence[np.ndarray],
    recipe: Recipe,
    *,
    base: np.ndarray | None,
    name: str,
    dtype: Any = None,
) -> np.ndarray:
    """One tensor of several.

    Args:
      tensors: of one shape.
      recipe: how; it has been checked.
      base: what they come from, for `FROM_BASE`.
      name: of the tensor, by which DARE draws what it drops, and by which errors call it.
      dtype: of the result; None is that of the base, or else of the first.

    Raises:
      InputError: the values are beyond that type.
    """
    like = tensors[0] if base is None else base
    if not jax.numpy.issubdtype(like.dtype, np.floating):
        return tensors[-1]
    wide = [np.asarray(x, np.float32) for x in tensors]
    if base is None:
        merged = _between(wide, recipe)
    elif recipe.scale == 0:
        merged = base
    else:
        merged = _from_base(np.asarray(base, np.float32), wide, recipe, name)
    dtype = np.dtype(like.dtype if dtype is None else dtype)
    with np.errstate(over="ignore"):
        found = merged.astype(dtype)
    if not np.isfinite(np.asarray(found, np.float32)).all():
        raise InputError(f"{name} has values beyond the range of {dtype} after merging")
    return found


def _between(wide: list[np.ndarray], recipe: Recipe) -> np.ndarray:
    if recipe.method == "slerp":
        return slerp(*wide, t=recipe.scale)
    return mean(wide, weights=recipe.weights)


def _from_base(base: np.ndarray, wide: list[np.ndarray], recipe: Recipe, name: str) -> np.ndarray:
    options = {"weights": recipe.weights, "scale": recipe.scale}
    if recipe.method == "task_arithmetic":
        return task_arithmetic(base, wide, **options)
    if recipe.method == "ties":
        return ties(base, wide, density=recipe.density, **options)
    masks = [
        _drawn(base.shape, recipe.density, (recipe.seed, number, zlib.crc32(name.encode())))
        for number in range(len(wide))
    ]
    density = recipe.density if recipe.rescale == "density" else None
    return dare(base, wide, masks=masks, density=density, **options)


def mean(arrays: Sequence[np.ndarray], *, weights: Sequence[float] | None = None) -> np.ndarray:
    """The weighted mean of arrays of one shape, float64.

    Source: arXiv 2203.05482; mergekit's "linear".
    """
    each = np.ones(len(arrays)) if weights is None else np.asarray(weights, np.float64)
    # Wide sums, so that the order of the arrays changes nothing.
    total = sum(w * np.asarray(x, np.float64) for w, x in zip(each, arrays, strict=True))
    return total / each.sum()


def task_arithmetic(
    base: np.ndarray,
    arrays: Sequence[np.ndarray],
    *,
    weights: Sequence[float] | None = None,
    scale: float = 1.0,
) -> np.ndarray:
    """Base + scale * sum of weight * (array - base), float64; the weights are 1/N by default.

    With these and a scale of 1 it is the mean.

    Source: arXiv 2212.04089; mergekit's "task_arithmetic". The form of the merge between
    iterations of Pangu Embedded (arXiv 2505.22375) as we read it: a scale below 1 pulls back
    toward the earlier model.
    """
    shares = _shares(len(arrays), weights)
    base = np.asarray(base, np.float64)
    return base + scale * sum(w * (x - base) for w, x in zip(shares, arrays, strict=True))


def slerp(a: np.ndarray, b: np.ndarray, *, t: float) -> np.ndarray:
    """Between two tensors along the arc, float64: `a` at t = 0, `b` at t = 1.

    The angle is that of the flattened tensors. Where they are nearly parallel or opposite (a cosine
    beyond `COLLINEAR`) it is the straight line.

    Source: mergekit's "slerp".
    """
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    norms = [norm if norm > 1e-8 else 1.0 for norm in map(np.linalg.norm, (a.ravel(), b.ravel()))]
    cosine = np.clip(np.vdot(a.ravel() / norms[0], b.ravel() / norms[1]), -1, 1)
    if abs(cosine) > COLLINEAR:
        return (1 - t) * a + t * b
    angle = np.arccos(cosine)
    return (np.sin((1 - t) * angle) * a + np.sin(t * angle) * b) / np.sin(angle)


def ties(
    base: np.ndarray,
    arrays: Sequence[np.ndarray],
    *,
    density: float,
    weights: Sequence[float] | None = None,
    scale: float = 1.0,
) -> np.ndarray:
    """Trims differences to the largest, elects a sign, takes the mean of those that have it.

    Args:
      base: float32.
      arrays: of its shape.
      density: share of each difference that stays, by magnitude; at least one value does.
      weights: of the arrays; 1 each by default.
      scale: of the merged difference.

    Source: arXiv 2306.01708; mergekit's "ties", whose sign is that of the weighted sum, plus for a
    sum of 0.
    """
    each = np.ones(len(arrays)) if weights is None else np.asarray(weights)
    each = each.astype(np.float32).reshape(-1, *[1] * base.ndim)
    # In float32 as there: which values are the largest, and the sign of a sum, depend on it.
    changes = each * np.stack([_trimmed(x - base, density) for x in arrays])
    sign = np.where(changes.sum(0) >= 0, 1, -1)
    chosen = np.sign(changes) == sign
    weight = (each * chosen).sum(0)
    merged = (changes * chosen).sum(0) / np.where(weight == 0, 1, weight)
    return base + np.float32(scale) * merged


def dare(
    base: np.ndarray,
    arrays: Sequence[np.ndarray],
    *,
    masks: Sequence[np.ndarray],
    density: float | None = None,
    weights: Sequence[float] | None = None,
    scale: float = 1.0,
) -> np.ndarray:
    """Task arithmetic on differences of which a random part is kept and scaled up.

    Args:
      base: float32.
      arrays: of its shape.
      masks: bool, of its shape, one an array: what is kept.
      density: what differences are divided by; None scales each to the sum of magnitudes that it
        had.
      weights: of the arrays; 1/N by default.
      scale: of the merged difference.

    Source: arXiv 2311.03099, which divides by the density; mergekit's "dare_linear", which keeps
    the sum of magnitudes.
    """
    kept = [
        base + _rescaled(np.float64(x) - base, mask, density)
        for x, mask in zip(arrays, masks, strict=True)
    ]
    return task_arithmetic(base, kept, weights=weights, scale=scale)


def _shares(number: int, weights: Sequence[float] | None) -> np.ndarray:
    return np.full(number, 1 / number) if weights is None else np.asarray(weights, np.float64)


def _trimmed(change: np.ndarray, density: float) -> np.ndarray:
    """The largest values by magnitude, 0 for the others; of equal ones the first stay."""
    keep = max(1, int(density * change.size))
    if keep >= change.size:
        return change
    size = np.abs(change).ravel()
    least = np.partition(size, size.size - keep)[size.size - keep]
    mask = size > least
    mask[np.flatnonzero(size == least)[: keep - int(mask.sum())]] = True
    return np.where(mask.reshape(change.shape), change, 0)


def _rescaled(change: np.ndarray, mask: np.ndarray, density: float | None) -> np.ndarray:
    kept = change * mask
    if density is not None:
        return kept / density
    before, after = np.abs(change).sum(), np.abs(kept).sum()
    return kept if min(before, after) < 1e-7 else kept * (before / after)


def _drawn(shape: tuple[int, ...], density: float, seed: tuple[int, ...]) -> np.ndarray:
    return np.random.default_rng(seed).random(shape, np.float32) < density
