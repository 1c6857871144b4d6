"""`pangu-jax rl simulate`: a table, JSON, a report with its plot, refusals in a sentence."""

import json

import pytest

from pangu_jax.cli.main import main

SMALL = (
    *("--updates", 6, "--batch", 2, "--group", 2, "--slots", 4, "--staleness", 0, 2),
    *("--mean", 40, "--seconds-per-token", 0.1, "--seconds-per-update", 2),
)


def call(*arguments):
    with pytest.raises(SystemExit) as end:
        main(["rl", "simulate", *map(str, arguments)])
    return end.value.code


def test_settings_are_compared_and_drawn(tmp_path, capsys):
    out = tmp_path / "out"
    assert call(*SMALL, "--policies", "barrier", "discard", "--out", out, "--json") == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed == json.loads((out / "results.json").read_text())
    rows = printed["rows"]
    assert [(r["policy"], r["staleness"]) for r in rows] == [
        *(("barrier", 0), ("barrier", 2), ("discard", 0), ("discard", 2))
    ]
    assert rows[0]["speed_up"] == 1 < rows[1]["speed_up"] and rows[1]["largest_age"] <= 2
    assert all(sum(row["ages"]) == 12 for row in rows)
    assert (out / "plots" / "staleness.png").read_bytes()[:4] == b"\x89PNG"
    assert "Simulated, not measured: 6 updates" in (out / "report.md").read_text()


def test_the_table_is_of_measured_lengths(tmp_path, capsys):
    (tmp_path / "lengths.txt").write_text("10 10\n10\n")
    assert call(*SMALL, "--lengths", tmp_path / "lengths.txt") == 0
    lines = capsys.readouterr().out.splitlines()
    # 4 answers in 4 slots take 1 s, an update 2: synchronous is 3 per update, else it is 2.
    assert lines[2] == "| barrier | 0 | 1.00 | 66.7% | 33.3% | 0.00 | 0 | 0.0% | 10 | 10 |"
    assert lines[3].startswith("| barrier | 2 | 1.38 |") and len(lines) == 4


@pytest.mark.parametrize(
    "arguments, words",
    [
        (("--lengths", "none.txt"), "cannot read none.txt"),
        (("--staleness", -1), "staleness must be at least 0"),
        (("--seed", -1), "seed must be at least 0"),
        (("--seconds-per-update", 0), "seconds per update must be above 0"),
    ],
)
def test_what_cannot_be_is_refused_in_a_sentence(arguments, words, capsys):
    assert call(*SMALL, *arguments) == 2
    assert words in capsys.readouterr().err
