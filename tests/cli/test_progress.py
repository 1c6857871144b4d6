"""What is shown where there is no terminal."""

import re
import time

import pytest

from pangu_jax.cli import progress
from pangu_jax.cli.progress import progress as shown
from pangu_jax.cli.progress import working


def test_a_line_is_written_now_and_then_and_when_long_work_is_done(capsys, monkeypatch):
    clock = iter([0.0, 1.0, 11.0, 12.0, 13.0, 14.0, 15.0, 26.0])
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(clock))
    with shown() as show:
        for done in (0, 1, 2, 3):
            show("statistics, layer", done, 3)
        show("repair, layer", 0, 1)
        show("repair, layer", 1, 1)
        show("reading, bytes", 12345, text="a.txt")
    assert capsys.readouterr().err.splitlines() == [
        "statistics, layer 1/3  20 s left",
        "statistics, layer 3/3",
        "reading, bytes 12,345  a.txt",
    ]


def test_work_that_cannot_say_how_far_it_is_is_said_to_go_on(capsys):
    with pytest.raises(ValueError), working("reading x", every_s=0.01):
        time.sleep(0.05)
        raise ValueError
    written = capsys.readouterr().err.splitlines()
    assert written and all(re.fullmatch(r"reading x  0 s", line) for line in written)
    with working("reading y"):
        pass
    time.sleep(0.03)
    assert capsys.readouterr().err == ""  # nothing of short work, and nothing afterward
