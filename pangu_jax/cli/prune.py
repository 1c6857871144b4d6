"""Runs `pangu-jax prune`; its options are in `cli/options/prune.py`."""

import sys
from functools import partial
from pathlib import Path

from pangu_jax.cli.generate_file import note_thoughts
from pangu_jax.cli.options.prune import Options
from pangu_jax.cli.progress import progress, working
from pangu_jax.task.prune import prune_folder
from pangu_jax.task.watch import Watch


def main(options: Options) -> None:
    """Prunes, repairs, saves, reloads, compares, reports."""
    watch = Watch(partial(print, file=sys.stderr), working, progress)
    written = prune_folder(options.checkpoint, options.out, options, watch=watch)
    note_thoughts(options.checkpoint)
    out = Path(options.out)
    print((out / "report.md").read_text(encoding="utf-8").split("\n## ")[0].strip())
    hint = "" if (out / "tokenizer.json").is_file() else " --tokenizer bytes"
    print(f"\n{out} holds the pruned checkpoint as {written}; ", end="")
    print(f"try: pangu-jax generate {out}{hint}")
