"""The endpoint as a client meets it: OpenAI's own, over a server with a tiny model."""

import asyncio
import functools
import json
import socket
import threading
import time

import httpx
import jax
import numpy as np
import pytest

from pangu_jax.cli import serve as command
from pangu_jax.cli.main import main
from pangu_jax.data.chat import TEMPLATES
from pangu_jax.data.tokenizer import ByteTokenizer
from pangu_jax.decode.engine import Engine, Request, answers
from pangu_jax.decode.generate import generate
from pangu_jax.decode.sample import adjusted_logits
from pangu_jax.decode.sampling_config import SamplingConfig
from pangu_jax.models import decoder
from pangu_jax.serve import driver as drivers
from pangu_jax.serve.app import LARGEST, Served, build
from pangu_jax.serve.driver import Driver

BYTES = ByteTokenizer()
HELLO = [{"role": "user", "content": "hello"}]
LONG = {"model": "tiny", "prompt": "on", "max_tokens": 190, "seed": 1, "temperature": 0}


def ask(served, path, body, **headers):
    """The response to one request, without a network."""

    async def call():
        transport = httpx.ASGITransport(build(served), raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://here") as client:
            content = body if isinstance(body, bytes) else json.dumps(body).encode()
            kind = {"Content-Type": "application/json", **headers}
            return await client.post(path, content=content, headers=kind)

    return asyncio.run(call())


def drawn(here, prompts, max_new_tokens, seed, sampling=SamplingConfig(1.0)):
    """What an engine of one's own draws for the rows of a seed: their ids."""
    engine = Engine(here.params, cfg=here.cfg, how=here.how, **here.sizes)
    keys = [jax.random.fold_in(jax.random.key(seed), row) for row in range(len(prompts))]
    pairs = zip(prompts, keys, strict=True)
    requests = [Request(ids, max_new_tokens, sampling, (256,), key) for ids, key in pairs]
    return [answer.ids.tolist() for _, answer in sorted(answers(engine, requests))]


@functools.partial(jax.jit, static_argnames="cfg")
def full(params, ids, *, cfg):
    return decoder.logits(params, decoder.apply(params, ids, cfg=cfg).hidden, cfg=cfg)


def test_an_answer_is_what_generate_gives_streamed_or_whole_and_scores_are_the_models(here):
    prompts, key = ["to be", "or not"], jax.random.key(5)
    ids = [[256, *prompt.encode()] for prompt in prompts]
    way = {"sampling": SamplingConfig(1.0), "stop_ids": (256,), "key": key}
    first, second = generate(here.params, ids, cfg=here.cfg, max_new_tokens=40, **way).rows()
    want = [BYTES.decode(first), BYTES.decode(second)]
    options = {"model": "tiny", "max_tokens": 40, "seed": 5, "logprobs": 0}
    whole = here.client.completions.create(prompt=prompts, **options)
    assert [choice.text for choice in whole.choices] == want
    for choice, row in zip(whole.choices, (first, second), strict=True):
        assert choice.finish_reason == ("stop" if row[-1] == 256 else "length")
        assert "".join(choice.logprobs.tokens) == choice.text
        assert choice.logprobs.text_offset[0] == 0
    assert whole.usage.completion_tokens == len(first) + len(second)
    assert whole.usage.prompt_tokens == 13
    scores = full(here.params, np.array([[256, *b"to be", *first]]), cfg=here.cfg)[0, 5:-1]
    log_probs = jax.nn.log_softmax(scores)[np.arange(len(first)), first]
    found = whole.choices[0].logprobs.token_logprobs
    np.testing.assert_allclose(found, log_probs[: len(found)], atol=1e-4)
    assert len(found) == len(first) - (first[-1] == 256)

    more = {"stream_options": {"include_usage": True}}
    chunks = list(here.client.completions.create(prompt=prompts, stream=True, **options, **more))
    assert chunks[-1].usage == whole.usage and not chunks[-1].choices
    assert all(chunk.usage is None for chunk in chunks[:-1])
    for index, choice in enumerate(whole.choices):
        parts = [p.choices[0] for p in chunks[:-1] if p.choices[0].index == index]
        assert "".join(part.text for part in parts) == choice.text
        assert [p.finish_reason for p in parts if p.finish_reason] == [choice.finish_reason]
        scores = [score for p in parts for score in p.logprobs.token_logprobs]
        assert scores == choice.logprobs.token_logprobs
        assert len(parts) > 5


def test_a_chat_is_the_templates_prompt_and_its_answers_have_scores(here):
    prompt = "<|im_start|>user\nhello<|im_end|>\n<|im_start|>assistant\n"
    rows = drawn(here, [[256, *prompt.encode()]] * 2, 8, seed=9)
    options = {"model": "tiny", "messages": HELLO, "seed": 9, "n": 2}
    options |= {"max_completion_tokens": 8, "logprobs": True}
    whole = here.client.chat.completions.create(**options)
    assert [c.message.content for c in whole.choices] == [BYTES.decode(row) for row in rows]
    assert {c.message.role for c in whole.choices} == {"assistant"}
    assert whole.usage.prompt_tokens == 1 + len(prompt)
    chunks = list(here.client.chat.completions.create(stream=True, **options))
    for index, choice in enumerate(whole.choices):
        parts = [p.choices[0] for p in chunks if p.choices[0].index == index]
        assert parts[0].delta.role == "assistant"
        assert "".join(p.delta.content or "" for p in parts) == choice.message.content
        scores = [t for p in parts for t in p.logprobs.content]
        assert scores == choice.logprobs.content
        assert "".join(token.token for token in scores) == choice.message.content
        assert b"".join(bytes(t.bytes) for t in scores).decode() == choice.message.content
        assert parts[-1].finish_reason == choice.finish_reason
    # An answer goes back as it came, with parts of contents and OpenAI's later name of a role.
    said = [{"role": "developer", "content": [{"type": "text", "text": "Be brief."}]}, *HELLO]
    said += [whole.choices[0].message.model_dump(), *HELLO]
    there = here.client.chat.completions.create(model="tiny", messages=said, max_tokens=1)
    system = "<|im_start|>system\nBe brief.<|im_end|>\n"
    middle = len(whole.choices[0].message.content.encode()) + len("<|im_end|>\n")
    assert there.usage.prompt_tokens == 1 + len(system) + len(prompt) * 2 + middle


@pytest.mark.parametrize("temperature, top_k, top_p", [(0, 0, 1), (0.5, 4, 1), (3, 0, 0.8)])
def test_scores_are_the_models_whatever_the_sampling(here, temperature, top_k, top_p):
    """As vLLM's raw_logprobs: before temperature, top-k and top-p."""
    sampling = SamplingConfig(temperature, top_k, top_p)
    options = {"model": "tiny", "max_tokens": 8, "seed": 3, "temperature": temperature}
    options |= {"top_p": top_p, "extra_body": {"top_k": top_k}}
    text = here.client.completions.create(prompt="on", logprobs=0, **options)
    chat = here.client.chat.completions.create(messages=HELLO, logprobs=True, **options)
    said = "<|im_start|>user\nhello<|im_end|>\n<|im_start|>assistant\n"
    told = {
        "on": text.choices[0].logprobs.token_logprobs,
        said: [token.logprob for token in chat.choices[0].logprobs.content],
    }
    for prompt, found in told.items():
        ids = [256, *prompt.encode()]
        [row] = drawn(here, [ids], 8, 3, sampling)
        row = np.array(row)[: len(found)]  # without the end of text, which is not told
        logits = full(here.params, np.array([[*ids, *row]]), cfg=here.cfg)[0, len(ids) - 1 : -1]
        at = np.arange(len(row)), row
        np.testing.assert_allclose(found, jax.nn.log_softmax(logits)[at], atol=1e-4)
        used = np.asarray(jax.nn.log_softmax(adjusted_logits(logits, sampling))[at])
        assert np.abs(found - used).max() > 1e-2  # the two are told apart


def test_an_answer_ends_before_a_stop_string(here):
    [row] = drawn(here, [[256, *b"on"]], 40, seed=1)
    text = BYTES.decode(row)
    at = next(n for n in range(5, 40) if text.find(text[n : n + 3]) == n)
    stop = text[at : at + 3]
    options = {"model": "tiny", "prompt": "on", "max_tokens": 40, "seed": 1}
    for stops in (stop, ["never", stop]):
        found = here.client.completions.create(stop=stops, **options)
        assert (found.choices[0].text, found.choices[0].finish_reason) == (text[:at], "stop")
    chunks = list(here.client.completions.create(stop=stop, stream=True, **options))
    assert "".join(p.choices[0].text for p in chunks) == text[:at]
    assert found.usage.completion_tokens < 40


def test_defaults_are_openais(here):
    found = here.client.completions.create(model="tiny", prompt="on", temperature=0)
    assert found.usage.completion_tokens <= 16
    seeds = [
        here.client.completions.create(model="tiny", prompt="on").choices[0].text for _ in "ab"
    ]
    assert seeds[0] != seeds[1]
    best = here.client.completions.create(model="tiny", prompt="on", temperature=0, logprobs=1)
    scores = best.choices[0].logprobs
    assert [max(top.values()) for top in scores.top_logprobs] == scores.token_logprobs
    left = here.sizes["length"] - 3
    ids = here.client.completions.create(model="tiny", prompt=[256, *b"on"], max_tokens=left)
    assert ids.usage.prompt_tokens == 3
    chat = here.client.chat.completions.create(model="tiny", messages=HELLO, seed=9)
    assert (
        chat.usage.total_tokens == here.sizes["length"] or chat.choices[0].finish_reason == "stop"
    )
    empty = here.client.completions.create(model="tiny", prompt="", max_tokens=1)
    assert empty.usage.prompt_tokens == 1
    big = {"temperature": 1e308, "extra_body": {"top_k": 2**70}, "seed": -(2**63)}
    assert here.client.completions.create(model="tiny", prompt="on", **big).choices


def test_models_and_health(here, openai):
    assert [model.id for model in here.client.models.list()] == ["tiny"]
    assert here.client.models.retrieve("tiny").id == "tiny"
    with pytest.raises(openai.NotFoundError, match="no model 'large'"):
        here.client.models.retrieve("large")
    found = httpx.get(here.url.replace("/v1", "/health"))
    assert found.json() == {"status": "ok", "slots": 4, "free": 4, "waiting": 0}


CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
SURROGATE = b'{"model": "tiny", "prompt": "\\ud800"}'
WRONG = [
    (TEXT, b"{", 400, None, "not JSON"),
    (TEXT, b"[" * 5000, 400, None, "not JSON"),
    (TEXT, b"\xff", 400, None, "not JSON"),
    (TEXT, SURROGATE, 400, None, "not JSON"),
    (TEXT, [1], 400, None, "JSON object"),
    (TEXT, b" " * (LARGEST + 1), 413, None, "bytes"),
    (TEXT, {"prompt": ...}, 400, "prompt", "missing"),
    (TEXT, {"model": ...}, 400, "model", "missing"),
    (TEXT, {"model": "large"}, 404, "model", "no model 'large'"),
    (TEXT, {"model": 3}, 400, "model", "string"),
    (TEXT, {"prompt": []}, 400, "prompt", "must be a text"),
    (TEXT, {"prompt": ["a", 3]}, 400, "prompt", "must be a text"),
    (TEXT, {"prompt": [[]]}, 400, "prompt", "none empty"),
    (TEXT, {"prompt": [True]}, 400, "prompt", "must be a text"),
    (TEXT, {"prompt": [264]}, 400, "prompt", "id 264"),
    (TEXT, {"prompt": [[5], [-1]]}, 400, "prompt", "id -1"),
    (TEXT, {"prompt": [2**80]}, 400, "prompt", "vocabulary ends at 263"),
    (TEXT, {"prompt": "x" * 199}, 400, None, "prompt of 200 tokens"),
    (TEXT, {"max_tokens": 198}, 400, "max_tokens", "need room for 201"),
    (TEXT, {"max_tokens": 2**80}, 400, "max_tokens", "need room"),
    (TEXT, {"max_tokens": 0}, 400, "max_tokens", "greater than"),
    (TEXT, {"max_tokens": "9"}, 400, "max_tokens", "integer"),
    (TEXT, {"n": 0}, 400, "n", "greater than"),
    (TEXT, {"n": 65}, 400, "n", "65 answers"),
    (TEXT, {"prompt": ["a"] * 65}, 400, "n", "65 answers"),
    (TEXT, {"temperature": -1}, 400, "temperature", "greater than"),
    (TEXT, {"temperature": True}, 400, "temperature", "number"),
    (TEXT, {"temperature": 10**400}, 400, "temperature", "number"),
    (TEXT, b'{"model": "tiny", "prompt": "a", "temperature": NaN}', 400, None, "not JSON"),
    (TEXT, {"top_p": 0}, 400, "top_p", "greater than"),
    (TEXT, {"top_k": -1}, 400, "top_k", "greater than"),
    (TEXT, {"seed": 2**63}, 400, "seed", "less than"),
    (TEXT, {"stop": ["a"] * 5}, 400, "stop", "at most 4"),
    (TEXT, {"stop": [""]}, 400, "stop.0", "at least 1"),
    (TEXT, {"stop": 3}, 400, "stop", "list"),
    (TEXT, {"stream": "yes"}, 400, "stream", "boolean"),
    (TEXT, {"stream_options": {}}, 400, "stream_options", "stream true"),
    (TEXT, {"stream": True, "stream_options": {"x": 1}}, 400, "stream_options.x", "no field"),
    (TEXT, {"logprobs": 2}, 400, "logprobs", "less than"),
    (TEXT, {"logprobs": 1}, 400, "logprobs", "temperature 0"),
    (TEXT, {"echo": True}, 400, "echo", "echo true is not supported"),
    (TEXT, {"suffix": "x"}, 400, "suffix", "not supported"),
    (TEXT, {"best_of": 2}, 400, "best_of", "not supported"),
    (TEXT, {"logit_bias": {"5": 1}}, 400, "logit_bias", "not supported"),
    (TEXT, {"messages": HELLO}, 400, "messages", "no field messages"),
    (CHAT, {"messages": []}, 400, "messages", "at least one message"),
    (CHAT, {"messages": "hello"}, 400, "messages", "list"),
    (CHAT, {"messages": ["hello"]}, 400, "messages.0", "Message"),
    (CHAT, {"messages": [{"role": "user"}]}, 400, "messages.0.content", "missing"),
    (CHAT, {"messages": [{"role": "king", "content": ""}]}, 400, "messages", "role of system"),
    (
        CHAT,
        {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]},
        400,
        "messages.0.content",
        "parts of a content",
    ),
    (CHAT, {"messages": [{**HELLO[0], "name": "a"}]}, 400, "messages.0.name", "not supported"),
    (CHAT, {"messages": [{"role": "user", "content": "x" * 200}]}, 400, None, "need room"),
    (CHAT, {"max_tokens": 3, "max_completion_tokens": 4}, 400, "max_tokens", "one number"),
    (CHAT, {"presence_penalty": 0.5}, 400, "presence_penalty", "may be left out"),
    (CHAT, {"presence_penalty": False}, 400, "presence_penalty", "not supported"),
    (CHAT, {"tools": [{}]}, 400, "tools", "not supported"),
    (CHAT, {"response_format": {"type": "json_object"}}, 400, "response_format", "not supported"),
    (CHAT, {"logprobs": True, "top_logprobs": 2}, 400, "top_logprobs", "not supported"),
    (CHAT, {"logprobs": 1}, 400, "logprobs", "boolean"),
    (CHAT, {"color": "red"}, 400, "color", "no field color"),
]


