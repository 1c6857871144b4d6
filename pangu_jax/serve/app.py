"""The routes: requests become jobs of the driver, whose output becomes responses."""

import asyncio
import contextlib
import dataclasses
import hmac
import json
import secrets
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from functools import partial
from typing import Any, TypeVar

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from pangu_jax.core.errors import InputError
from pangu_jax.data.chat import Reply, Template, opens_thinking, prompt_ids, render, stop_ids
from pangu_jax.data.tokenizer import Tokenizer, check_vocabulary, text_prompt
from pangu_jax.decode.engine import TokenDelta
from pangu_jax.serve.detokenizer import Continuation, Decoded, Part, TextStreamer
from pangu_jax.serve.driver import SEEDS, Busy, Driver, Ended, Job
from pangu_jax.serve.protocol import (
    ApiError,
    ChatCompletionRequest,
    CompletionRequest,
    RequestBase,
    parse_chat_completion,
    parse_completion,
)
from pangu_jax.serve.response import ResponseBuilder

LARGEST = 2**22  # bytes of a body


@dataclasses.dataclass(frozen=True)
class Served:
    """The model behind the endpoints, with its tokenizer and template.

    Attributes:
      driver: started.
      tokenizer: of the model.
      template: the chat template, or a sentence that says why it is unknown.
      name: of the model.
      key: API key that clients must send; None admits everyone.
    """

    driver: Driver
    tokenizer: Tokenizer
    template: Template | str
    name: str
    key: str | None = None


@dataclasses.dataclass(frozen=True)
class _Prompt:
    """The ids of a prompt, the stops of the answer, and the decoder of its tokens."""

    ids: list[int]
    stop_ids: tuple[int, ...]
    decoded: Callable[[], Decoded]


def build(served: Served) -> Starlette:
    """The ASGI application over a running engine."""
    endpoints = _Endpoints(served)
    routes = [
        Route("/health", endpoints.health),
        Route("/v1/models", endpoints.models),
        Route("/v1/models/{name:path}", endpoints.model),
        Route("/v1/chat/completions", endpoints.chat, methods=["POST"]),
        Route("/v1/completions", endpoints.text, methods=["POST"]),
    ]
    handlers = {
        ApiError: _refuse,
        HTTPException: _no_route,
        ClientDisconnect: _unheard,
        Exception: _fault,
    }
    return Starlette(routes=routes, exception_handlers=handlers)


