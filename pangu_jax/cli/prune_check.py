"""Runs `pangu-jax prune check`; its options are in `cli/options/prune_check.py`."""

from pangu_jax.cli.options.prune_check import Options
from pangu_jax.cli.progress import progress, working
from pangu_jax.task.prune_check import check
from pangu_jax.task.watch import Watch


def main(options: Options) -> None:
    """Verifies a pruned folder and prints what holds."""
    check(options.folder, options.source, watch=Watch(print, working, progress))
    if options.source is None:
        print("replay: not done; give --source CHECKPOINT")
