"""The sampler interface of reinforcement learning, and its in-process implementation."""

import dataclasses
from functools import lru_cache, partial
from typing import Any, Protocol

import jax
import numpy as np

from pangu_jax.decode.engine import Answer, Engine, Request, join
from pangu_jax.models.decoder import DecoderConfig
from pangu_jax.nn.how import HOW, How


@dataclasses.dataclass(frozen=True)
class Sampled:
    """The outcome of a sample.

    Attributes:
      group: its group's number.
      sample: its own.
      answer: None if its writer was lost.
    """

    group: int
    sample: int
    answer: Answer | None


class Sampler(Protocol):
    """Writes answers with the newest weights that it was given.

    Attributes:
      shares_device: whether it can do nothing while the trainer updates.
    """

    shares_device: bool

    def start(self, group: int, sample: int, request: Request) -> None:
        """Begins a sample, with the current weights or newer ones.

        Raises:
          InputError: there is no room for it.
        """
        ...

    def update(self, params: Any) -> None:
        """Switches to other weights, one version newer, from the next token on."""
        ...

    def poll(self, *, wake: bool = True) -> list[Sampled]:
        """Returns samples that have ended, perhaps none, after a few steps of decoding at most.

        Args:
          wake: whether to report ended samples soon, as others can begin.
        """
        ...

    def close(self) -> None:
        """Closes the sampler."""
        ...


class MakeSampler(Protocol):
    """Makes a sampler from its initial weights."""

    def __call__(
        self,
        params: Any,
        *,
        version: int,
        model: DecoderConfig,
        slots: int,
        length: int,
        stops: int,
        how: How,
    ) -> Sampler:
        """Returns a running sampler.

        Args:
          params: tree of `decoder.spec(model)`.
          version: of these weights.
          model: the decoder.
          slots: samples at once.
          length: tokens that each has room for, of prompt and answer together.
          stops: most stop ids of a request.
          how: layout, implementations, type of activations.
        """
        ...


class LocalSampler:
    """An engine in this process, on the trainer's device."""

    shares_device = True

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
    ):
        """See `MakeSampler`."""
        sizes = {"slots": slots, "length": length, "stops": stops, "version": version}
        self.engine = Engine(params, cfg=model, how=how, **sizes)
        self._places: dict[int, tuple[int, int]] = {}

    def start(self, group: int, sample: int, request: Request) -> None:
        """Queues a sample."""
        number = self.engine.submit(request)
        self._places[number] = group, sample

    def update(self, params: Any) -> None:
        """Continues running answers with the new weights."""
        self.engine.update(params)

    def poll(self, *, wake: bool = True) -> list[Sampled]:
        """Calls the engine once."""
        # The schedule has no more samples than slots: none waits here for a slot to be free.
        # An update may follow, on this device, and is not to wait for more tokens of old weights.
        ended = self.engine.advance(wake=wake, whole=True, ahead=False)
        return [Sampled(*self._places.pop(x.request), join([x])) for x in ended]

    def close(self) -> None:
        """Does nothing."""


def sample_key(seed: int, group: int, sample: int) -> jax.Array:
    """The key of a sample: the same whenever, and however often, it starts."""
    first = sample - sample % _KEYS
    return _kept_keys(seed, group, first)[sample - first]


_KEYS = 8  # that one call of the device makes


@lru_cache(maxsize=256)
def _kept_keys(seed: int, group: int, first: int) -> list[jax.Array]:
    return _sample_keys(seed, np.uint32(group), np.uint32(first))


@partial(jax.jit, static_argnums=0)
def _sample_keys(seed, group, first):
    key = jax.random.fold_in(jax.random.key(seed), group)
    return [jax.random.fold_in(key, first + sample) for sample in range(_KEYS)]
