"""Two processes with two devices each train one model: the same losses, one end for both."""

import json
import os
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pytest

from pangu_jax.checkpoint import store
from pangu_jax.cli.main import main
from pangu_jax.train.metrics import read_metrics

pytestmark = pytest.mark.multiprocess

STEPS = 120  # more than there is time for before the signal


@pytest.fixture(scope="module")
def given(tiny_run, tmp_path_factory):
    """A folder with a model to start from, a text, and a cache of what was compiled."""
    folder = tmp_path_factory.mktemp("given")
    (folder / "init").symlink_to(tiny_run)
    (folder / "text.txt").write_text("some text to train on, again and again. " * 100)
    return folder


def arguments(given, out):
    return [
        *("train", "--data", str(given / "text.txt"), "--held-out", "0", "--out", str(out)),
        *("--init", str(given / "init"), "--steps", str(STEPS), "--batch", "4", "--length", "16"),
        *("--checkpoint-every", "10", "--accumulate", "2"),
    ]


class Pair:
    """The two processes of a run, on their way."""

    def __init__(self, given, out):
        with socket.socket() as probe:
            probe.bind(("localhost", 0))
            place = f"localhost:{probe.getsockname()[1]}"
        more = ["--mesh", "data=2,fsdp=2", "--coordinator", place, "--processes", "2"]
        environment = {
            **os.environ,
            "JAX_PLATFORMS": "cpu",
            "XLA_FLAGS": os.environ["XLA_FLAGS"].replace("count=8", "count=2"),
            "JAX_COMPILATION_CACHE_DIR": str(given / "compiled"),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        }
        command = [sys.executable, "-m", "pangu_jax.cli.main", *arguments(given, out), *more]
        self.processes = [
            subprocess.Popen(
                [*command, "--process", str(number)],
                env=environment,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
            for number in range(2)
        ]
        self.out = out

    def wait_for(self, step, *, saved=0):
        """Waits for a step, and for the checkpoint of one before it, made in the background."""
        end, metrics = time.monotonic() + 300, self.out / "metrics.jsonl"
        place = self.out / store.CHECKPOINTS / str(saved)
        while not any(row["step"] >= step for row in read_metrics(metrics)) or (
            saved and not place.exists()
        ):
            assert time.monotonic() < end, "the pair does not train"
            assert all(p.poll() is None for p in self.processes), self.end()
            time.sleep(0.02)

    def end(self):
        """[(exit status, stdout, stderr)]."""
        found = []
        for process in self.processes:
            try:
                out, err = process.communicate(timeout=180)
            finally:
                process.kill()
            found.append((process.returncode, out, err))
        return found


def losses(out):
    return {row["step"]: row["loss"] for row in read_metrics(out / "metrics.jsonl")}


@pytest.mark.long
def test_a_pair_stops_at_one_step_and_one_process_goes_on(given, tmp_path):
    with pytest.raises(SystemExit) as end:
        main(arguments(given, tmp_path / "alone"))
    assert end.value.code == 0
    want = losses(tmp_path / "alone")
    pair = Pair(given, tmp_path / "pair")
    pair.wait_for(12)
    pair.processes[1].send_signal(signal.SIGTERM)  # one of them is enough
    ends = pair.end()
    assert [status for status, _, _ in ends] == [143, 143], ends
    with store.Store(tmp_path / "pair", writes=False) as checkpoints:
        stopped = checkpoints.latest()
    assert f"stopped at step {stopped};" in ends[0][2]
    assert 12 <= stopped < STEPS
    assert max(losses(tmp_path / "pair")) == stopped
    with pytest.raises(SystemExit) as end:
        main(arguments(given, tmp_path / "pair"))
    assert end.value.code == 0
    found = losses(tmp_path / "pair")
    assert list(found) == list(want) == list(range(1, STEPS + 1))
    # Sums are taken in another order on four devices; nothing else is different.
    np.testing.assert_allclose(list(found.values()), list(want.values()), rtol=2e-4)
    assert json.loads((tmp_path / "pair" / "config.json").read_text())["processes"] == 2


@pytest.mark.parametrize("killed", [pytest.param(p, marks=pytest.mark.slow) for p in (1, 0)])
def test_when_one_process_dies_the_other_ends_and_says_so(given, tmp_path, killed):
    pair = Pair(given, tmp_path / "pair")
    pair.wait_for(12, saved=10)
    pair.processes[killed].kill()
    begin = time.monotonic()
    ends = pair.end()
    assert time.monotonic() - begin < 60
    status, _, err = ends[1 - killed]
    assert status not in (0, None)
    if "another process of the run has ended" in err:
        assert status == 2
        assert "start all 2 processes again" in err and "Traceback" not in err
    else:  # process 0 took jax's own coordination with it, and jax speaks first
        assert killed == 0 and "another task died" in err
    with store.Store(tmp_path / "pair", writes=False) as checkpoints:
        assert 10 in checkpoints.steps()
