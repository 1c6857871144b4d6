"""How commands and experiments end when they are stopped, interrupted or given bad input."""

import contextlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import jax

from pangu_jax.core.errors import InputError
from pangu_jax.sharding.launch import connect, first_process, leave
from pangu_jax.train.stop_signal import Stopped

# The options that say which devices and processes compute a run; a resumed run may change them.
PLACEMENT = ("mesh", "rules", "coordinator", "processes", "process")


@contextlib.contextmanager
def stoppable() -> Iterator[None]:
    """Exits the process if a run in the block was told to stop, which has saved its state.

    One line on stderr names the step, and the exit status is the signal's, 143 or 130.
    """
    try:
        yield
    except Stopped as stop:
        if first_process():
            print(f"stopped at step {stop}; the same command goes on from there", file=sys.stderr)
        sys.exit(stop.status)


@contextlib.contextmanager
def joined(
    coordinator: str, processes: int | None, process: int | None
) -> Iterator[contextlib.ExitStack]:
    """Joins the processes of a run for the block; one that finds bad input leaves at once.

    Args:
      coordinator: as in `sharding.launch.connect`, "" for a run of one process.
      processes: number of processes, or None.
      process: index of this process, or None.

    Yields:
      A stack that is closed when the block ends, for such as the claim on the run's folder.

    Raises:
      InputError: the processes cannot be joined, or, in a run of one, the block raised it. Of
        several, one that raises it exits with 2 and does not wait for the others.
    """
    connect(coordinator, processes, process)
    try:
        with contextlib.ExitStack() as claims:
            yield claims
    except InputError as error:
        if jax.process_count() > 1:
            leave(str(error), 2)
        raise


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
