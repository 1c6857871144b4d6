"""What is shown where there is no terminal."""

from pangu_jax.cli import progress
from pangu_jax.cli.progress import progress as shown


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
