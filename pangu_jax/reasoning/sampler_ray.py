"""Sampling in Ray actors, on this machine or others: `pip install 'pangu-jax[ray]'`.

    state = train(..., sampler=partial(RaySampler, workers=4))

Each actor has an engine of its own, as in a run in one process. Weights are put into Ray's store
once per version. Calls to an actor run in order, so a sample starts with the weights of its version
or newer ones, which is all that the schedule's bound needs. If an actor is lost, another takes its
place, and the schedule restarts its samples.
"""

import dataclasses
import os
import time
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from pangu_jax.core.config import check_size
from pangu_jax.core.errors import InputError
from pangu_jax.core.extras import check_extra
from pangu_jax.decode.engine import Request
from pangu_jax.models.decoder import DecoderConfig
from pangu_jax.nn.how import HOW, How
from pangu_jax.reasoning.sampler import LocalSampler, Sampled

WAIT_S = 0.05  # how long `poll` waits for an answer
START_S = 300.0  # most seconds until an actor has started
IN_A_ROW = 3  # actors that may end one after another in one place without an answer


def import_ray() -> Any:
    """Ray, which is an extra.

    Raises:
      InputError: it is not installed.
    """
    check_extra("ray", "ray", by="sampling in Ray actors")
    import ray  # pyright: ignore[reportMissingImports]
    import ray.exceptions  # pyright: ignore[reportMissingImports]

    return ray


class _Actor:
    """A `LocalSampler` in another process."""

    def __init__(self, params: Any, **sizes: Any):
        self._sampler = LocalSampler(params, **sizes)

    def start(self, group: int, sample: int, request: Request) -> None:
        """See `Sampler`."""
        self._sampler.start(group, sample, request)

    def update(self, params: Any) -> None:
        """See `Sampler`."""
        self._sampler.update(params)

    def poll(self) -> list[Sampled]:
        """See `Sampler`."""
        return self._sampler.poll() if self._sampler.engine.busy else []

    def pid(self) -> int:
        """The id of its process."""
        return os.getpid()


@dataclasses.dataclass(eq=False)
class _Place:
    """An actor, its samples, and its pending calls."""

    actor: Any
    until: float  # when it must be there
    begins: Any  # its first call; None once it has started
    running: set[tuple[int, int]] = dataclasses.field(default_factory=set)
    polled: Any = None
    calls: list[Any] = dataclasses.field(default_factory=list)
    lost: int = 0  # actors in a row that ended here without an answer


