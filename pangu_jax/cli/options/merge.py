"""Merges checkpoints of one origin into one, in the Hugging Face layout.

    pangu-jax merge A B C --out M                                   the mean
    pangu-jax merge A B C --base BASE --method ties --lambda 0.7 --gate text.txt --out M

With --gate all are measured on the file's text or questions, and a merge that is worse than the
best single checkpoint is not written: the exit status is then 1.
"""

from dataclasses import dataclass
from typing import Annotated, Literal

import tyro

from pangu_jax.reasoning.merge_recipe import Method


@dataclass(frozen=True)
class Options:
    """What to merge, how, and how good the merge must be."""

    checkpoints: Annotated[
        tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="CHECKPOINT ...")
    ]
    """Run folders or folders in the Hugging Face layout, two or more, of one architecture."""
    out: str
    """The new folder."""
    base: str | None = None
    """The checkpoint they were all trained from; task_arithmetic, ties and dare need it."""
    method: Method = "mean"
    """mean; task_arithmetic (delta is an older name of it); slerp (of two); ties; dare."""
    scale: Annotated[float | None, tyro.conf.arg(name="lambda")] = None
    """How far to go from the base, 1 if left out; or, for slerp, from the first, 0.5 if left
    out."""
    density: float = 0.5
    """Share of each difference that ties and dare keep."""
    weights: tuple[float, ...] | None = None
    """One per checkpoint; by default all count equally."""
    rescale: Literal["norm", "density"] = "norm"
    """How dare makes up for what it drops: norm keeps the sum of magnitudes; density divides by the
    share that is kept, as published."""
    seed: int = 0
    """Seed of what dare drops."""
    dtype: Literal["float32", "float16", "bfloat16"] | None = None
    """Type of the tensors; None keeps that of the base, or else of the first."""
    max_shard_gb: float = 5.0
    """Maximum size of each file of tensors."""
    gate: str | None = None
    """A file of text, or of questions ({"instruction", "label"} per line), on which all are
    measured."""
    tolerance: float = 0.0
    """How much worse than the best single checkpoint the merge may be, in the gate's unit."""
    length: int = 512
    """Maximum context in the gate's text, in tokens."""
    batch: int = 8
    """Windows or choices of the gate computed at once."""
