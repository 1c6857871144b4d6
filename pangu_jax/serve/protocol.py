"""Requests in OpenAI's format: every field is known and honored, or refused by its name.

Source: the reference of OpenAI's API, chat completions and completions.
"""

import json
from collections.abc import Mapping
from typing import Annotated, Any, Literal, TypeVar

import pydantic_core
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from pangu_jax.core.errors import InputError
from pangu_jax.decode.sampling_config import SamplingConfig


class ApiError(InputError):
    """A request that is refused or fails: what is wrong, in OpenAI's format.

    Attributes:
      status: of HTTP.
      param: the field that is wrong, or None.
      code: for programs, or None.
      headers: to be sent with it.
    """

    def __init__(
        self,
        message: object,
        param: str | None = None,
        *,
        status: int = 400,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ):
        """Of one sentence."""
        super().__init__(message)
        self.status, self.param, self.code, self.headers = status, param, code, headers

    @property
    def body(self) -> dict[str, Any]:
        """The JSON that is sent."""
        kinds = {401: "authentication_error", 429: "rate_limit_error"}
        kind = "invalid_request_error" if self.status < 500 else "server_error"
        error = {"message": str(self), "type": kinds.get(self.status, kind)}
        return {"error": {**error, "param": self.param, "code": self.code}}


# Fields that are not implemented: the JSON at which they ask for nothing, as null always does.
_ANY = {
    "frequency_penalty": ("0", "0.0"),
    "presence_penalty": ("0", "0.0"),
    "logit_bias": ("{}",),
}
_CHAT = {
    **_ANY,
    "audio": (),
    "function_call": ('"none"', '"auto"'),
    "functions": ("[]",),
    "metadata": ("{}",),
    "modalities": ('["text"]',),
    "parallel_tool_calls": ("true", "false"),
    "prediction": (),
    "reasoning_effort": (),
    "response_format": ('{"type": "text"}',),
    "service_tier": ('"auto"', '"default"'),
    "store": ("false",),
    "tool_choice": ('"none"', '"auto"'),
    "tools": ("[]",),
    "top_logprobs": ("0",),
    "verbosity": (),
    "web_search_options": (),
}
_TEXT = {**_ANY, "best_of": ("1",), "echo": ("false",), "suffix": ('""',)}
# What a client that sends an answer back may have kept of it.
_MESSAGE = {
    "annotations": ("[]",),
    "audio": (),
    "function_call": (),
    "name": (),
    "refusal": (),
    "tool_call_id": (),
    "tool_calls": ("[]",),
}


def _drop(found: Any, neutral: Mapping[str, tuple[str, ...]], where: str = "") -> Any:
    """The object without fields that ask for nothing.

    Raises:
      ApiError: something that is not implemented is asked for.
    """
    if not isinstance(found, dict):
        return found
    for name, texts in neutral.items():
        if found.get(name) is not None and json.dumps(found[name]) not in texts:
            only = " or ".join(("null", *texts))
            raise ApiError(
                f"{where}{name} {json.dumps(found[name])[:80]} is not supported; it may be left "
                f"out or be {only}",
                where + name,
            )
    return {k: v for k, v in found.items() if v is not None and k not in neutral}


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


def _content(found: Any) -> Any:
    """A text, or the joined parts of one."""
    if not isinstance(found, list):
        return found
    parts = []
    for part in found:
        known = isinstance(part, dict) and part.keys() == {"type", "text"}
        if not known or part["type"] != "text" or not isinstance(part["text"], str):
            raise ValueError('parts of a content must be {"type": "text", "text": ...}')
        parts.append(part["text"])
    return "".join(parts)


def _stops(found: Any) -> Any:
    return [found] if isinstance(found, str) else found


def _prompts(found: Any) -> Any:
    """A list of texts, or of lists of ids."""
    if isinstance(found, str):
        return [found]
    if isinstance(found, list) and found:
        if all(type(i) is int for i in found):
            return [found]
        texts = all(isinstance(prompt, str) for prompt in found)
        ids = all(isinstance(p, list) and p and all(type(i) is int for i in p) for p in found)
        if texts or ids:
            return found
    raise ValueError("must be a text, ids, or a list of texts or of lists of ids, none empty")


