"""Many clients at once, slow ones and such that leave: each answer is the engine's own."""

import asyncio
import functools
import json
import random

import httpx
import jax
import pytest

from pangu_jax.decode.engine import Engine, Request, answers
from pangu_jax.decode.sampling_config import SamplingConfig


@functools.cache
def variants():
    """Bodies of distinct requests."""
    rng = random.Random(0)
    found = []
    for number in range(16):
        sampling = rng.choice([{"temperature": 0}, {}, {"top_k": 9}, {"top_p": 0.8}])
        size = rng.choice([1, 2, 5, 17, 60, 120])
        prompt = [rng.randrange(256) for _ in range(rng.randrange(1, 60))]
        found.append({"model": "tiny", "prompt": prompt, "max_tokens": size, "seed": number})
        found[-1] |= sampling
    return found


def alone(here):
    """The answer to each of them from an engine of its own, one after the other."""
    engine = Engine(here.params, cfg=here.cfg, how=here.how, **here.sizes)
    for body in variants():
        key = jax.random.fold_in(jax.random.key(body["seed"]), 0)
        way = SamplingConfig(
            body.get("temperature", 1.0), body.get("top_k", 0), body.get("top_p", 1.0)
        )
        [(_, answer)] = answers(
            engine, [Request(body["prompt"], body["max_tokens"], way, (256,), key)]
        )
        yield len(answer.ids), answer.finish_reason, [float(x) for x in answer.log_probs]


async def one(client, rng, want):
    """One request of a client that may be slow or leave; whether it stayed."""
    number = rng.randrange(len(want))
    body = {**variants()[number], "logprobs": 0}
    leaves, dawdles, whole = (rng.random() < share for share in (0.15, 0.1, 0.3))
    stay = rng.randrange(4)
    if whole and not leaves:
        found = (await client.post("/completions", json=body)).json()
        check(found["choices"], found["usage"], want[number])
        return True
    body |= {"stream": True, "stream_options": {"include_usage": True}}
    events = []
    async with client.stream("POST", "/completions", json=body) as response:
        assert response.status_code == 200
        async for line in response.aiter_lines():
            if leaves and len(events) == stay:
                return False
            if line.startswith("data: {"):
                events.append(json.loads(line[6:]))
            if dawdles:
                await asyncio.sleep(0.01)
    assert line == "" and "error" not in events[-1]
    check([e["choices"][0] for e in events[:-1]], events[-1]["usage"], want[number])
    return True


def check(choices, usage, want):
    count, end, scores = want
    assert usage["completion_tokens"] == count
    assert choices[-1]["finish_reason"] == end
    found = [score for choice in choices for score in choice["logprobs"]["token_logprobs"]]
    assert found == scores[: len(found)] and len(found) == count - (end == "stop")


async def many(url, count, want):
    stayed = []
    limits = httpx.Limits(max_connections=40)
    async with httpx.AsyncClient(base_url=url, limits=limits, timeout=60) as client:
        left = iter(range(count))

        async def work():
            for number in left:
                stayed.append(await one(client, random.Random(number), want))

        await asyncio.gather(*(work() for _ in range(32)))
    return stayed


@pytest.mark.long
@pytest.mark.parametrize("count", [100, pytest.param(1000, marks=pytest.mark.slow)])
def test_of_many_requests_none_is_lost_and_none_is_mixed_with_another(here, count):
    stayed = asyncio.run(many(here.url, count, list(alone(here))))
    assert len(stayed) == count
    assert stayed.count(False) > 0.05 * count
