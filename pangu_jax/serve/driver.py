"""One engine, driven by one thread, serving requests from others.

jax is called from that thread alone. What it makes of a request is given to the request's own
function, which is called there and must return at once.
"""

import dataclasses
import threading
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from pangu_jax.core.config import check_size
from pangu_jax.core.errors import InputError
from pangu_jax.decode.engine import Engine, Request, TokenDelta, check_prompt, round_up
from pangu_jax.decode.sampling_config import SamplingConfig
from pangu_jax.models.decoder import DecoderConfig
from pangu_jax.nn.how import HOW, How

SEEDS = 2**32  # as many as jax's keys tell apart


class Busy(Exception):
    """The queue is full."""


class Ended(Exception):
    """The driver has ended, and why: requests are no longer answered.

    Attributes:
      failed: whether it is a fault of the engine; else it was told to end.
    """

    def __init__(self, message: str, *, failed: bool):
        """Of one sentence, and whose fault it is."""
        super().__init__(message)
        self.failed = failed


@dataclasses.dataclass(eq=False)
class Job:
    """An answer to be generated.

    Attributes:
      ids: the prompt.
      max_new_tokens: maximum number of tokens to draw.
      sampling: how they are drawn.
      stop_ids: the answer ends with the first of these.
      seed: 0 to SEEDS - 1; with `row`, all that decides what is drawn: the answer is that of row
        `row` of `decode.generate` with the key of this seed.
      row: which answer of that seed.
      give: called in the engine's thread with each delta, or with why no more will come.
      number: the engine's, once it knows of it.
    """

    ids: Sequence[int]
    max_new_tokens: int
    sampling: SamplingConfig
    stop_ids: Sequence[int]
    seed: int
    row: int
    give: Callable[[TokenDelta | Exception], None]
    number: int | None = None