def filled(path, body):
    if not isinstance(body, dict):
        return body
    given = {"messages": HELLO} if path == CHAT else {"prompt": "on"}
    return {k: v for k, v in {"model": "tiny", **given, **body}.items() if v is not ...}


@pytest.mark.parametrize(("path", "body", "status", "param", "words"), WRONG)
def test_what_cannot_be_answered_is_refused_in_openais_form(here, path, body, status, param, words):
    found = ask(here.served, path, filled(path, body))
    error = found.json()["error"]
    assert (found.status_code, error["param"]) == (status, param), error
    assert words in error["message"] and error["message"].count("\n") == 0
    assert error.keys() == {"message", "type", "param", "code"}
    long = "need room" in error["message"]
    assert (error["code"] == "context_length_exceeded") == long
    assert not here.driver._open


def test_neutral_values_of_what_is_not_implemented_are_taken(here):
    neutral = {"presence_penalty": 0, "frequency_penalty": 0.0, "logit_bias": {}, "stop": None}
    neutral |= {"tools": [], "response_format": {"type": "text"}, "top_logprobs": 0, "user": "me"}
    body = {"model": "tiny", "messages": HELLO, "max_tokens": 1, **neutral}
    assert ask(here.served, CHAT, body).status_code == 200
    body = {"model": "tiny", "prompt": "on", "best_of": 1, "echo": False, "suffix": None}
    assert ask(here.served, TEXT, body).status_code == 200


