"""Commands and experiments end alike: a line, and the status that says why."""

import pytest

from pangu_jax.cli.stopping import script
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