class Driver:
    """The engine's thread, and how other threads talk to it.

    Attributes:
      cfg: the model.
      slots: answers that are made at once.
      length: tokens that a prompt and its answer may have together.
      most: jobs that may be open: in slots, and waiting.
      failure: the error that ended the thread; None if `end` did.
      failed: called in the engine's thread when it ends that way; may be replaced.
      free: slots without a job, as of the engine's last turn.
      waiting: jobs without a slot, as of then.
    """

    def __init__(
        self,
        params: Any,
        *,
        cfg: DecoderConfig,
        slots: int,
        length: int,
        queue: int,
        burst: int = 4,
        warm: int = 16,
        stops: int = 8,
        how: How = HOW,
    ):
        """Not started yet.

        Args:
          params: see `decode.engine.Engine`.
          cfg: the model.
          slots: see above.
          length: see above.
          queue: jobs that may wait for a slot.
          burst: most tokens that are drawn before new jobs and cancels are looked at.
          warm: tokens of the longest prompt that `start` compiles for.
          stops: most stop ids of a job.
          how: layout, implementations, type of activations and caches.

        Raises:
          InputError: a number that makes no sense.
        """
        sizes = {"slots": slots, "length": length, "burst": burst, "stops": stops}
        for name, value in {**sizes, "warm": warm}.items():
            check_size(name, value)
        if length < 2:
            raise InputError("length must be 2 or more: a token of a prompt and one of an answer")
        if queue < 0:
            raise InputError(f"queue must be 0 or more, got {queue}")
        self.cfg, self.slots, self.length, self.most = cfg, slots, length, slots + queue
        self.failure: BaseException | None = None
        self.free, self.waiting = slots, 0
        self._make = lambda: Engine(params, cfg=cfg, how=how, **sizes)
        self.failed: Callable[[], None] = lambda: None
        self._burst, self._longest = burst, min(warm, length - 1)
        self._changed = threading.Condition()
        self._inbox: deque[tuple[str, Any]] = deque()
        self._open, self._ended = 0, None
        self._jobs: dict[int, Job] = {}  # of the engine's thread alone
        self._warm = threading.Event()
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)

    def start(self) -> None:
        """Returns when the programs of requests up to `warm` are compiled.

        Raises:
          BaseException: whatever making or trying the engine raised.
        """
        self._thread.start()
        self._warm.wait()
        if self.failure is not None:
            raise self.failure

    @property
    def alive(self) -> bool:
        """Whether jobs are taken."""
        return self._ended is None

    def check(self, name: str, ids: Sequence[int]) -> None:
        """Checks that the model can read a prompt; may be called from any thread.

        Raises:
          InputError: see `decode.engine.check_prompt`.
        """
        check_prompt(name, ids, self.cfg)

    def submit(self, jobs: Sequence[Job]) -> None:
        """Takes all of the jobs or none.

        Raises:
          Busy: too many are open.
          Ended: the engine takes none any more.
        """
        with self._changed:
            if self._ended is not None:
                raise self._ended
            if self._open + len(jobs) > self.most:
                raise Busy
            self._open += len(jobs)
            self._tell(("submit", job) for job in jobs)

    def cancel(self, jobs: Sequence[Job]) -> None:
        """Ends those that have not ended yet; their slots are free at the engine's next turn."""
        with self._changed:
            self._tell(("cancel", job) for job in jobs)

    def end(self, why: str) -> None:
        """Ends every job with `Ended(why)`, and takes no more."""
        with self._changed:
            if self._ended is None:
                self._ended = Ended(why, failed=False)
                self._tell([("end", None)])

    def join(self, timeout: float) -> None:
        """Waits for the thread to end, which `end` made it do."""
        self._thread.join(timeout)

    def _tell(self, commands) -> None:
        self._inbox.extend(commands)
        self._changed.notify()

    def _run(self) -> None:
        try:
            engine = self._make()
            _try(engine, min(self.length - 1, 4 * self._burst), self._longest)
            self._warm.set()
            while self._heed(engine):
                for delta in engine.advance():
                    job = self._jobs[delta.request]
                    if delta.finish_reason is not None:
                        self._close(job)
                    job.give(delta)
        except BaseException as error:  # whatever it is, those who wait must hear of it
            self._fail(error)
            self._warm.set()

    def _heed(self, engine: Engine) -> bool:
        """Does what was asked for, once something is or the engine has work; whether to go on."""
        while True:
            self.free, self.waiting = engine.free, engine.waiting
            with self._changed:
                while not self._inbox:
                    if engine.busy:
                        return True
                    self._changed.wait()
                what, job = self._inbox[0]
            if what == "end":
                self._give_up()
                return False
            self._submit(engine, job) if what == "submit" else self._cancel(engine, job)
            with self._changed:  # now: a job whose command fails is told of it like the others
                self._inbox.popleft()

    def _submit(self, engine: Engine, job: Job) -> None:
        key = _key(job.seed, job.row)
        try:
            request = Request(job.ids, job.max_new_tokens, job.sampling, job.stop_ids, key)
            job.number = engine.submit(request)
        except InputError as error:
            self._free()
            job.give(error)
        else:
            self._jobs[job.number] = job

    def _cancel(self, engine: Engine, job: Job) -> None:
        if job.number in self._jobs:
            engine.cancel(job.number)
            self._close(job)

    def _close(self, job: Job) -> None:
        del self._jobs[job.number]
        self._free()

    def _free(self) -> None:
        with self._changed:
            self._open -= 1

    def _fail(self, error: BaseException) -> None:
        self.failure = error
        with self._changed:
            self._ended = Ended("the engine failed; the server ends", failed=True)
        self._give_up()
        self.failed()

    def _give_up(self) -> None:
        """Tells every open job why no more tokens will come."""
        with self._changed:
            late = [job for what, job in self._inbox if what == "submit"]
            self._inbox.clear()
        for job in [*self._jobs.values(), *late]:
            job.give(self._ended)
        self._jobs.clear()


def _try(engine: Engine, most: int, longest: int) -> None:
    """Compiles what requests and cancellations run, so that no client waits for it."""
    number = engine.submit(Request([0], most, key=_key(0, 0)))
    engine.advance()
    engine.cancel(number)
    lengths = {min(n, longest) for n in map(round_up, range(1, longest + 1))}
    for length in sorted(lengths):
        engine.submit(Request([0] * length, 1, key=_key(0, 0)))
        while engine.busy:
            engine.advance()


def _key(seed: int, row: int) -> jax.Array:
    return jax.random.fold_in(jax.random.key(np.uint32(seed)), row)