class Message(_Strict):
    """A turn of a dialogue; its thinking is accepted and, as in `chat`, not shown to the model."""

    role: str
    content: Annotated[str, BeforeValidator(_content)]
    reasoning_content: str = ""


class StreamOptions(_Strict):
    """What a stream holds besides the answer."""

    include_usage: bool = False
    include_obfuscation: Literal[False] = False


class RequestBase(_Strict):
    """The fields that both endpoints take."""

    model: str
    n: int = Field(1, ge=1, le=128)
    stream: bool = False
    stream_options: StreamOptions | None = None
    stop: Annotated[
        list[Annotated[str, Field(min_length=1, max_length=256)]],
        BeforeValidator(_stops),
        Field(max_length=4),
    ] = []
    max_tokens: int | None = Field(None, ge=1)
    temperature: float = Field(1.0, ge=0)
    top_p: float = Field(1.0, gt=0, le=1)
    top_k: int = Field(0, ge=0)
    seed: int | None = Field(None, ge=-(2**63), lt=2**63)
    user: str = ""  # names who asks; decides nothing

    @property
    def sampling(self) -> SamplingConfig:
        """How tokens are drawn."""
        return SamplingConfig(self.temperature, self.top_k, self.top_p)


class ChatCompletionRequest(RequestBase):
    """The body of /v1/chat/completions."""

    messages: list[Message]
    max_completion_tokens: int | None = Field(None, ge=1)
    logprobs: bool = False

    @property
    def limit(self) -> int | None:
        """Maximum number of tokens of an answer; None is as many as there is room for."""
        return self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens


class CompletionRequest(RequestBase):
    """The body of /v1/completions."""

    prompt: Annotated[list[str | list[int]], BeforeValidator(_prompts)]
    logprobs: int | None = Field(None, ge=0, le=1)


def parse_chat_completion(body: bytes) -> ChatCompletionRequest:
    """Reads the body of a request to /v1/chat/completions.

    Raises:
      ApiError: says which field cannot be honored.
    """
    found = _object(body, _CHAT)
    if isinstance(found.get("messages"), list):
        found["messages"] = [
            _drop(message, _MESSAGE, f"messages.{number}.")
            for number, message in enumerate(found["messages"])
        ]
    request = _checked(ChatCompletionRequest, found)
    if len({request.max_tokens, request.max_completion_tokens} - {None}) > 1:
        raise ApiError(
            f"max_tokens {request.max_tokens} and max_completion_tokens "
            f"{request.max_completion_tokens} are two names for one number; give one",
            "max_tokens",
        )
    return request


def parse_completion(body: bytes) -> CompletionRequest:
    """Reads the body of a request to /v1/completions.

    Raises:
      ApiError: says which field cannot be honored.
    """
    request = _checked(CompletionRequest, _object(body, _TEXT))
    if request.logprobs and request.temperature:
        raise ApiError(
            "logprobs 1 asks for the likeliest token beside the one drawn, which is known where "
            "they are the same: with temperature 0; logprobs may be 0",
            "logprobs",
        )
    return request


def _object(body: bytes, neutral: Mapping[str, tuple[str, ...]]) -> dict[str, Any]:
    try:
        found = pydantic_core.from_json(body, allow_inf_nan=False)
    except ValueError as error:
        raise ApiError(f"the body is not JSON: {error}") from error
    if not isinstance(found, dict):
        raise ApiError("the body must be a JSON object")
    return _drop(found, neutral)


_Kind = TypeVar("_Kind", bound=RequestBase)


def _checked(kind: type[_Kind], found: dict[str, Any]) -> _Kind:
    try:
        request = kind.model_validate(found)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(map(str, first["loc"]))
        if first["type"] == "extra_forbidden":
            raise ApiError(f"there is no field {where}", where) from error
        if first["type"] == "missing":
            raise ApiError(f"{where} is missing", where) from error
        message = first["msg"].removeprefix("Value error, ").replace("Input should", "it should")
        raise ApiError(f"{where}: {message}, got {first['input']!r:.80}", where) from error
    if request.stream_options is not None and not request.stream:
        raise ApiError("stream_options is for answers with stream true", "stream_options")
    return request
