"""Tasks: what is trained on and measured on, kept apart."""

import dataclasses
import gzip
import json
import re

import pytest

from pangu_jax.core.errors import InputError
from pangu_jax.data.chain_of_thought import Problem
from pangu_jax.data.prosqa import draw_prosqa, symbols
from pangu_jax.reasoning.latent.task import encode_task, located, read_task, words_of


def written(path, *questions):
    rows = [{"question": q, "steps": ["a b"], "answer": "c"} for q in questions]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def asked(problems):
    return [problem.question for problem in problems]


def test_no_question_is_trained_on_and_measured_on(tmp_path):
    drawn = read_task("mult1x1", test=None, problems=200, tests=30)
    assert len(drawn.testing) == 30 and 0 < len(drawn.training) < 200
    assert not set(asked(drawn.testing)) & set(asked(drawn.training))
    pairs = [
        {tuple(sorted(q.split(" * "))) for q in asked(x)} for x in (drawn.testing, drawn.training)
    ]
    assert not pairs[0] & pairs[1]  # "7 * 3" tells what "3 * 7" is
    path = written(tmp_path / "all.jsonl", *"pqrqs")
    task = read_task(path, test=None, problems=1, tests=2)
    assert asked(task.testing) == ["q", "s"] and asked(task.training) == ["p", "r"]
    other = written(tmp_path / "test.jsonl", *"rxy")
    task = read_task(path, test=other, problems=1, tests=2)
    assert asked(task.testing) == ["r", "x"] and asked(task.training) == ["p", "q", "q", "s"]


def test_a_name_stands_for_files_and_no_test_question_is_trained_on(tmp_path):
    assert located("mult2x2", "file", None) == ("mult2x2", "file")
    with pytest.raises(InputError, match=r"gsm8k needs --data, the folder with gsm8k_train.jsonl"):
        located("gsm8k", None, None)
    worked = "a <<1+1=2>>2\n#### 2"
    rows = [{"question": f"q {i}?", "answer": worked} for i in range(3)]
    with gzip.open(tmp_path / "gsm8k_train.jsonl.gz", "wt") as file:
        file.write("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(InputError, match=r"no file gsm8k_test.jsonl or gsm8k_test.jsonl.gz"):
        located("gsm8k", None, tmp_path)
    (tmp_path / "gsm8k_test.jsonl").write_text(json.dumps(rows[1]) + "\n")
    name, test = located("gsm8k", None, tmp_path)
    task = read_task(name, test=test, problems=1, tests=9)
    assert asked(task.testing) == ["q 1?"] and asked(task.training) == ["q 0?", "q 2?"]
    assert task.training[0].steps == ("<<1+1=2>>",) and task.training[0].answer == "2"
    assert located("gsm8k", "mine", tmp_path) == (name, "mine")
    assert located("gsm8k", "mine", None, trains=False) == ("gsm8k", "mine")


def test_drawn_tests_are_the_same_for_every_training_seed():
    one, two = (read_task("mult2x2", test=None, problems=9, tests=5, seed=s) for s in (0, 1))
    assert one.testing == two.testing and one.training != two.training
    assert one.chance is None and read_task("prosqa", test=None, problems=1, tests=1).chance == 0.5


def test_prosqa_in_symbols_takes_its_tests_from_the_same_file(tmp_path):
    rows = [dataclasses.asdict(x) for x in draw_prosqa(2, seed=7)]
    path = tmp_path / "tests.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    task = read_task("prosqa-symbols", test=path, problems=2, tests=2)
    wanted = [symbols(Problem(**row)).answer for row in rows]
    assert [x.answer for x in task.testing] == wanted
    assert len(task.training) == 2 and task.chance == 0.5
    assert all(x.question.split()[-2] == "?" for x in (*task.training, *task.testing))


def test_a_task_as_ids(tmp_path):
    task = read_task(written(tmp_path / "all.jsonl", *"pqr"), test=None, problems=1, tests=1)
    ids = encode_task(task, words_of(task))
    assert ids.vocab == 2 + 6 + 4 and ids.longest == 2 + 1 + 2
    assert len(ids.training) == 2 and ids.testing[0].steps == ids.training[0].steps
    assert encode_task(task, {}).training[0].answer == (ord("c"),)


def test_words_without_a_token_are_refused_and_named(tmp_path):
    task = read_task(written(tmp_path / "all.jsonl", *"pqr"), test=None, problems=1, tests=1)
    files, asked = words_of(task), Problem("p q, p", ("a b",), "c")
    for other, word in (
        (dataclasses.replace(asked, question="p q, r"), "'q,'"),
        (dataclasses.replace(asked, question="p", steps=("a b", "b d")), "'d'"),
        (Problem("p", (), "e"), "'e'"),
    ):
        with pytest.raises(InputError, match=f"no token for {word}"):
            encode_task(dataclasses.replace(task, testing=[other]), files)
    assert encode_task(dataclasses.replace(task, testing=[asked]), {})  # bytes have all


def test_texts_with_a_marker_in_them_are_refused(tmp_path):
    """An answer would seem to end, or to begin, within itself, and never be right."""
    task = read_task(written(tmp_path / "all.jsonl", *"pqr"), test=None, problems=1, tests=1)
    for other, mark in (
        (Problem("p", (), "c <|endoftext|>"), "<|endoftext|>"),
        (Problem("p <|answer|> q", (), "c"), "<|answer|>"),
        (Problem("p", ("a b", "<|pause|>"), "c"), "<|pause|>"),
    ):
        with pytest.raises(InputError, match=re.escape(f"has the token {mark} in it")):
            encode_task(dataclasses.replace(task, training=[other]), words_of(task))
        assert encode_task(dataclasses.replace(task, training=[other]), {})  # bytes are bytes


def test_what_is_no_task_is_refused(tmp_path):
    for name, why in (
        ("mult", "known: mult4x4"),
        ("mult2x3", "the same number of digits"),
        (written(tmp_path / "one.jsonl", "p"), "no problem to train on"),
    ):
        with pytest.raises(InputError, match=why):
            read_task(name, test=None, problems=1, tests=1)
