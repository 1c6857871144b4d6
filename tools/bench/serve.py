"""Times the HTTP endpoint beside the engine that it stands on, on the same requests.

    python tools/bench/serve.py
    python tools/bench/serve.py --checkpoint FOLDER --dtype bfloat16 --new 256 --out serve.jsonl

C clients each send their next request as soon as the last is answered. Prints a line for each C:
tokens/s through the server, streamed and whole, and by `engine.answers` with at most C slots in the
same process just before. Seeds are fixed, so all draw the same number of tokens, which is checked.
Without a checkpoint the model is a small one of random weights that a CPU runs.
"""

import argparse
import asyncio
import json
import threading
import time

import httpx
import jax
import numpy as np

from pangu_jax.checkpoint.open import open_checkpoint
from pangu_jax.data.tokenizer import ByteTokenizer, load_tokenizer
from pangu_jax.decode.engine import Engine, Request, answers
from pangu_jax.decode.sampling_config import SamplingConfig
from pangu_jax.models import decoder
from pangu_jax.nn.attention import AttentionConfig
from pangu_jax.nn.block import LayerConfig
from pangu_jax.nn.how import How
from pangu_jax.nn.mlp import MlpConfig
from pangu_jax.serve.app import Served, build
from pangu_jax.serve.driver import Driver
from pangu_jax.serve.server import Server, bound
from pangu_jax.sharding.layout import init


def opened(options):
    """Parameters, configuration and tokenizer."""
    if options.checkpoint:
        params, cfg, found = open_checkpoint(
            options.checkpoint, kind="decoder", dtype=options.dtype
        )
        return params, cfg, load_tokenizer(found, checkpoint=options.checkpoint)
    layer = LayerConfig(AttentionConfig(2, 2, 32, qk_norm=True), mlp=MlpConfig(512))
    cfg = decoder.DecoderConfig(264, 256, (layer,) * 8, tied=True)
    params = init(decoder.spec(cfg), key=jax.random.key(0), dtype=options.dtype)
    return params, cfg, ByteTokenizer()


def bodies(options, cfg):
    """Requests of several lengths, by ids: what is timed is serving, not reading texts."""
    rng = np.random.default_rng(0)
    for seed in range(options.requests):
        size = int(rng.integers(options.prompt // 2, options.prompt + 1))
        ids = rng.integers(0, min(cfg.vocab, 256), size).tolist()
        new = int(rng.integers(options.new // 2, options.new + 1))
        yield {"model": "bench", "prompt": ids, "max_tokens": new, "seed": seed}


def by_engine(engine, found, stops):
    """Tokens, and seconds."""
    requests = [
        Request(
            body["prompt"],
            body["max_tokens"],
            SamplingConfig(1.0),
            stops,
            jax.random.fold_in(jax.random.key(body["seed"]), 0),
        )
        for body in found
    ]
    began = time.perf_counter()
    tokens = sum(len(answer.ids) for _, answer in answers(engine, requests))
    return tokens, time.perf_counter() - began


async def by_server(url, found, clients, stream):
    """Tokens, seconds, and the median seconds until a request's first event."""
    left, tokens, first = iter(found), [], []
    more = {"stream": True, "stream_options": {"include_usage": True}} if stream else {}
    limits = httpx.Limits(max_connections=clients)
    async with httpx.AsyncClient(base_url=url, limits=limits, timeout=600) as client:

        async def work():
            for body in left:
                began = time.perf_counter()
                if not stream:
                    answer = (await client.post("/completions", json=body)).json()
                    tokens.append(answer["usage"]["completion_tokens"])
                    continue
                ask = client.stream("POST", "/completions", json={**body, **more})
                async with ask as response:
                    lines = [await anext(aiter := response.aiter_lines())]
                    first.append(time.perf_counter() - began)
                    lines += [line async for line in aiter if line.startswith("data: {")]
                tokens.append(json.loads(lines[-1][6:])["usage"]["completion_tokens"])

        began = time.perf_counter()
        await asyncio.gather(*(work() for _ in range(clients)))
        seconds = time.perf_counter() - began
    return sum(tokens), seconds, float(np.median(first)) if first else None


def compare(options, params, cfg, tokenizer, clients):
    """One line of results."""
    found = list(bodies(options, cfg))
    sizes = {"slots": min(clients, options.slots), "length": options.prompt + options.new}
    how = How(dtype=options.dtype)
    engine = Engine(params, cfg=cfg, burst=options.burst, how=how, **sizes)
    by_engine(engine, found, tokenizer.eos_ids)  # compiles
    tokens, alone = by_engine(engine, found, tokenizer.eos_ids)
    del engine
    driver = Driver(params, cfg=cfg, queue=clients, burst=options.burst, how=how, **sizes)
    driver.start()
    served = Served(driver, tokenizer, "no chat here", "bench")
    ready, listener = threading.Event(), bound("127.0.0.1", 0)
    server = Server(build(served), drain=1, end=driver.end, ready=ready.set)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    ready.wait()
    url = f"http://127.0.0.1:{listener.getsockname()[1]}/v1"
    line = {"device": jax.devices()[0].device_kind, "clients": clients, **sizes}
    line |= {"burst": options.burst, "requests": len(found), "engine_tok_s": tokens / alone}
    for name, stream in (("stream", True), ("whole", False)):
        drawn, seconds, first = asyncio.run(by_server(url, found, clients, stream))
        assert drawn == tokens, (drawn, tokens)
        line |= {f"{name}_tok_s": tokens / seconds, f"{name}_ratio": alone / seconds}
        if first is not None:
            line["first_ms"] = 1e3 * first
    server.stop()
    thread.join()
    driver.end("over")
    driver.join(10)
    return line


def main():
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--checkpoint", help="None: a small model of random weights")
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--slots", type=int, default=8)
    parser.add_argument("--burst", type=int, default=4)
    parser.add_argument("--requests", type=int, default=64)
    parser.add_argument("--prompt", type=int, default=64, help="longest prompt, in tokens")
    parser.add_argument("--new", type=int, default=64, help="longest answer, in tokens")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--out", help="a .jsonl file that the lines are added to")
    options = parser.parse_args()
    params, cfg, tokenizer = opened(options)
    for clients in options.clients:
        line = compare(options, params, cfg, tokenizer, clients)
        print(
            f"C {clients:3} slots {line['slots']:3} burst {options.burst:2} engine "
            f"{line['engine_tok_s']:8,.0f} tok/s, streamed {line['stream_tok_s']:8,.0f} "
            f"({line['stream_ratio']:.2f}), whole {line['whole_tok_s']:8,.0f} "
            f"({line['whole_ratio']:.2f}), first event after {line['first_ms']:.0f} ms "
            f"on {line['device']}",
            flush=True,
        )
        if options.out:
            with open(options.out, "a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")


if __name__ == "__main__":
    main()