def test_routes_methods_and_kinds_of_bodies_that_there_are_not(here):
    assert ask(here.served, "/v2", {}).json()["error"]["message"] == "there is no /v2"
    assert ask(here.served, "/v1/models", {}).status_code == 405
    found = ask(here.served, TEXT, LONG, **{"Content-Type": "text/plain"})
    assert found.status_code == 415 and "application/json" in found.text


def test_a_model_without_a_template_has_completions_alone(here):
    served = Served(here.driver, BYTES, "x has no chat template", "tiny")
    found = ask(served, CHAT, {"model": "tiny", "messages": HELLO})
    assert found.status_code == 400 and "x has no chat template" in found.text
    assert ask(served, TEXT, {"model": "tiny", "prompt": "on"}).status_code == 200


def test_only_who_shows_the_key_is_answered(here):
    served = Served(here.driver, BYTES, TEMPLATES["chatml"], "tiny", key="secret")
    body = {"model": "tiny", "prompt": "on", "max_tokens": 1}
    for shown in ({}, {"Authorization": "Bearer secre"}, {"Authorization": "secret"}):
        found = ask(served, TEXT, body, **shown)
        assert (found.status_code, found.json()["error"]["code"]) == (401, "invalid_api_key")
    assert ask(served, TEXT, body, Authorization="Bearer secret").status_code == 200


