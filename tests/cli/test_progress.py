"""What is shown where there is no terminal."""

from pangu_jax.cli.progress import progress


def test_lines_say_when_a_piece_begins_and_ends_and_now_and_then_between(capsys):
    with progress(every_s=1000) as show:
        for done in range(4):
            show("statistics, layer", done, 3)
        show("repair, layer", 1, 2, "ridge")
    found = capsys.readouterr().err.splitlines()
    assert found[:2] == ["statistics, layer 0/3", "statistics, layer 3/3"]
    assert found[2].startswith("repair, layer 1/2") and found[2].endswith("ridge")
    with progress(every_s=-1) as show:
        for done in range(1, 4):
            show("work", done, 3)
    assert len(capsys.readouterr().err.splitlines()) == 3
