"""Measures the answers of a model that `latent train` made, also with its thoughts exchanged."""

from dataclasses import dataclass
from typing import Annotated, Literal

import tyro


@dataclass(frozen=True)
class Options:
    """Which run, on which problems."""

    run: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
    """A folder that `pangu-jax latent train` wrote."""
    task: str | None = None
    """mult4x4 (any mult<D>x<D>), prosqa, prosqa-symbols, gsm8k, or a .jsonl file; None is the
    task of the run."""
    data: str | None = None
    """For gsm8k: the folder with its files."""
    test: str | None = None
    """A file of problems to measure on; None is the run's, or for another task as in training.
    Problems that the run was trained on are left out."""
    tests: int | None = None
    """Most problems to measure on; None is as many as the run measured on."""
    batch: int = 32
    """Problems answered at once."""
    max_new_tokens: int | None = None
    """Most tokens that are written; None is enough for the task of the run."""
    ablations: bool = True
    """Whether the thoughts are also exchanged for zeros, noise, another problem's, pauses."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Type of activations and cache."""
    json: bool = False
    """Print one JSON object instead of text."""