@pytest.fixture
def slow(monkeypatch):
    """An engine that takes its time, and what its cancels gave."""
    found, advance, cancel = [], Engine.advance, Engine.cancel

    def slowly(self):
        time.sleep(0.05)
        return advance(self)

    monkeypatch.setattr(Engine, "advance", slowly)
    monkeypatch.setattr(Engine, "cancel", lambda *a: found.append(cancel(*a)) or found[-1])
    return found


def test_who_goes_away_frees_slots_and_places_in_the_queue(here, slow, caplog):
    with here.client.completions.create(**LONG, n=6, stream=True) as stream:
        next(iter(stream))
    here.idle()
    assert slow == [True] * 6
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(here.url + "/completions", json=LONG, timeout=0.5)
    end = time.monotonic() + 10
    while len(slow) < 7 and time.monotonic() < end:
        time.sleep(0.01)
    here.idle()
    assert slow == [True] * 7
    with socket.create_connection(httpx.URL(here.url).netloc.decode().split(":")) as half:
        half.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: h\r\nContent-Length: 9\r\n")
        half.sendall(b"Content-Type: application/json\r\n\r\n{")
    time.sleep(0.1)
    assert not caplog.records  # it is no fault of the server's


def test_a_stop_string_frees_the_slot(here, slow):
    begin = here.client.completions.create(**{**LONG, "max_tokens": 5}).choices[0].text
    found = here.client.completions.create(**LONG, stop=begin[-1])
    assert begin.startswith(found.choices[0].text) and found.usage.completion_tokens < 12
    here.idle()
    assert slow == [True]


