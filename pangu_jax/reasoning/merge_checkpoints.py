"""Merges checkpoints on disk, with one tensor of each in memory at a time."""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pangu_jax.checkpoint import hf
from pangu_jax.checkpoint.open import checkpoint_format, open_checkpoint
from pangu_jax.core.errors import InputError
from pangu_jax.core.tree import flatten, map_named
from pangu_jax.data.tokenizer import FileTokenizer, Tokenizer, load_tokenizer
from pangu_jax.models import registry
from pangu_jax.reasoning.merge import merge_tensors
from pangu_jax.reasoning.merge_recipe import Recipe


@dataclasses.dataclass(frozen=True)
class Source:
    """One checkpoint.

    Attributes:
      path: the folder.
      params: tree of `hf.LazyLeaf`.
      cfg: the model.
      tokenizer: what `load_tokenizer` takes.
      family: whose layout the folder has; None for a run of ours.
    """

    path: str
    params: Any
    cfg: Any
    tokenizer: str
    family: str | None


@dataclasses.dataclass(frozen=True)
class _Held(hf.LazyLeaf):
    """A leaf that is in memory."""

    array: np.ndarray
    shape: tuple[int, ...]

    def at(self, index: tuple[int, ...]) -> np.ndarray:
        return self.array[index]

    def dtype_at(self, index: tuple[int, ...]) -> np.dtype:
        del index
        return self.array.dtype


@dataclasses.dataclass(frozen=True)
class _Merged(hf.LazyLeaf):
    """A leaf that is merged part by part."""

    path: str
    shape: tuple[int, ...]
    recipe: Recipe
    leaves: Sequence[hf.LazyLeaf]
    base: hf.LazyLeaf | None
    dtype: Any

    def at(self, index: tuple[int, ...]) -> np.ndarray:
        base = None if self.base is None else self.base.at(index)
        parts = [leaf.at(index) for leaf in self.leaves]
        name = f"{self.path}{list(index)}"
        return merge_tensors(parts, self.recipe, base=base, name=name, dtype=self.dtype)

    def dtype_at(self, index: tuple[int, ...]) -> np.dtype:
        first = self.leaves[0] if self.base is None else self.base
        return first.dtype_at(index) if self.dtype is None else np.dtype(self.dtype)


def open_source(path: str | Path) -> Source:
    """Opens a checkpoint; the tensors of a Hugging Face folder stay there, those of a run do not.

    Raises:
      InputError: see `checkpoint.open.open_checkpoint`.
    """
    if checkpoint_format(path) == "hf":
        params, cfg = hf.view(path)
        return Source(str(path), params, cfg, str(path), hf.read_config(path)[1])
    params, cfg, found = open_checkpoint(path)
    held = map_named(lambda _, leaf: _Held(np.asarray(leaf), tuple(leaf.shape)), params)
    return Source(str(path), held, cfg, found, None)


def merged(
    sources: Sequence[Source], recipe: Recipe, *, base: Source | None = None, dtype: Any = None
) -> Any:
    """A tree of `hf.LazyLeaf`, whose parts are merged when they are asked for.

    Args:
      sources: of one architecture and one tokenizer.
      recipe: how.
      base: what they come from, where the method has one.
      dtype: of the result; None is that of the base, or else of the first.

    Raises:
      InputError: they differ in a setting or in their tokens (names it), or see `Recipe.check`.
    """
    recipe.check(len(sources), base is not None)
    first, *others = sources if base is None else (base, *sources)
    for other in others:
        _same_settings(first, other)
        same_tokens(first, other)

    def leaf(path: str, *leaves: hf.LazyLeaf) -> hf.LazyLeaf:
        origin = None if base is None else leaves[0]
        rest = leaves if base is None else leaves[1:]
        return _Merged(path, leaves[0].shape, recipe, rest, origin, dtype)

    return map_named(leaf, first.params, *(other.params for other in others))


def tokens_of(source: Source) -> Tokenizer | None:
    """A checkpoint's tokenizer, None where it has none that can be read."""
    try:
        return load_tokenizer(source.tokenizer, checkpoint=source.path)
    except InputError:
        return None


def _same_settings(first: Source, other: Source) -> None:
    """Raises InputError for a setting that changes what the same tensors compute."""
    one, two = (flatten(registry.to_json(source.cfg)) for source in (first, other))
    for name in [*one, *two]:
        # How long a context the model was made for does not enter what it computes.
        if name != "max_length" and one.get(name) != two.get(name):
            raise InputError(
                f"{first.path} has {name} = {one.get(name)!r} and {other.path} "
                f"{two.get(name)!r}; only models of the same architecture can be merged"
            )


def same_tokens(first: Source, other: Source) -> None:
    """Checks that two tokenizers give a text the same ids, or one of them cannot be read.

    Raises:
      InputError: they do not; names a token, or the part of tokenizer.json that differs.
    """
    one, two = tokens_of(first), tokens_of(other)
    if one is None or two is None or one.digest == two.digest:
        return
    where = f"the tokenizers of {first.path} and {other.path}"
    if not isinstance(one, FileTokenizer) or not isinstance(two, FileTokenizer):
        raise InputError(f"{where} differ: one is of bytes, the other of tokens")
    names = [tokenizer.inner.get_vocab(with_added_tokens=True) for tokenizer in (one, two)]
    for token in sorted(names[0].keys() | names[1].keys()):
        ids = [known.get(token, "none") for known in names]
        if ids[0] != ids[1]:
            raise InputError(f"{where} differ: {token!r:.60} is id {ids[0]} and {ids[1]}")
    parts = [json.loads(tokenizer.inner.to_str()) for tokenizer in (one, two)]
    for part in ("normalizer", "pre_tokenizer", "model"):
        if parts[0].get(part) != parts[1].get(part):
            raise InputError(f"{where} differ in {part}, so they cut texts differently")
