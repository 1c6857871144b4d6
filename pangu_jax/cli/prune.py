"""Prunes a checkpoint: a smaller one that loads elsewhere, a plan to replay, a report.

    pangu-jax prune CHECKPOINT OUT --target params=0.8 --calib TEXT

`pangu-jax prune check OUT` re-loads OUT and verifies what was promised; see its --help.
"""

import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Literal

import tyro

from pangu_jax.cli.progress import progress, working
from pangu_jax.task.options import PruneOptions
from pangu_jax.task.prune import prune_folder
from pangu_jax.task.watch import Watch


@dataclass(frozen=True, kw_only=True)
class Options(PruneOptions):
    """What to prune, to what size, and how."""

    checkpoint: Annotated[str, tyro.conf.Positional]
    """A run folder or a folder in the Hugging Face layout; one that is called check is ./check."""
    out: Annotated[str, tyro.conf.Positional]
    """A new folder for the pruned checkpoint, plan.json and report.md."""
    prunable_axes: Annotated[
        tuple[Literal["groups", "ffn", "hidden"], ...], tyro.conf.arg(aliases=["--free"])
    ] = ()
    """Axes that a params or flops target cuts; empty is the method's own."""


def main(options: Options) -> None:
    """Prunes, repairs, saves, reloads, compares, reports."""
    watch = Watch(partial(print, file=sys.stderr), working, progress)
    written = prune_folder(options.checkpoint, options.out, options, watch=watch)
    out = Path(options.out)
    print((out / "report.md").read_text(encoding="utf-8").split("\n## ")[0].strip())
    hint = "" if (out / "tokenizer.json").is_file() else " --tokenizer bytes"
    print(f"\n{out} holds the pruned checkpoint as {written}; ", end="")
    print(f"try: pangu-jax generate {out}{hint}")