def test_a_full_queue_asks_to_come_again(here, openai, slow, monkeypatch):
    monkeypatch.setattr(here.driver, "most", 5)
    with here.client.completions.create(**LONG, n=5, stream=True) as stream:
        next(iter(stream))
        with pytest.raises(openai.RateLimitError, match="5 answers") as refused:
            here.client.completions.create(**LONG)
        assert refused.value.response.headers["Retry-After"] == "1"
        assert refused.value.code == "queue_full"


def test_requests_that_are_open_at_the_end_are_told(here, openai, slow):
    """Past the time to drain; the streams end with an error that clients understand."""
    driver = Driver(here.params, cfg=here.cfg, queue=60, how=here.how, **here.sizes)
    driver.start()
    served = Served(driver, BYTES, "no", "tiny")
    with (
        here.running(served) as url,
        openai.OpenAI(base_url=url, api_key="-", max_retries=0) as client,
    ):
        stream = iter(client.completions.create(**LONG, stream=True))
        next(stream)
        driver.end("the server is ending")
        with pytest.raises(openai.APIError, match="is ending"):
            list(stream)
        with pytest.raises(openai.InternalServerError, match="is ending"):
            client.completions.create(**LONG)
        assert httpx.get(url.replace("/v1", "/health")).json()["status"] == "ending"
    driver.join(20)