class RaySampler:
    """A sampler that spreads samples over actors; see `Sampler` and `MakeSampler`."""

    shares_device = False

    def __init__(
        self,
        params: Any,
        *,
        version: int = 0,
        model: DecoderConfig,
        slots: int,
        length: int,
        stops: int = 1,
        how: How = HOW,
        workers: int = 2,
        gpus: float = 0.0,
    ):
        """Starts the actors, and Ray unless it runs already (or at RAY_ADDRESS).

        Args:
          params: tree of `decoder.spec(model)`.
          version: of these weights.
          model: the decoder.
          slots: samples at once, of all actors together.
          length: tokens that each has room for, of prompt and answer together.
          stops: most stop ids of a request.
          how: implementations and type of activations; no layout.
          workers: number of actors.
          gpus: per actor, of those that Ray has; Ray does not know of the trainer's.

        Raises:
          InputError: a number is out of range, there is a layout, or Ray is not installed, cannot
            be started or joined, or lacks resources for the actors.
        """
        check_size("workers", workers)
        if how.layout is not None:
            raise InputError("Ray's workers each have the whole model, so there is no layout")
        self._ray = ray = import_ray()
        self._places: list[_Place] = []
        self._began = not ray.is_initialized()
        if self._began:
            _begin(ray)
        sizes: Any = {"model": model, "length": length, "stops": stops, "how": how}
        self._sizes = {**sizes, "slots": -(-slots // workers)}
        self._make = ray.remote(num_gpus=gpus, num_cpus=1)(_Actor)
        self._version = version
        try:
            _check_room(ray, workers, gpus)
            self._weights = ray.put(jax.device_get(params))
            self._places += [self._place() for _ in range(workers)]
        except BaseException:
            self.close()
            raise

    def start(self, group: int, sample: int, request: Request) -> None:
        """Gives a sample to the actor with the fewest."""
        key = None if request.key is None else np.asarray(jax.random.key_data(request.key))
        request = dataclasses.replace(request, key=key, stop_ids=tuple(request.stop_ids))
        place = min(self._places, key=lambda place: len(place.running))
        place.running.add((group, sample))
        place.calls.append(place.actor.start.remote(group, sample, request))

    def update(self, params: Any) -> None:
        """Gives new weights to all actors, through one copy in Ray's store."""
        self._version += 1
        self._weights = self._ray.put(jax.device_get(params))
        for place in self._places:
            place.calls.append(place.actor.update.remote(self._weights))

    def poll(self, *, wake: bool = True) -> list[Sampled]:
        """Returns samples that have ended, or were lost with their actor, after a short wait.

        Args:
          wake: ignored: actors behave as if it were true.

        Raises:
          InputError: actors do not start in time, keep dying, or cannot begin a sample; says why.
        """
        del wake
        self._check_there()
        for place in self._places:
            if place.polled is None and place.running:
                place.polled = place.actor.poll.remote()
        asked = [place.polled for place in self._places if place.polled is not None]
        if asked:
            self._ray.wait(asked, num_returns=1, timeout=WAIT_S)
        return [found for place in self._places for found in self._look(place)]

    def close(self) -> None:
        """Ends the actors, and Ray if it was started here."""
        for place in self._places:
            self._ray.kill(place.actor)
        if self._began:
            self._ray.shutdown()

    def pids(self) -> list[int]:
        """The process ids of the actors."""
        return self._ray.get([place.actor.pid.remote() for place in self._places])

    def _look(self, place: _Place) -> list[Sampled]:
        try:
            done = self._done(place.calls)
            self._ray.get(done)
            place.calls = [call for call in place.calls if call not in done]
            if place.polled is None or not self._done([place.polled]):
                return []
            found, place.polled = self._ray.get(place.polled), None
        except self._ray.exceptions.RayTaskError as error:  # what an actor raised; it lives on
            raise InputError(f"a worker of Ray failed: {error.cause}") from error
        except self._ray.exceptions.RayActorError as error:
            return self._replaced(place, error)
        place.lost = 0 if found else place.lost
        place.running -= {(one.group, one.sample) for one in found}
        return found

    def _replaced(self, place: _Place, error: Exception) -> list[Sampled]:
        """Replaces a dead actor, whose samples are lost."""
        if place.lost + 1 >= IN_A_ROW:
            raise InputError(
                f"{IN_A_ROW} workers of Ray ended one after another: {error}"
            ) from error
        gone = [Sampled(*one, None) for one in sorted(place.running)]
        other = dataclasses.replace(self._place(), lost=place.lost + 1)
        self._places[self._places.index(place)] = other
        return gone

    def _place(self) -> _Place:
        actor = self._make.remote(self._weights, version=self._version, **self._sizes)
        return _Place(actor, time.monotonic() + START_S, actor.pid.remote())

    def _check_there(self) -> None:
        """Raises if actors that Ray cannot place keep it waiting too long."""
        late = 0
        for place in self._places:
            if place.begins is not None and self._done([place.begins]):
                place.begins = None  # or it is lost, which its other calls tell
            late += place.begins is not None and time.monotonic() > place.until
        if late:
            free = self._ray.available_resources()
            raise InputError(
                f"{late} of {len(self._places)} workers of Ray did not begin within {START_S:g} s; "
                f"Ray has {free.get('CPU', 0):g} CPUs and {free.get('GPU', 0):g} GPUs free"
            )

    def _done(self, calls: Sequence[Any]) -> list[Any]:
        """Calls that are complete."""
        if not calls:
            return []
        return self._ray.wait(list(calls), num_returns=len(calls), timeout=0)[0]


def _begin(ray: Any) -> None:
    try:
        ray.init(include_dashboard=False, log_to_driver=False)
    except Exception as error:  # it raises many kinds, some of them plain exceptions
        where = os.environ.get("RAY_ADDRESS")
        what = "begun" if where is None else f"joined at RAY_ADDRESS={where}"
        raise InputError(f"Ray cannot be {what}: {error}") from error


def _check_room(ray: Any, workers: int, gpus: float) -> None:
    """Refuses more actors than Ray could ever place: they would wait silently."""
    has = ray.cluster_resources()
    for kind, each in (("CPU", 1), ("GPU", gpus)):
        if workers * each > has.get(kind, 0) + 1e-6:
            raise InputError(
                f"{workers} workers need {workers * each:g} {kind}s, and Ray has "
                f"{has.get(kind, 0):g}: give fewer workers, or join a larger Ray by RAY_ADDRESS"
            )
