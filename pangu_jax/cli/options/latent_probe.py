"""Tells what can be read from the thoughts of a model that `latent train` made.

For each thought and each step, and for the answer, a linear probe is fitted to read the token in
which they differ most, and again with shuffled labels, as a baseline; the logit lens tells at which
place the model's own head ranks that token.
"""

from dataclasses import dataclass
from typing import Annotated

import tyro


@dataclass(frozen=True)
class Options:
    """Which run, on which problems."""

    run: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
    """A folder that `pangu-jax latent train` wrote, by a method with thoughts."""
    task: str | None = None
    """mult4x4 (any mult<D>x<D>), prosqa, prosqa-symbols, gsm8k, or a .jsonl file; None is the
    task of the run."""
    data: str | None = None
    """For gsm8k: the folder with its files."""
    test: str | None = None
    """A file of problems; None is the run's, or for another task as in training. Problems that the
    run was trained on are left out."""
    tests: int | None = None
    """Most problems; None is as many as the run measured on. A probe is fitted on half of them and
    measured on the other."""
    batch: int = 32
    """Problems thought about at once."""
    seed: int = 0
    """Of the halves, and of the shuffled labels."""
    plot: str | None = None
    """A picture to write, .png, .svg or .pdf: lenses by layer, probes beside their control, how
    the head's probability lies on what may come next, and answers with thoughts exchanged."""
    json: bool = False
    """Print one JSON object per line instead of a table."""