class Breaks(Engine):
    """Fails once a prompt has a certain id."""

    def submit(self, request):
        self.broken = 7 in request.inputs
        return super().submit(request)

    def advance(self):
        if self.broken:
            raise ZeroDivisionError("broken")
        return super().advance()


def test_an_engine_that_fails_ends_the_server_and_is_said(here, tiny_run, monkeypatch):
    monkeypatch.setattr(drivers, "Engine", Breaks)
    monkeypatch.setattr(command, "print", lambda *a, **k: said.append(a[0]), raising=False)
    said, found = [], []

    def client():
        while not said or not said[-1].startswith("serving"):
            time.sleep(0.02)
        url = said[-1].split()[-1]
        for prompt in ([5], [7]):
            found.append(httpx.post(url + "/completions", json={**LONG, "prompt": prompt}))

    thread = threading.Thread(target=client)
    thread.start()
    sizes = [f"--{name}={value}" for name, value in here.sizes.items()]
    with pytest.raises(ZeroDivisionError, match="broken"):
        main(["serve", str(tiny_run), "--port=0", "--name=tiny", *sizes])
    thread.join()
    assert [response.status_code for response in found] == [200, 500]
    assert "the engine failed" in found[1].json()["error"]["message"]


def test_health_after_a_failure(here, monkeypatch):
    monkeypatch.setattr(drivers, "Engine", Breaks)
    driver = Driver(here.params, cfg=here.cfg, queue=1, how=here.how, **here.sizes)
    driver.start()
    served = Served(driver, BYTES, "no", "tiny")
    assert ask(served, TEXT, {**LONG, "prompt": [7]}).status_code == 500
    assert ask(served, TEXT, LONG).status_code == 500
    transport = httpx.ASGITransport(build(served))

    async def health():
        async with httpx.AsyncClient(transport=transport, base_url="http://here") as client:
            return await client.get("/health")

    found = asyncio.run(health())
    assert (found.status_code, found.json()["status"]) == (503, "failed")
