"""Exit codes of commands and experiments: stopped, interrupted, or given bad input."""

import contextlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from pangu_jax.core.errors import InputError
from pangu_jax.sharding.launch import first_process
from pangu_jax.train.stop_signal import Stopped


@contextlib.contextmanager
def stoppable() -> Iterator[None]:
    """Ends the process where a run in the block was told to stop: its state is saved.

    One line says at which step, and the exit status is the signal's, 143 or 130.
    """
    try:
        yield
    except Stopped as stop:
        if first_process():
            print(f"stopped at step {stop}; the same command goes on from there", file=sys.stderr)
        sys.exit(stop.status)


def script(main: Callable[[], None]) -> None:
    """Runs an experiment and ends as a command does: 0, 2 for bad input, 130 or 143 when stopped.

    Args:
      main: the experiment, which keeps what it has done and goes on with the rest.
    """
    try:
        with stoppable():
            main()
    except InputError as error:
        print(f"{Path(sys.argv[0]).name}: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("interrupted; the same command goes on with what is missing", file=sys.stderr)
        sys.exit(130)