class _Endpoints:
    def __init__(self, served: Served):
        self._served, self._driver, self._tokenizer = served, served.driver, served.tokenizer
        self._writing = threading.Lock()  # a checkpoint's template is one process

    async def health(self, request: Request) -> Response:
        driver = self._driver
        state = {"slots": driver.slots, "free": driver.free, "waiting": driver.waiting}
        status = "ok" if driver.alive else "failed" if driver.failure else "ending"
        return JSONResponse({"status": status, **state}, 200 if driver.alive else 503)

    async def models(self, request: Request) -> Response:
        self._admit(request)
        return JSONResponse({"object": "list", "data": [self._described()]})

    async def model(self, request: Request) -> Response:
        self._admit(request)
        self._check_name(request.path_params["name"])
        return JSONResponse(self._described())

    async def chat(self, raw_request: Request) -> Response:
        request = parse_chat_completion(await self._body(raw_request))
        self._check_name(request.model)
        form = ResponseBuilder(self._served.name, chat=True, scores=request.logprobs)
        prompt = await asyncio.to_thread(self._dialogue, request)
        return await self._answer(raw_request, request, form, [prompt], request.limit)

    async def text(self, raw_request: Request) -> Response:
        request = parse_completion(await self._body(raw_request))
        self._check_name(request.model)
        scores = request.logprobs is not None
        form = ResponseBuilder(
            self._served.name, chat=False, scores=scores, best=bool(request.logprobs)
        )
        if len(request.prompt) > self._driver.most:
            raise self._too_many(len(request.prompt))
        prompts = await asyncio.to_thread(self._prompts, request)
        room = min(self._driver.length - len(prompt.ids) for prompt in prompts)
        limit = max(1, min(16, room)) if request.max_tokens is None else request.max_tokens
        return await self._answer(raw_request, request, form, prompts, limit)

    def _described(self) -> dict[str, Any]:
        return {
            "id": self._served.name,
            "object": "model",
            "created": 0,
            "owned_by": "pangu-jax",
            "max_model_len": self._driver.length,
        }

    def _admit(self, request: Request) -> None:
        """Raises ApiError unless the request carries the key."""
        if self._served.key is None:
            return
        shown = request.headers.get("authorization", "").encode("latin-1")
        if not hmac.compare_digest(shown, b"Bearer " + self._served.key.encode()):
            raise ApiError(
                "the header Authorization must be Bearer and the server's key",
                status=401,
                code="invalid_api_key",
                headers={"WWW-Authenticate": "Bearer"},
            )

    def _check_name(self, name: str) -> None:
        if name != self._served.name:
            raise ApiError(
                f"there is no model {name!r} here; the one that there is is {self._served.name!r}",
                "model",
                status=404,
                code="model_not_found",
            )

    async def _body(self, request: Request) -> bytes:
        self._admit(request)
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind != "application/json":  # which no page of another site may send unasked
            raise ApiError("the header Content-Type must be application/json", status=415)
        body = bytearray()
        async for part in request.stream():
            body += part
            if len(body) > LARGEST:
                raise ApiError(f"the body has more than {LARGEST:,} bytes", status=413)
        return bytes(body)

    def _dialogue(self, request: ChatCompletionRequest) -> _Prompt:
        template = self._served.template
        if isinstance(template, str):
            raise ApiError(template, "messages")
        messages = [{"role": m.role, "content": m.content} for m in request.messages]
        for message in messages:
            if message["role"] == "developer":  # OpenAI's later name
                message["role"] = "system"
        with _blaming("messages"):
            with self._writing:
                text = render(messages, template)
            ids = prompt_ids(text, self._tokenizer, template)
            check_vocabulary(ids, self._tokenizer, self._driver.cfg.vocab)
        decoded = partial(
            Reply,
            self._tokenizer,
            template.thinking,
            starts_in_thinking=opens_thinking(text, template),
        )
        return _Prompt(ids, stop_ids(self._tokenizer, template), decoded)

    def _prompts(self, request: CompletionRequest) -> list[_Prompt]:
        return [self._prompt(prompt) for prompt in request.prompt]

    def _prompt(self, given: str | list[int]) -> _Prompt:
        tokenizer = self._tokenizer
        with _blaming("prompt"):
            if isinstance(given, str):
                ids = text_prompt(given, tokenizer)
                check_vocabulary(ids, tokenizer, self._driver.cfg.vocab)
            else:
                ids = given
                self._driver.check("prompt", ids)
        return _Prompt(ids, tokenizer.eos_ids, lambda: Continuation(tokenizer, ids))

    async def _answer(
        self,
        raw_request: Request,
        request: RequestBase,
        form: ResponseBuilder,
        prompts: list[_Prompt],
        limit: int | None,
    ) -> Response:
        limits = [self._limit(prompt.ids, limit) for prompt in prompts]
        if len(prompts) * request.n > self._driver.most:
            raise self._too_many(len(prompts) * request.n)
        answering = _Answering(self._driver, request, prompts, limits)
        if request.stream:
            return _Stream(answering, form, request)
        with contextlib.closing(answering):
            whole = await _while_there(raw_request.receive, answering.whole())
        if whole is None:
            raise ClientDisconnect
        return JSONResponse(form.whole(whole, answering.usage))

    def _limit(self, ids: list[int], limit: int | None) -> int:
        """Most new tokens after a prompt."""
        most = self._driver.length
        needed = len(ids) + (1 if limit is None else limit)
        if needed > most:
            asked = "an answer" if limit is None else f"an answer of up to {limit} tokens"
            raise ApiError(
                f"a prompt of {len(ids)} tokens and {asked} need room for {needed}; this server "
                f"has room for {most} tokens of both",
                "max_tokens" if len(ids) < most else None,
                code="context_length_exceeded",
            )
        return most - len(ids) if limit is None else limit

    def _too_many(self, answers: int) -> ApiError:
        return ApiError(
            f"{answers} answers are asked for; this server takes {self._driver.most} at once", "n"
        )


