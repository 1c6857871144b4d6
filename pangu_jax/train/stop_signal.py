"""SIGTERM and SIGINT: one answer to both, the same in every process of a run."""

import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from typing import Any

import jax
from jax.experimental import multihost_utils


class Stopped(Exception):
    """The run was asked to stop; its state is saved.

    Attributes:
      step: the last step, which is saved.
      status: exit status of a command: 128 and the signal's number, or 0 where no signal
        asked but the caller's own rule.
      state: the training state at that step.
    """

    def __init__(self, step: int, status: int = 128 + signal.SIGTERM, state: Any = None):
        """Takes the step, the exit status and the state."""
        super().__init__(step)
        self.step, self.status, self.state = step, status, state


class StopRequest:
    """A request, by signal, to stop this run."""

    def __init__(self):
        """Starts without a request."""
        self.signal = signal.SIGTERM
        # Not an Event, which has a lock: a second signal, heard within the handler of the first,
        # would wait for it forever.
        self._asked = False

    def reached(self, step: int) -> bool:
        """Whether this step is the last; to be called once after every step, in every process.

        With several processes a signal to any of them stops all at the same step, the next that
        none has begun.
        """
        if jax.process_count() > 1:
            return multihost_utils.reached_preemption_sync_point(step)
        return self._asked

    def ask(self, number: int, frame: object = None) -> None:
        """The signal handler: records a request to stop; a second SIGINT interrupts at once."""
        del frame
        again, self.signal = self._asked, signal.Signals(number)
        self._asked = True
        if again and number == signal.SIGINT:
            raise KeyboardInterrupt
        if jax.process_count() > 1:
            os.kill(os.getpid(), signal.SIGTERM)  # jax listens to this one, and tells the others


@contextlib.contextmanager
def stop_requests() -> Iterator[StopRequest]:
    """Turns SIGTERM and the first SIGINT into a request while the block runs.

    A second SIGINT interrupts. Outside the main thread, signals keep their handlers.
    """
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return
    kinds = {signal.SIGINT} if jax.process_count() > 1 else {signal.SIGINT, signal.SIGTERM}
    before = {kind: signal.signal(kind, request.ask) for kind in kinds}
    try:
        yield request
    finally:
        for kind, handler in before.items():
            signal.signal(kind, handler)
