"""What `latent eval` and `latent probe` both take: a run, and the problems to measure it on."""

from dataclasses import dataclass
from typing import Annotated

import tyro


@dataclass(frozen=True)
class Problems:
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
    """Maximum number of problems to measure on; None is as many as the run measured on."""
    batch: int = 32
    """Problems computed at once."""
