"""A running server that tests share."""

import contextlib
import threading
import time
import types
from functools import partial

import pytest

from pangu_jax.checkpoint.open import open_checkpoint
from pangu_jax.data.chat import TEMPLATES
from pangu_jax.data.tokenizer import ByteTokenizer
from pangu_jax.nn.how import How
from pangu_jax.serve.app import Served, build
from pangu_jax.serve.driver import Driver
from pangu_jax.serve.server import Server, bound

HOW = How(dtype="float32")  # as the command has it, so that nothing is compiled twice
SIZES = {"slots": 4, "length": 200, "burst": 4}


@contextlib.contextmanager
def running(served):
    """The address of a server in a thread."""
    ready, listener = threading.Event(), bound("127.0.0.1", 0)
    server = Server(build(served), drain=5, end=served.driver.end, ready=ready.set)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    assert ready.wait(20)
    yield f"http://127.0.0.1:{listener.getsockname()[1]}/v1"
    server.stop()
    thread.join(20)
    assert not thread.is_alive()


@pytest.fixture(scope="module")
def openai():
    """The client's library: every worker imports every file, and this takes seconds."""
    import openai

    return openai


@pytest.fixture(scope="module")
def here(tiny_run, openai):
    """A server with a tiny model, and what it is made of."""
    params, cfg, _ = open_checkpoint(tiny_run, dtype="float32")
    driver = Driver(params, cfg=cfg, queue=60, how=HOW, **SIZES)
    driver.start()
    served = Served(driver, ByteTokenizer(), TEMPLATES["chatml"], "tiny")
    with running(served) as url:
        client = openai.OpenAI(base_url=url, api_key="none", max_retries=0)
        yield types.SimpleNamespace(
            url=url,
            client=client,
            driver=driver,
            params=params,
            cfg=cfg,
            served=served,
            how=HOW,
            sizes=SIZES,
            running=running,
            idle=partial(idle, driver),
        )
        client.close()
    driver.end("over")
    driver.join(20)


@pytest.fixture(autouse=True)
def _nothing_stays(request):
    """After every test all slots are free, and nobody waits or is remembered."""
    yield
    if "here" in request.fixturenames:
        request.getfixturevalue("here").idle()


def idle(driver):
    end = time.monotonic() + 10
    while driver.free < SIZES["slots"] or driver.waiting or driver._open or driver._jobs:
        assert time.monotonic() < end, "a slot is still taken"
        time.sleep(0.01)
