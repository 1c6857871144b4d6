"""Responses in OpenAI's format, whole and in chunks."""

import dataclasses
import time
import uuid
from typing import Any

from pangu_jax.serve.detokenizer import Part, Token


@dataclasses.dataclass(frozen=True)
class ResponseBuilder:
    """Builds a response, whole or in chunks, from the fields that all its parts share.

    Attributes:
      model: its served name.
      chat: the form of chat completions; else of completions.
      scores: whether log-probabilities are given.
      best: whether to name the likeliest token too, which is the one drawn.
      id: of the response.
      created: seconds since 1970.
    """

    model: str
    chat: bool
    scores: bool
    best: bool = False
    id: str = dataclasses.field(default_factory=lambda: uuid.uuid4().hex)
    created: int = dataclasses.field(default_factory=lambda: int(time.time()))

    def whole(self, parts: list[Part], usage: dict[str, int]) -> dict[str, Any]:
        """The response to a request without streaming."""
        choices = []
        for index, part in enumerate(parts):
            if self.chat:
                message = {"role": "assistant", "content": part.text, "refusal": None}
                if part.thought:
                    message["reasoning_content"] = part.thought
                said: dict[str, Any] = {"message": message}
            else:
                said = {"text": part.text}
            choices.append(self._choice(index, said, part))
        return {**self._head(""), "choices": choices, "usage": usage}

    def begin(self, index: int) -> dict[str, Any]:
        """The first chunk of a chat's choice."""
        return self._chunk(index, {"delta": {"role": "assistant", "content": ""}}, Part())

    def chunk(self, index: int, part: Part) -> dict[str, Any]:
        """The next chunk of a choice."""
        if not self.chat:
            return self._chunk(index, {"text": part.text}, part)
        delta = {"content": part.text, "reasoning_content": part.thought}
        return self._chunk(index, {"delta": {k: v for k, v in delta.items() if v}}, part)

    def last(self, usage: dict[str, int]) -> dict[str, Any]:
        """The final chunk, with the usage."""
        return {**self._head(".chunk"), "choices": [], "usage": usage}

    def _head(self, chunk: str) -> dict[str, Any]:
        kind = f"chat.completion{chunk}" if self.chat else "text_completion"
        name = f"{'chatcmpl' if self.chat else 'cmpl'}-{self.id}"
        head = {"id": name, "object": kind, "created": self.created, "model": self.model}
        return {**head, "system_fingerprint": None}

    def _chunk(self, index: int, said: dict[str, Any], part: Part) -> dict[str, Any]:
        return {**self._head(".chunk"), "choices": [self._choice(index, said, part)]}

    def _choice(self, index: int, said: dict[str, Any], part: Part) -> dict[str, Any]:
        scores = None
        if self.scores:
            scores = _chat_scores(part.tokens) if self.chat else self._text_scores(part.tokens)
        return {"index": index, **said, "logprobs": scores, "finish_reason": part.finish_reason}

    def _text_scores(self, tokens: list[Token]) -> dict[str, Any]:
        best = [{token.text: token.log_prob} for token in tokens] if self.best else None
        return {
            "tokens": [token.text for token in tokens],
            "token_logprobs": [token.log_prob for token in tokens],
            "top_logprobs": best,
            "text_offset": [token.start for token in tokens],
        }


def _chat_scores(tokens: list[Token]) -> dict[str, Any]:
    content = [
        {
            "token": token.text,
            "logprob": token.log_prob,
            "bytes": list(token.text.encode()),
            "top_logprobs": [],
        }
        for token in tokens
    ]
    return {"content": content, "refusal": None}
