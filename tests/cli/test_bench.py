"""`pangu-jax bench` as a user meets it: figures, what is kept, and going on after a stop."""

import itertools
import json

import numpy as np
import pytest

from pangu_jax.cli import bench
from pangu_jax.cli.main import main
from pangu_jax.core.journal import Journal
from pangu_jax.decode.engine import Answer
from pangu_jax.reasoning.bench import Judgment

RECORDS = [{"question": f"{'abc' * i}?", "answer": "1", "kind": "number"} for i in range(3)]
CODE = {"prompt": "Write f.", "code": "def f(): pass", "test": ["f()"]}
PLAIN = ["--mode", "plain", "--max-new-tokens", 6, "--samples", 2, "--temperature", 2, "--batch", 3]


def call(*arguments):
    with pytest.raises(SystemExit) as end:
        main(["bench", *map(str, arguments)])
    return end.value.code


@pytest.fixture
def asked(tiny_run, tmp_path):
    (tmp_path / "sums.jsonl").write_text("".join(json.dumps(r) + "\n" for r in RECORDS))
    (tmp_path / "more.jsonl").write_text(json.dumps(RECORDS[1]) + "\n")
    (tmp_path / "hashes.jsonl").write_text(json.dumps(RECORDS[1]) + "\n")
    (tmp_path / "code.jsonl").write_text(json.dumps(CODE) + "\n")
    return [tiny_run, "--tasks", f"{tmp_path}/sums.jsonl,{tmp_path}/more.jsonl"]


def lines(folder, name="sums"):
    rows = (folder / "answers" / f"{name}.jsonl").read_text().splitlines()
    return sorted(map(json.loads, rows), key=lambda x: (x["question"], x["sample"]))


@pytest.mark.long
def test_a_run_that_is_stopped_anywhere_ends_with_the_same_figures(
    asked, tmp_path, capsys, monkeypatch
):
    assert call(*asked, *PLAIN, "--out", tmp_path / "whole") == 0
    out = capsys.readouterr().out
    assert "| sums | 3         | " in out and "pass@2" in out
    found = lines(tmp_path / "whole")
    assert [(x["question"], x["sample"]) for x in found] == [
        (q, s) for q in range(3) for s in (0, 1)
    ]
    assert len({x["said"] for x in found}) == 6  # each with a key of its own
    left, add = [2], Journal.add

    def stopped(journal, line):
        if not left[0]:
            raise KeyboardInterrupt
        left[0] -= 1
        add(journal, line)

    monkeypatch.setattr(Journal, "add", stopped)
    assert call(*asked, *PLAIN, "--out", tmp_path / "part") == 130
    monkeypatch.undo()
    journal = tmp_path / "part" / "answers" / "sums.jsonl"
    journal.write_bytes(journal.read_bytes()[:-9])  # in the middle of a line
    assert call(*asked, *PLAIN, "--out", tmp_path / "part") == 0
    assert lines(tmp_path / "part") == found
    for file in ("results.json", "config.json"):
        assert (tmp_path / "part" / file).read_text() == (tmp_path / "whole" / file).read_text()
    # What is done is not done again.
    monkeypatch.setattr(bench, "Engine", pytest.fail)
    assert call(*asked, *PLAIN, "--out", tmp_path / "part") == 0
    report = (tmp_path / "part" / "report.md").read_text()
    assert "Question: {question}\\nAnswer:" in report
    assert json.loads((tmp_path / "part" / "results.json").read_text())["hashes"]["data"] in report


