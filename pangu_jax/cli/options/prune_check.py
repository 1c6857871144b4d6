"""Reloads what `pangu-jax prune` wrote, and verifies from its files what it promises.

Exits with 2, and says what, where something does not hold.
"""

from dataclasses import dataclass
from typing import Annotated

import tyro


@dataclass(frozen=True)
class Options:
    """What to verify, and against what."""

    folder: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="FOLDER")]
    """What `pangu-jax prune` wrote."""
    source: str | None = None
    """The original checkpoint, to replay the plan on and to compare what no repair touches with."""
