"""Tells what can be read from the thoughts of a model that `latent train` made.

For each thought and each step, and for the answer, a linear probe is fitted to read the token in
which they differ most, and again with shuffled labels, as a baseline; the logit lens tells how
the model's own head ranks that token.
"""

from dataclasses import dataclass
from typing import Annotated

import tyro

from pangu_jax.cli.options.latent_problems import Problems


@dataclass(frozen=True)
class Options(Problems):
    """Which run, on which problems, and what is shown."""

    run: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
    """A folder that `pangu-jax latent train` wrote, by a method with thoughts."""
    tests: int | None = None
    """Maximum number of problems; None is as many as the run measured on. A probe is fitted on half
    of them and measured on the other half."""
    seed: int = 0
    """Seed of the halves, and of the shuffled labels."""
    plot: str | None = None
    """A picture to write (.png, .svg or .pdf): lenses by layer, probes beside their control, how
    the head's probability spreads over what may come next, and answers with thoughts exchanged."""
    json: bool = False
    """Print one JSON object per line instead of a table."""
