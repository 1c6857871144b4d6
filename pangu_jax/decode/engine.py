"""Continuous batching: requests are admitted to free slots, each decoded as if it ran alone.

    engine = Engine(params, cfg=cfg, slots=8, length=1024)
    number = engine.submit(Request(ids, max_new_tokens=100, stop_ids=(2,)))
    while engine.busy:
        for delta in engine.advance():
            ...

`answers` does that for requests whose tokens need not be shown as they are generated. The state and
its functions are in `slots`; nothing here is traced, and nothing there is traced again once a
prompt of a similar length was seen. Requests with the same prompt that begin together, as samples
of a group may, share its prefill.
"""

import dataclasses
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from pangu_jax.core.config import check_size
from pangu_jax.core.errors import InputError
from pangu_jax.decode import slots as device
from pangu_jax.decode.sample import rows_of
from pangu_jax.decode.sampling_config import SamplingConfig
from pangu_jax.models.decoder import DecoderConfig
from pangu_jax.models.transformer import by_layer
from pangu_jax.nn.how import HOW, How

SHARED = 8  # requests at most that take over one reading of their prompt together
TOGETHER = 16  # whole answers that ended are reported once they are 1/16 of the slots

FinishReason = Literal["stop", "length"]


@dataclasses.dataclass(frozen=True)
class Request:
    """A prompt, and how it is continued.

    Attributes:
      inputs: ids, at least one; or embeddings [T, D], as from `decoder.embed`.
      max_new_tokens: maximum number of tokens to sample.
      sampling: sampling settings.
      stop_ids: the answer ends with the first of these.
      key: token n is sampled with fold_in(key, n); None is `jax.random.key(0)`.
    """

    inputs: Sequence[int] | np.ndarray | jax.Array
    max_new_tokens: int
    sampling: SamplingConfig = SamplingConfig()
    stop_ids: Sequence[int] = ()
    key: jax.Array | None = None


@dataclasses.dataclass(frozen=True)
class TokenDelta:
    """The next tokens of a request, at least one.

    Attributes:
      request: its number.
      ids: int32 [n].
      log_probs: float32 [n], in nats, under the model.
      sampled_log_probs: float32 [n], in nats, under the distribution sampled from: after
        temperature, top-k and top-p; 0 for greedy.
      versions: int32 [n], of the weights that generated each token.
      finish_reason: why the request ends with this delta; None if it is unfinished.
    """

    request: int
    ids: np.ndarray
    log_probs: np.ndarray
    sampled_log_probs: np.ndarray
    versions: np.ndarray
    finish_reason: FinishReason | None


@dataclasses.dataclass(eq=False)
class _Text:
    """A request in a slot."""

    number: int
    slot: int
    stops: frozenset[int]
    left: int  # tokens that have not been asked of the device yet


@dataclasses.dataclass(frozen=True)
class _Asked:
    """A dispatch to the device: its pending result, version, tokens per slot, and texts."""

    made: device.Made
    version: int
    count: int  # tokens per slot
    texts: list[_Text | None]


