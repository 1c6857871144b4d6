"""From the engine's tokens to text that can be sent: stop strings, thinking, log-probabilities."""

import dataclasses
import math
from collections.abc import Iterator, Sequence
from typing import Protocol

from pangu_jax.data.chat import partial_tag_length
from pangu_jax.data.tokenizer import StreamDecoder, Tokenizer
from pangu_jax.decode.engine import FinishReason, TokenDelta

TAIL = 16  # tokens of a prompt that may decide how the next one is written


class Stops:
    """Ends a text before the first of some strings, however the text is split into parts.

    Attributes:
      given: characters emitted.
      hit: whether a stop string was found.
    """

    def __init__(self, stops: Sequence[str]):
        """Takes strings that are not empty."""
        self._stops, self._held = stops, ""
        self.given, self.hit = 0, False

    def push(self, text: str, *, final: bool = False) -> str:
        """Returns text that is safe to emit: no stop string, and no prefix of one.

        Of several stop strings the one completed first counts; of those that end together, the
        longest.
        """
        if self.hit:
            return ""
        self._held += text
        found = [(at + len(s), at) for s in self._stops if (at := self._held.find(s)) >= 0]
        if found:
            self.hit, size = True, min(found)[1]
        else:
            keep = (
                0
                if final
                else max((partial_tag_length(self._held, s) for s in self._stops), default=0)
            )
            size = len(self._held) - keep
        ready, self._held = self._held[:size], self._held[size:]
        self.given += size
        return ready


class Decoded(Protocol):
    """The interface of decoders of tokens to texts: `data.chat.Reply`, or `Continuation`."""

    def push(self, token: int) -> Iterator[tuple[bool, str]]:
        """(whether it is thinking, text) for what the next token completes."""
        ...

    def finish(self) -> Iterator[tuple[bool, str]]:
        """Yields the text that was held back."""
        ...


class Continuation:
    """The text that tokens add to a prompt's, with spaces as within one text."""

    def __init__(self, tokenizer: Tokenizer, prompt: Sequence[int]):
        """Starts decoding after the prompt."""
        start = max(0, len(prompt) - TAIL)
        while start and prompt[start - 1] in tokenizer.open_ids:
            start -= 1
        tail = list(prompt[start:])
        self._decoder = StreamDecoder(tokenizer)
        given = sum(len(self._decoder.push(token)) for token in tail)
        self._owed = tokenizer.decode(tail)[given:]  # of the prompt, and not part of the answer

    def push(self, token: int) -> Iterator[tuple[bool, str]]:
        """(False, text) for what the next token completes."""
        yield from self._own(self._decoder.push(token))

    def finish(self) -> Iterator[tuple[bool, str]]:
        """Yields the text that was held back."""
        yield from self._own(self._decoder.finish())

    def _own(self, text: str) -> Iterator[tuple[bool, str]]:
        if text:
            pairs = enumerate(zip(text, self._owed, strict=False))
            shorter = min(len(text), len(self._owed))
            same = next((at for at, (x, y) in pairs if x != y), shorter)
            self._owed = ""
            yield False, text[same:]


@dataclasses.dataclass(eq=False)
class Token:
    """A token of an answer.

    Attributes:
      text: the text that it completes; joined, they are the thinking and the answer.
      log_prob: under the model, before temperature, top-k and top-p.
      start: characters of the answer before it.
      end: characters of the answer with it.
    """

    text: str
    log_prob: float
    start: int
    end: int


@dataclasses.dataclass
class Part:
    """The next part of an answer that may be sent; several joined are the answer so far.

    Attributes:
      text: of the answer.
      thought: of its thinking.
      tokens: those whose text is complete with this part.
      count: tokens that were drawn.
      finish_reason: why the answer ends here; None if it goes on.
    """

    text: str = ""
    thought: str = ""
    tokens: list[Token] = dataclasses.field(default_factory=list)
    count: int = 0
    finish_reason: FinishReason | None = None

    def add(self, other: "Part") -> None:
        """Joins the part that follows."""
        self.text += other.text
        self.thought += other.thought
        self.tokens += other.tokens
        self.count += other.count
        self.finish_reason = other.finish_reason


class TextStreamer:
    """The parts of one answer."""

    def __init__(self, decoded: Decoded, stops: Sequence[str]):
        """Starts an empty answer.

        Args:
          decoded: turns tokens into texts.
          stops: the answer ends before the first of these; thinking is not searched.
        """
        self._decoded, self._stops = decoded, Stops(stops)
        self._said = 0  # characters of the answer, those held back included
        self._pending: list[Token] = []

    def push(self, delta: TokenDelta) -> Part:
        """Returns the output that the engine's next tokens complete.

        Raises:
          ArithmeticError: a score of the model is not finite.
        """
        part, size = Part(), len(delta.ids)
        for number, (token, score) in enumerate(zip(delta.ids, delta.log_probs, strict=True), 1):
            if not math.isfinite(score):
                raise ArithmeticError(f"the model gives token {token} the score {score}")
            end = delta.finish_reason if number == size else None
            part.count += 1
            if end != "stop":
                self._pending.append(Token("", float(score), self._said, self._said))
                self._take(self._decoded.push(int(token)), part)
            if end is not None:
                self._take(self._decoded.finish(), part)
                part.text += self._stops.push("", final=True)
            part.finish_reason = "stop" if self._stops.hit else end
            part.tokens += self._ready(part.finish_reason is not None)
            if part.finish_reason is not None:
                break
        return part

    def _take(self, texts: Iterator[tuple[bool, str]], part: Part) -> None:
        """Adds what the newest token completes."""
        for thinking, text in texts:
            if self._stops.hit:
                return
            if self._pending:
                self._pending[-1].text += text
            if thinking:
                part.thought += text
                continue
            self._said += len(text)
            if self._pending:
                self._pending[-1].end = self._said
            part.text += self._stops.push(text)

    def _ready(self, ended: bool) -> list[Token]:
        """Tokens whose text is complete; the newest may get more until the answer ends."""
        given, ready = self._stops.given, []
        while len(self._pending) > (0 if ended else 1):
            token = self._pending[0]
            if token.end > given:
                break
            ready.append(self._pending.pop(0))
        if ended and self._pending and self._pending[0].start < given:
            token = self._pending[0]
            token.text, token.end = token.text[: given - token.end], given
            ready.append(token)
        return ready
