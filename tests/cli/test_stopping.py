"""Commands and experiments end alike: a line, and the status that says why."""

import pytest

from pangu_jax.cli import stopping
from pangu_jax.cli.stopping import joined, script
from pangu_jax.core.errors import InputError
from pangu_jax.train.stop_signal import Stopped


@pytest.mark.parametrize(
    ("error", "status", "line"),
    [
        (Stopped(7, 143), 143, "stopped at step 7; the same command goes on from there"),
        (Stopped(7, 130), 130, "stopped at step 7; the same command goes on from there"),
        (InputError("no text"), 2, "intervals.py: no text"),
        (KeyboardInterrupt(), 130, "interrupted; the same command goes on with what is missing"),
    ],
)
def test_an_experiment_ends_as_a_command_does(error, status, line, capsys, monkeypatch):
    monkeypatch.setattr("sys.argv", ["experiments/timepro/intervals.py"])

    def main():
        raise error

    with pytest.raises(SystemExit) as end:
        script(main)
    assert (end.value.code, *capsys.readouterr()) == (status, "", f"{line}\n")
    script(lambda: None)


@pytest.mark.parametrize("processes", [1, 2])
def test_bad_input_leaves_a_run_of_several_at_once(processes, monkeypatch):
    said, closed = [], []

    def leave(message, status):
        said.append((message, status, list(closed)))
        raise SystemExit(status)

    monkeypatch.setattr(stopping, "connect", lambda *given: said.append(given))
    monkeypatch.setattr(stopping, "leave", leave)
    monkeypatch.setattr(stopping.jax, "process_count", lambda: processes)
    ends = pytest.raises(SystemExit if processes > 1 else InputError)
    with ends, joined("host:1", processes, 0) as claims:
        claims.callback(closed.append, "claim")
        raise InputError("no text")
    assert said == [("host:1", processes, 0), *[("no text", 2, ["claim"])] * (processes - 1)]
    assert closed == ["claim"]