class Engine:
    """Slots on a device, the requests in them, and the queue of those waiting.

    Attributes:
      params: the weights, layer by layer (`transformer.by_layer`), changed by `update` only.
      version: of the weights, one more with each change.
    """

    def __init__(
        self,
        params: Any,
        *,
        cfg: DecoderConfig,
        slots: int,
        length: int,
        stops: int = 8,
        burst: int = 32,
        gap: int = 0,
        version: int = 0,
        key: jax.Array | None = None,
        how: How = HOW,
    ):
        """Empty slots.

        Args:
          params: tree of `decoder.spec(cfg)`, whose layers are copied; or of
            `transformer.by_layer`, which is used without a copy.
          cfg: the model.
          slots: number of requests decoded at once.
          length: capacity of a slot, in tokens of prompt and answer together.
          stops: maximum number of stop ids per request.
          burst: maximum number of tokens sampled per slot between looks by the host.
          gap: positions that stay free behind every prompt, for a model that learned to answer
            so far from it; windows do not count them.
          version: of these weights, for an engine that continues another's work.
          key: an example of requests' keys, if they are of another kind than jax's default.
          how: layout, implementations, and the type of activations and caches.

        Raises:
          InputError: a number is out of range.
        """
        sizes = {"slots": slots, "length": length, "stops": stops, "burst": burst}
        for name, value in sizes.items():
            check_size(f"the engine's {name}", value)
        check_size("the engine's gap", gap, least=0)
        self.params, self.version = by_layer(params), version
        self._cfg, self._how, self._burst = cfg, how, burst
        self._length, self._stops, self._gap = length, stops, gap
        self._key = _typed(jax.random.key(0) if key is None else key)
        kind = jnp.dtype(how.dtype or params["embed"]["table"].dtype)
        sizes = {"slots": slots, "length": length, "stops": stops}
        self._state = device.init(self._key, cfg=cfg, kind=kind, how=how, **sizes)
        self._texts: list[_Text | None] = [None] * slots
        self._kept = _Kept(slots, length)
        self._waiting: deque[tuple[int, Request]] = deque()
        self._asked: deque[_Asked] = deque()
        self._next = 0

    @property
    def busy(self) -> bool:
        """Whether any request is waiting or running."""
        return bool(self._waiting) or any(self._texts)

    @property
    def waiting(self) -> int:
        """Number of requests that have no slot yet."""
        return len(self._waiting)

    @property
    def free(self) -> int:
        """Number of slots without a request."""
        return self._texts.count(None)

    def submit(self, request: Request) -> int:
        """Queues a request; returns its number.

        Raises:
          InputError: it cannot be answered by this engine; says why.
        """
        check_prompt("the prompt", request.inputs, self._cfg)
        check_max_new_tokens(request.max_new_tokens)
        needed = len(request.inputs) + request.max_new_tokens
        if needed > self._length:
            raise InputError(
                f"a prompt of {len(request.inputs)} tokens and {request.max_new_tokens} new ones "
                f"need {needed}; the engine's slots have room for {self._length}"
            )
        if len(request.stop_ids) > self._stops:
            raise InputError(
                f"a request has {len(request.stop_ids)} stop ids; the engine takes {self._stops}"
            )
        if request.key is not None and _typed(request.key).dtype != self._key.dtype:
            raise InputError(
                f"a request's key is of {request.key.dtype}, the engine's are of {self._key.dtype}"
            )
        number, self._next = self._next, self._next + 1
        self._waiting.append((number, request))
        return number

    def cancel(self, number: int) -> bool:
        """Cancels a request and frees its slot at once; returns whether it was still there."""
        for waiting in self._waiting:
            if waiting[0] == number:
                self._waiting.remove(waiting)
                return True
        for slot, text in enumerate(self._texts):
            if text is not None and text.number == number:
                self._texts[slot] = None
                self._state = device.retire(self._state, np.int32(slot))
                return True
        return False

    def update(self, params: Any) -> int:
        """Replaces the weights, from the next token on, by others of the same shapes.

        Returns their version.

        Running requests keep the cache that the older weights computed for their earlier tokens.
        """
        self.params, self.version = by_layer(params), self.version + 1
        return self.version

    def advance(
        self, *, wake: bool = False, whole: bool = False, ahead: bool = True
    ) -> list[TokenDelta]:
        """Fills free slots, draws tokens, and returns those that have arrived.

        Args:
          wake: whether to return once a request ends, before the others' burst is over, as if
            another one waited: for callers that submit the next one only then.
          whole: whether to return a request's tokens all at once, when it ends; the list may be
            empty. It costs the host less, also because, while requests wait, ends are collected
            until they are a sixteenth of the slots (`TOGETHER`). It must be the same in every call.
          ahead: whether to dispatch the next burst before these tokens are read, unless a request
            waits: not for callers that may use the device themselves or change the weights
            between calls, as the dispatched burst comes first.
        """
        deltas: list[TokenDelta] = []
        while self.busy and not deltas:
            while self._waiting and None in self._texts:
                self._admit()
            wanted = wake or bool(self._waiting)
            enough = max(1, len(self._texts) // TOGETHER) if whole else 1
            stepped = self._step(enough if wanted else 0)
            # While requests wait, a slot that becomes free must be seen at once.
            keep = 1 if stepped and ahead and not wanted else 0
            asked = [self._asked.popleft() for _ in range(len(self._asked) - keep)]
            for one, made in zip(asked, jax.device_get([x.made for x in asked]), strict=True):
                deltas += self._look(one, made, whole)
            if whole:
                break  # the caller may have something to do before one ends
        return deltas

    def _admit(self) -> None:
        """The request that has waited longest, and later ones with the same prompt."""
        free = [slot for slot, text in enumerate(self._texts) if text is None]
        inputs = self._waiting[0][1].inputs
        new: list[tuple[int, Request]] = []
        while len(new) < min(len(free), SHARED) and self._waiting:
            if not _same(self._waiting[0][1].inputs, inputs):
                break
            new.append(self._waiting.popleft())
        texts = [
            _Text(number, slot, frozenset(map(int, x.stop_ids)), x.max_new_tokens - 1)
            for (number, x), slot in zip(new, free, strict=False)
        ]
        for text in texts:
            self._texts[text.slot] = text
            self._kept.clear(text.slot)
        self._state, made = device.admit(
            self.params,
            self._state,
            _padded(inputs, self._length),
            np.int32(len(inputs)),
            self._seated([x for _, x in new], free),
            gap=self._gap,
            cfg=self._cfg,
            how=self._how,
        )
        rows = [*texts, *[None] * (SHARED - len(texts))]
        self._asked.append(_Asked(made, self.version, 1, rows))

    def _seated(self, new: list[Request], free: list[int]) -> device.SlotRequests:
        """Requests in the form for the device, padded by repeating the first one."""
        filled = new + new[:1] * (SHARED - len(new))
        places = free[: len(new)] + free[:1] * (SHARED - len(new))
        return device.SlotRequests(
            slots=np.array(places, np.int32),
            count=np.int32(len(new)),
            limit=np.array([x.max_new_tokens for x in filled], np.int32),
            stops=np.stack([device.padded(x.stop_ids, self._stops) for x in filled]),
            keys=tuple(self._key if x.key is None else _typed(x.key) for x in filled),
            sampling=rows_of([x.sampling for x in filled]),
        )

    def _step(self, wake: int) -> bool:
        """Dispatches a `device.step`; returns whether more tokens may come."""
        count = min(self._burst, max((text.left for text in self._texts if text), default=0))
        if not count:
            return False
        self._state, made = device.step(
            self.params,
            self._state,
            np.int32(count),
            np.int32(wake),
            most=self._burst,
            cfg=self._cfg,
            how=self._how,
        )
        self._asked.append(_Asked(made, self.version, count, list(self._texts)))
        for text in self._texts:
            if text is not None:
                text.left -= count
        return True

    def _look(self, asked: _Asked, made: device.Made, whole: bool) -> Iterator[TokenDelta]:
        """The deltas that a result holds for requests that have not been canceled or ended."""
        known = [
            (row, text)
            for row, text in enumerate(asked.texts)
            if text is not None and self._texts[text.slot] is text
        ]
        if not known:
            return
        rows = np.array([row for row, _ in known])
        self._kept.add(np.array([text.slot for _, text in known]), rows, made, asked.version)
        counts, active = made.count[rows].tolist(), made.active[rows].tolist()
        for (_, text), count, goes_on in zip(known, counts, active, strict=True):
            text.left += asked.count - count  # the device ended early, as a slot was wanted
            if not count or (whole and goes_on):
                continue
            columns = self._kept.take(text.slot)
            end: FinishReason | None = None
            if not goes_on:
                end = "stop" if int(columns[0][-1]) in text.stops else "length"
                self._texts[text.slot] = None
            yield TokenDelta(text.number, *columns, end)


class _Kept:
    """Tokens of each slot's text that were not returned yet, with their scores and versions."""

    def __init__(self, slots: int, length: int):
        kinds = (np.int32, np.float32, np.float32, np.int32)
        self._columns = [np.zeros((slots, length), kind) for kind in kinds]
        self._count = np.zeros(slots, np.int64)

    def clear(self, slot: int) -> None:
        """Starts a new text in a slot."""
        self._count[slot] = 0

    def add(self, slots: np.ndarray, rows: np.ndarray, made: device.Made, version: int) -> None:
        """Adds the tokens generated for slots, with their version.

        Args:
          slots: int [n], where they go.
          rows: int [n], the columns of `made` that they are in.
          made: the result of a dispatch.
          version: of the weights that generated them.
        """
        counts, draws = made.count[rows], made.draws
        steps, which = np.nonzero(np.arange(counts.max())[:, None] < counts)
        to = slots[which], self._count[slots[which]] + steps
        *scored, versions = self._columns
        found = (draws.ids, draws.log_probs, draws.sampled_log_probs)
        for column, new in zip(scored, found, strict=True):
            column[to] = new[steps, rows[which]]
        versions[to] = version
        self._count[slots] += counts

    def take(self, slot: int) -> list[np.ndarray]:
        """Returns the columns stored for a slot, [count] each, and empties it."""
        count, self._count[slot] = int(self._count[slot]), 0
        return [column[slot, :count].copy() for column in self._columns]


@dataclasses.dataclass(frozen=True)
class Answer:
    """All tokens of a request; the attributes of a `TokenDelta`."""

    ids: np.ndarray
    log_probs: np.ndarray
    sampled_log_probs: np.ndarray
    versions: np.ndarray
    finish_reason: FinishReason


def answers(engine: Engine, requests: Iterable[Request]) -> Iterator[tuple[int, Answer]]:
    """Yields the answers to requests, in the order in which they end.

    Args:
      engine: without requests of others.
      requests: read as slots become free, so that there may be more than memory holds.

    Yields:
      The request's place among the requests, and its answer.

    Raises:
      InputError: see `Engine.submit`.
    """
    source, places = enumerate(iter(requests)), {}
    more = True
    while True:
        # A single waiting request shows that a slot is wanted, even if many slots are free.
        while more and engine.waiting <= engine.free:
            found = next(source, None)
            more = found is not None
            if found is not None:
                number = engine.submit(found[1])
                places[number] = found[0]
        if not engine.busy:
            return
        for delta in engine.advance(whole=True):
            yield places.pop(delta.request), join([delta])


def join(deltas: Sequence[TokenDelta]) -> Answer:
    """Joins the deltas of a request that has ended."""
    names = ("ids", "log_probs", "sampled_log_probs", "versions")
    arrays = [np.concatenate([getattr(delta, name) for delta in deltas]) for name in names]
    reason = deltas[-1].finish_reason
    assert reason is not None
    return Answer(*arrays, reason)


def check_prompt(name: str, inputs: Any, cfg: DecoderConfig) -> None:
    """Checks that a model can read a prompt.

    Args:
      name: its name in errors.
      inputs: see `Request`.
      cfg: the model.

    Raises:
      InputError: it is empty, has an id outside the vocabulary, or embeddings of another width or
        that are not finite.
    """
    if not len(inputs):
        raise InputError(f"{name} is empty")
    if np.ndim(inputs) == 2:
        if inputs.shape[1] != cfg.width:
            raise InputError(
                f"{name} has embeddings of width {inputs.shape[1]}, the model's are {cfg.width}"
            )
        if not np.isfinite(np.asarray(inputs, np.float32)).all():
            raise InputError(f"{name} has embeddings that are not finite")
        return
    wrong = [i for i in inputs if not 0 <= i < cfg.vocab]
    if wrong:
        raise InputError(f"{name} has the id {wrong[0]}, the vocabulary ends at {cfg.vocab - 1}")


def check_max_new_tokens(max_new_tokens: int) -> None:
    """Checks the maximum number of new tokens.

    Raises:
      InputError: it is below 1.
    """
    check_size("max_new_tokens", max_new_tokens)


def round_up(length: int) -> int:
    """The next of 16, 32, 64, ..., 512, then multiples of 512: so there are few programs."""
    if length > 512:
        return -(-length // 512) * 512
    return max(16, 1 << (length - 1).bit_length())


def _same(one: Any, other: Any) -> bool:
    """Whether two prompts count as one: the same object, or equal ids."""
    return one is other or (type(one) is type(other) in (list, tuple) and one == other)


def _padded(inputs: Any, most: int) -> np.ndarray | jax.Array:
    """A prompt padded with zeros to a length that others share."""
    room = min(round_up(len(inputs)), most) - len(inputs)
    if np.ndim(inputs) == 2:
        return jnp.pad(jnp.asarray(inputs), ((0, room), (0, 0)))
    return np.pad(np.asarray(inputs, np.int32), (0, room))


def _typed(key: jax.Array) -> jax.Array:
    return key if jnp.issubdtype(key.dtype, jax.dtypes.prng_key) else jax.random.wrap_key_data(key)
