"""`pangu-jax serve` as a process: how it begins, and how it ends."""

import importlib.util
import json
import os
import signal
import socket
import subprocess
import sys

import httpx
import pytest

from pangu_jax.cli import serve
from pangu_jax.cli.main import main
from pangu_jax.serve import server as servers
from pangu_jax.serve.server import Server


@pytest.mark.long
def test_a_signal_lets_open_requests_end_and_the_process_ends_well(tiny_run):
    command = [sys.executable, "-m", "pangu_jax.cli.main", "serve", str(tiny_run), "--port=0"]
    options = ["--slots=1", "--length=700", "--burst=1", "--name=tiny"]
    pipe = subprocess.PIPE
    with subprocess.Popen([*command, *options], stdout=pipe, stderr=pipe, text=True) as process:
        try:
            said = process.stdout.readline()
            assert said.startswith("serving tiny on http://127.0.0.1:"), process.stderr.read()
            body = {"model": "tiny", "prompt": "on", "max_tokens": 600, "temperature": 0}
            url = said.split()[-1] + "/completions"
            with httpx.stream("POST", url, json={**body, "stream": True}, timeout=60) as response:
                lines = response.iter_lines()
                next(lines)
                process.send_signal(signal.SIGTERM)
                events = [line[6:] for line in lines if line]
            assert events[-1] == "[DONE]"
            assert json.loads(events[-2])["choices"][0]["finish_reason"] == "length"
            process.wait(20)
            assert process.returncode == 0
            err = process.stderr.read()
            assert "no chat, only completions" in err and "was made for 400 tokens" in err
            assert err.count("\n") == 2
        finally:
            process.kill()


def run(capsys, *arguments):
    with pytest.raises(SystemExit) as end:
        main(["serve", *arguments])
    return end.value.code, capsys.readouterr().err


def test_what_it_cannot_begin_with_is_one_sentence(tiny_run, capsys, monkeypatch):
    folder = str(tiny_run)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = f"--port={taken.getsockname()[1]}"
        status, err = run(capsys, folder, port)
        assert status == 2 and "in use" in err and err.count("\n") == 1
    for arguments, words in [
        (["--port=65536"], "--port must be"),
        (["--port=-1"], "--port must be"),
        (["--host=no.such.host.invalid"], "no address of this machine"),
        (["--host=203.0.113.1"], "cannot listen on 203.0.113.1"),
        (["--drain=-1"], "--drain must be"),
        (["--drain=nan"], "--drain must be"),
        (["--slots=0"], "slots"),
        (["--length=1"], "length must be 2"),
        (["--burst=0"], "burst"),
        (["--queue=-1"], "queue must be"),
        (["--template=x"], "unknown chat template 'x'"),
    ]:
        status, err = run(capsys, folder, "--port=0", *arguments)
        assert status == 2 and words in err and err.splitlines()[-1].startswith("pangu-jax:"), err
    status, err = run(capsys, folder + "/none", "--port=0")
    assert status == 2 and "no checkpoint" in err
    for key in ("", " a", "ü"):
        monkeypatch.setenv("PANGU_JAX_API_KEY", key)
        status, err = run(capsys, folder, "--port=0")
        assert status == 2 and "PANGU_JAX_API_KEY must be" in err


def test_a_missing_extra_is_named(capsys, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    status, err = run(capsys, "folder")
    assert status == 2 and "pip install 'pangu-jax[serve]'" in err


@pytest.mark.parametrize(
    ("host", "key", "warned"),
    [("127.0.0.1", None, 0), ("0.0.0.0", None, 1), ("0.0.0.0", "k", 0), ("::1", None, 0)],
)
def test_who_serves_everybody_without_a_key_is_warned_once(host, key, warned, capsys):
    serve._warn(host, key)
    assert capsys.readouterr().err.count("PANGU_JAX_API_KEY") == warned


def test_the_second_signal_ends_the_process_at_once(monkeypatch):
    ended = []
    monkeypatch.setattr(servers.os, "_exit", ended.append)
    server = Server(None, drain=1, end=ended.append)
    with server.capture_signals():
        os.kill(os.getpid(), signal.SIGTERM)
        assert server.should_exit and not ended
        os.kill(os.getpid(), signal.SIGINT)
    assert ended == [128 + signal.SIGINT]