@pytest.mark.long
def test_answers_that_are_not_judged_are_kept_counted_and_judged_when_the_run_goes_on(
    tiny_run, tmp_path, capsys, monkeypatch
):
    """Without a judge, with one that fails now and then, and with one that works."""
    records = [{"question": f"{i}?", "answer": "ab", "kind": "words"} for i in range(3)]
    (tmp_path / "own.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))
    command = [tiny_run, "--tasks", tmp_path / "own.jsonl", *PLAIN, "--out"]
    assert call(*command, tmp_path / "whole") == 0
    capsys.readouterr()
    folder, judge, turns = tmp_path / "part", bench.bench.judge, itertools.count()
    answered = [x["found"] is not None for x in lines(tmp_path / "whole", "own")]

    def failing(item, found, **options):
        broken = next(turns) % 2 == 0
        return Judgment(None, "no sandbox") if broken else judge(item, found, **options)

    def results():
        return json.loads((folder / "results.json").read_text())

    monkeypatch.setattr(bench.bench, "check_judges", lambda *_, **__: pytest.fail("asked"))
    assert call(*command, folder, "--judge", "later") == 0
    assert f"not judged: {sum(answered)} of own" in capsys.readouterr().err
    cell = results()["own"]
    assert (cell["not_judged"], cell["format_errors"]) == (sum(answered), 6 - sum(answered))
    monkeypatch.undo()
    monkeypatch.setattr(bench, "Engine", pytest.fail)  # no answer is written again
    monkeypatch.setattr(bench.bench, "judge", failing)
    assert call(*command, folder) == 0
    assert 0 < results()["own"]["not_judged"] < sum(answered)
    assert "same command judges them again" in capsys.readouterr().err
    monkeypatch.setattr(bench.bench, "judge", judge)
    # Killed while the last line was written.
    journal = folder / "answers" / "own.jsonl"
    journal.write_bytes(journal.read_bytes()[:-3])
    (folder / "results.json").write_text(json.dumps({"hashes": results()["hashes"]}))
    assert call(*command, folder) == 0
    assert "not judged:" not in capsys.readouterr().err
    assert results() == json.loads((tmp_path / "whole" / "results.json").read_text())


def test_answers_of_a_task_do_not_depend_on_what_else_is_asked(asked, tmp_path):
    for name, tasks in (("both", asked[2]), ("one", asked[2].split(",")[0])):
        assert call(asked[0], "--tasks", tasks, *PLAIN, "--out", tmp_path / name) == 0
    assert lines(tmp_path / "both") == lines(tmp_path / "one")


@pytest.fixture
def made(monkeypatch):
    """The settings of engines, none of which is made; all answers are one byte, cut off."""
    made, answer = [], Answer(*[np.zeros(1, int)] * 4, "length")
    monkeypatch.setattr(bench, "Engine", lambda _, **rest: made.append(rest) or rest)
    monkeypatch.setattr(
        bench, "answers", lambda _, asked: ((i, answer) for i, _ in enumerate(asked))
    )
    return made


def test_one_long_question_takes_no_room_of_other_tasks(asked, tmp_path, made):
    """A step reads all rows of a slot, so that one would slow down every task."""
    (tmp_path / "long.jsonl").write_text(json.dumps({**RECORDS[0], "question": "a" * 200}) + "\n")
    tasks = f"{asked[2]},{tmp_path}/long.jsonl"
    options = ["--mode", "plain", "--max-new-tokens", 3]
    assert call(asked[0], "--tasks", tasks, *options, "--out", tmp_path / "o") == 0
    assert [(x["slots"], x["length"]) for x in made] == [(4, 32 + 16), (1, 256 + 16)]


@pytest.mark.usefixtures("made")
def test_repeated_questions_are_told_and_counted_as_before(asked, tmp_path, capsys):
    again = [*RECORDS, RECORDS[0] | {"answer": "2"}, RECORDS[0]]
    (tmp_path / "sums.jsonl").write_text("".join(json.dumps(row) + "\n" for row in again))
    out = tmp_path / "out"
    assert call(*asked, "--mode", "plain", "--max-new-tokens", 3, "--out", out) == 0
    told = "earlier in their task: 2 of sums. Each counts"
    assert told in capsys.readouterr().out and told in (out / "report.md").read_text()
    path = out / "results.json"
    found = json.loads(path.read_text())
    assert [found[name]["repeated"] for name in ("sums", "more")] == [2, 0]
    assert found["sums"]["questions"] == found["sums"]["avg"]["questions"] == 5
    del found["sums"]["repeated"]  # as in folders that are older
    path.write_text(json.dumps(found))
    assert call(*asked, "--mode", "plain", "--max-new-tokens", 3, "--out", out) == 0
    assert "earlier" not in capsys.readouterr().out


def test_the_answer_of_a_run_that_cannot_be_gone_on_with_is_one_sentence(asked, tmp_path, capsys):
    out = tmp_path / "out"
    assert call(*asked, *PLAIN, "--questions", 1, "--out", out) == 0
    assert call(*asked, *PLAIN, "--questions", 2, "--out", out) == 2
    assert "another protocol.questions: 1, not 2" in capsys.readouterr().err
    journal, whole = out / "answers" / "sums.jsonl", (out / "results.json").read_text()
    rows = journal.read_text().splitlines()
    other = rows[0].replace('"question": 0', '"question": 7')
    changed = rows[0].replace('"right": false', '"right": null')
    assert changed != rows[0]
    for text in (rows[0], changed, other, '{"question": 0}'):
        journal.write_text("\n".join([rows[0], text, ""]))
        (out / "results.json").write_text(json.dumps({"hashes": json.loads(whole)["hashes"]}))
        assert call(*asked, *PLAIN, "--questions", 1, "--out", out) == 2
        assert "holds an answer twice" in (err := capsys.readouterr().err) or "lacks one of" in err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--samples", 2], "would be 2 times the same answer; give --temperature"),
        (["--samples", 0], "samples must be"),
        (["--questions", 0], "questions must be"),
        (["--mode", "plain", "--system", "x"], "the mode plain is a text"),
        (["--mode", "chat"], "has no chat template"),
        (["--mode", "fast", "--template", "chatml"], "the template has no modes"),
        (["--tasks", "code.jsonl"], "done only with --allow-code-execution"),
        (["--tasks", "aime2024"], "needs --data"),
        (["--tasks", "hashes.jsonl"], "no task can be called hashes"),
    ],
)
def test_what_cannot_be_asked_is_one_sentence_and_nothing_is_written(
    options, message, asked, tmp_path, capsys, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    assert call(*asked, "--out", tmp_path / "out", *options) == 2
    err = capsys.readouterr().err
    assert message in err and len(err.splitlines()) == 1
    assert not (tmp_path / "out").exists()