class _Answering:
    """The answers to one request, as they come; to be made in the event loop's thread."""

    def __init__(
        self,
        driver: Driver,
        request: RequestBase,
        prompts: Sequence[_Prompt],
        limits: Sequence[int],
    ):
        """Submits the jobs.

        Raises:
          ApiError: the queue is full, or the driver has ended.
        """
        self._driver, self._loop = driver, asyncio.get_running_loop()
        self._deltas: asyncio.Queue[tuple[int, TokenDelta | Exception]] = asyncio.Queue()
        seed = secrets.randbelow(SEEDS) if request.seed is None else request.seed % SEEDS
        each = [
            (p, limit) for p, limit in zip(prompts, limits, strict=True) for _ in range(request.n)
        ]
        self._writers = [TextStreamer(prompt.decoded(), request.stop) for prompt, _ in each]
        self._jobs: dict[int, Job] = {
            index: Job(
                prompt.ids,
                limit,
                request.sampling,
                prompt.stop_ids,
                seed,
                index,
                self._giver(index),
            )
            for index, (prompt, limit) in enumerate(each)
        }
        self._read, self._made = sum(len(prompt.ids) for prompt in prompts), 0
        try:
            driver.submit(list(self._jobs.values()))
        except Busy as error:
            raise ApiError(
                f"{driver.most} answers are being made or wait already; try again",
                status=429,
                code="queue_full",
                headers={"Retry-After": "1"},
            ) from error
        except Ended as error:
            raise _refusal(error) from error

    @property
    def size(self) -> int:
        """Number of answers."""
        return len(self._writers)

    @property
    def usage(self) -> dict[str, int]:
        """Tokens read and drawn so far."""
        read, made = self._read, self._made
        return {"prompt_tokens": read, "completion_tokens": made, "total_tokens": read + made}

    async def parts(self) -> AsyncIterator[tuple[int, Part]]:
        """(which answer, what comes next in it), until all have ended.

        Raises:
          ApiError: no more will come.
        """
        while self._jobs:
            index, delta = await self._deltas.get()
            if index not in self._jobs:
                continue  # what came after a stop string
            if isinstance(delta, Exception):
                raise _refusal(delta)
            try:
                part = self._writers[index].push(delta)
            except ArithmeticError as error:
                raise _refusal(error) from error
            self._made += part.count
            if part.finish_reason is not None:
                job = self._jobs.pop(index)
                if delta.finish_reason is None:
                    self._driver.cancel([job])
            yield index, part

    async def whole(self) -> list[Part]:
        """All answers.

        Raises:
          ApiError: see `parts`.
        """
        answers = [Part() for _ in range(self.size)]
        async for index, part in self.parts():
            answers[index].add(part)
        return answers

    def close(self) -> None:
        """Cancels the jobs that have not ended."""
        if self._jobs:
            self._driver.cancel(list(self._jobs.values()))
            self._jobs.clear()

    def _giver(self, index: int) -> Callable[[TokenDelta | Exception], None]:
        def give(delta: TokenDelta | Exception) -> None:
            with contextlib.suppress(RuntimeError):  # the loop is closed, so nobody listens
                self._loop.call_soon_threadsafe(self._deltas.put_nowait, (index, delta))

        return give


class _Stream(Response):
    """Server-sent events: a chunk as soon as there is something to say."""

    media_type = "text/event-stream"

    def __init__(self, answering: _Answering, form: ResponseBuilder, request: RequestBase):
        super().__init__(headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"})
        del self.headers["content-length"]
        self._answering, self._form = answering, form
        self._usage = request.stream_options is not None and request.stream_options.include_usage

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        with contextlib.closing(self._answering):
            await _while_there(receive, self._send(send))

    async def _send(self, send: Send) -> None:
        head = {"status": 200, "headers": self.raw_headers}
        await send({"type": "http.response.start", **head})
        try:
            async for event in self._events():
                await send(_event(event))
            await send(_event("[DONE]"))
        except ApiError as error:
            await send(_event(error.body))
        await send({"type": "http.response.body", "body": b""})

    async def _events(self) -> AsyncIterator[dict[str, Any]]:
        form, answering = self._form, self._answering
        more = {"usage": None} if self._usage else {}
        if form.chat:
            for index in range(answering.size):
                yield {**form.begin(index), **more}
        async for index, part in answering.parts():
            if part.text or part.thought or part.tokens or part.finish_reason:
                yield {**form.chunk(index, part), **more}
        if self._usage:
            yield form.last(answering.usage)


def _event(what: dict[str, Any] | str) -> dict[str, Any]:
    text = what if isinstance(what, str) else json.dumps(what, ensure_ascii=False, allow_nan=False)
    body = f"data: {text}\n\n".encode()
    return {"type": "http.response.body", "body": body, "more_body": True}


_Result = TypeVar("_Result")


async def _while_there(receive: Receive, work: Awaitable[_Result]) -> _Result | None:
    """The result of the work; None if the client disconnects first, which cancels the work."""
    tasks = asyncio.ensure_future(work), asyncio.ensure_future(_gone(receive))
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    return None if tasks[0].cancelled() else tasks[0].result()


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


@contextlib.contextmanager
def _blaming(param: str):
    try:
        yield
    except InputError as error:
        raise ApiError(error, param) from error


def _refusal(error: Exception) -> ApiError:
    """The error for an answer that was started and will not come."""
    if isinstance(error, InputError):
        return ApiError(error)
    failed = not isinstance(error, Ended) or error.failed
    return ApiError(error, status=500 if failed else 503)


async def _refuse(request: Request, error: ApiError) -> Response:
    return JSONResponse(error.body, error.status, headers=error.headers)


async def _no_route(request: Request, error: HTTPException) -> Response:
    path = request.url.path
    said = {404: f"there is no {path}", 405: f"{path} does not take {request.method}"}
    status = error.status_code
    refusal = ApiError(said.get(status, error.detail), status=status, headers=error.headers)
    return await _refuse(request, refusal)


async def _unheard(request: Request, error: Exception) -> Response:
    return Response(status_code=499)  # nobody is there to read it


async def _fault(request: Request, error: Exception) -> Response:
    return await _refuse(request, ApiError("the server has a fault; see its log", status=500))
