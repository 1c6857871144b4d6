"""Two processes with two devices each do one reinforcement learning, and go on as one."""

import importlib.util
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pangu_jax.nn.how import HOW
from pangu_jax.train.metrics import read_metrics

pytestmark = pytest.mark.multiprocess

SCRIPT = Path(__file__).with_name("rl_pair.py")


def alone():
    """The figures of the same run on one device."""
    spec = importlib.util.spec_from_file_location("rl_pair", SCRIPT)
    assert spec is not None and spec.loader is not None
    module, found = importlib.util.module_from_spec(spec), []
    spec.loader.exec_module(module)
    module.run(None, HOW, found.append)
    return found


def start(folder, cache):
    """The two, on their way."""
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        place = f"localhost:{probe.getsockname()[1]}"
    environment = {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": os.environ["XLA_FLAGS"].replace("count=8", "count=2"),
        "JAX_COMPILATION_CACHE_DIR": str(cache),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
    return [
        subprocess.Popen(
            [sys.executable, SCRIPT, str(folder), place, str(number)],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for number in range(2)
    ]


def end(pair):
    """[(exit status, stdout, stderr)]."""
    found = []
    for process in pair:
        try:
            out, err = process.communicate(timeout=180)
        finally:
            process.kill()
        found.append((process.returncode, out, err))
    return found


def check(folder, ends):
    """All updates are there, the same everywhere; and those of one device as far as told."""
    assert [status for status, _, _ in ends] == [0, 0], ends
    assert len({json.loads(out.splitlines()[-1]) for _, out, _ in ends}) == 1
    found = read_metrics(folder / "metrics.jsonl")
    assert [row["step"] for row in found] == list(range(1, 7))
    return found


def same(found, want):
    """To rounding."""
    for row, line in zip(found, want, strict=True):
        assert row["ages"] == line["ages"]
        for name in ("reward", "tokens"):
            assert row[name] == pytest.approx(line[name], abs=1e-6)


@pytest.mark.long
def test_a_pair_makes_the_updates_of_one_device(tmp_path):
    found = check(tmp_path / "run", end(start(tmp_path / "run", tmp_path / "cache")))
    same(found, alone())


@pytest.mark.slow
def test_a_pair_stops_together_and_goes_on_as_one_run(tmp_path):
    folder = tmp_path / "run"
    pair, metrics = start(folder, tmp_path / "cache"), folder / "metrics.jsonl"
    limit = time.monotonic() + 180
    while not (metrics.exists() and any(row["step"] >= 2 for row in read_metrics(metrics))):
        assert time.monotonic() < limit and all(p.poll() is None for p in pair), end(pair)
        time.sleep(0.02)
    pair[1].send_signal(signal.SIGTERM)  # one of them is enough
    ends = end(pair)
    assert [status for status, _, _ in ends] in ([143, 143], [0, 0]), ends
    found = check(folder, end(start(folder, tmp_path / "cache")))
    same(found[:2], alone()[:2])  # later ones hang on which answers ran when they were stopped
