"""Prunes a checkpoint: a smaller one that loads elsewhere, a plan to replay, a report.

    pangu-jax prune CHECKPOINT OUT --target params=0.8 --calib TEXT

`pangu-jax prune check OUT` re-loads OUT and verifies what was promised; see its --help.
"""

from dataclasses import dataclass
from typing import Annotated, Literal

import tyro

from pangu_jax.task.options import PruneOptions


@dataclass(frozen=True, kw_only=True)
class Options(PruneOptions):
    """What to prune, to what size, and how."""

    checkpoint: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="CHECKPOINT")]
    """A run folder or a folder in the Hugging Face layout; one that is called check is ./check."""
    out: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="OUT")]
    """A new folder for the pruned checkpoint, plan.json and report.md."""
    prunable_axes: Annotated[
        tuple[Literal["groups", "ffn", "hidden"], ...], tyro.conf.arg(aliases=["--free"])
    ] = ()
    """Axes that a params or flops target cuts; empty is the method's own."""
