"""Benchmarks' files as they are handed around, and what is refused of them."""

import base64
import json
import os
import pickle
import zlib

import pytest

from pangu_jax.core.errors import InputError
from pangu_jax.reasoning import sandbox
from pangu_jax.reasoning.bench_tasks import find_tasks, read_items
from pangu_jax.reasoning.code_tasks import CodeTask, livecodebench

SVAMP = {"Body": "Tom has 3 pears", "Question": "How many?", "Answer": 3.0}
TURNS = {"prompt": [{"from": "user", "value": "1+1?"}], "final_answer": "2"}
GPQA = """Question,Correct Answer,Incorrect Answer 1,Incorrect Answer 2,Incorrect Answer 3
"Why,
so?",a,b,c,d
How?,a,b,c,d
Who?,a,b,c,d
"""
CASES = [{"input": "2\n3\n", "output": "5\n", "testtype": "stdin"}]
CALLS = [{"input": "[1, 2]\n3", "output": "[4, 5]", "testtype": "functional"}]


def packed(value):
    return base64.b64encode(zlib.compress(pickle.dumps(value))).decode()


def live(cases, hidden, start="", metadata="{}"):
    texts = {"public_test_cases": json.dumps(cases), "private_test_cases": hidden}
    return {"question_content": "Add.", "starter_code": start, "metadata": metadata, **texts}


def write(folder, *records, name="tasks.jsonl"):
    (folder / name).write_text("".join(json.dumps(record) + "\n" for record in records))
    return folder / name


@pytest.mark.parametrize(
    ("record", "kind", "gold", "question"),
    [
        ({"question": "q", "answer": "so 1,000\n#### 1,000"}, "number", "1,000", "q"),
        ({"question": "q", "answer": "x+1"}, "maths", "x+1", "q"),
        ({"prompt": "q", "answer": "B", "kind": "letter"}, "letter", "B", "q"),
        (SVAMP, "number", "3", "Tom has 3 pears. How many?"),
        ({**SVAMP, "Answer": 2.5, "Body": "A."}, "number", "2.5", "A. How many?"),
        (TURNS, "maths", "2", "1+1?"),
    ],
)
def test_the_form_of_a_file_is_told_by_its_keys(record, kind, gold, question, tmp_path):
    (item,) = read_items(write(tmp_path, record))
    assert (item.kind, item.gold, item.question) == (kind, gold, question)


def test_gpqa_s_choices_are_in_an_order_of_their_own_that_never_changes(tmp_path):
    (tmp_path / "gpqa_diamond.csv").write_text(GPQA)
    (task,) = find_tasks("gpqa", tmp_path)
    assert [item.question.split("\n\n")[0] for item in task.items] == ["Why,\nso?", "How?", "Who?"]
    for item in task.items:
        assert f"({item.gold}) a" in item.question
    assert len({item.gold for item in task.items}) > 1
    assert task.items == find_tasks("gpqa", tmp_path)[0].items


def test_programs_of_livecodebench_read_and_print(tmp_path):
    (task,) = livecodebench(write(tmp_path, live(CASES, packed(json.dumps(CASES * 2)))))
    assert (len(task.tests), task.shown, task.program) == (3, 1, True)
    assert task.names and not task.asked  # `run` is our own name for it
    sandbox.backend()
    right = "import sys\nprint(sum(map(int, sys.stdin.read().split())), '')\nsys.exit()"
    opened = "a, b = open(0)\nprint(float(a) + float(b))"
    # As in the released runner: names of its imports, and what ends an interactive session.
    known = "print(reduce(add, map(int, stdin.read().split())))\nexit()"
    for source in (right, opened, known, "print(int(input()) + int(input()))\nquit()"):
        assert task.judge(source, allow=True).right, source
    assert not task.judge("print(5, 5)", allow=True).passed
    assert not task.judge("print('", allow=True).loaded


def test_functions_of_livecodebench_are_methods_of_solution(tmp_path):
    record = live(CALLS, json.dumps(CALLS), "class Solution:\n  def f(", '{"func_name": "f"}')
    (task,) = livecodebench(write(tmp_path, record))
    assert "class Solution" in task.prompt and task.names == ("Solution",)
    body = "class Solution:\n  def f(self, xs, n):\n    return tuple(x + {} for x in xs)"
    assert task.judge(body.format("n"), allow=True).right
    assert task.judge(body.format("1"), allow=True).passed == 0


class Harm:
    def __reduce__(self):
        return os.mkdir, ("harmed",)


@pytest.mark.parametrize(
    ("record", "message"),
    [
        (live(CASES, packed(Harm())), "something else than one text"),
        (live(CASES, packed(["a"])), "something else than one text"),
        (live(CASES, "!"), "no packed text"),
        (live(CASES, packed("{")), "JSON"),
        (live([{"input": 1}], "[]"), "must be a list of objects"),
        (live([], "[]"), "no test cases"),
        (live(CALLS, "[]"), "no func_name"),
        ({"question": 1, "answer": "1"}, "no text under the key 'question'"),
        ({"question": "q", "answer": "1", "kind": "sum"}, "the kind 'sum'; known: maths"),
        ({**SVAMP, "Answer": True}, "no number under the key 'Answer'"),
        ({**TURNS, "prompt": []}, '"prompt" of one turn'),
        ({"other": 1}, "has the keys other; known forms have prompt, entry_point"),
    ],
)
def test_lines_of_another_form_are_named(record, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=message):
        read_items(write(tmp_path, record))
    assert not (tmp_path / "harmed").exists()


@pytest.mark.parametrize(
    ("names", "data", "message"),
    [
        ("gsm8k", None, "needs --data, the folder with gsm8k_test.jsonl"),
        ("gpqa", ".", "it would be one of gpqa_diamond.csv, gpqa_diamond.csv.gz, gpqa_main"),
        ("gsm9k", ".", "'gsm9k', which is no file that ends in .jsonl"),
        (",", ".", "names none"),
        ("tasks.jsonl,./tasks.jsonl", None, "two tasks of the name 'tasks'"),
        ("gone.jsonl", None, "gone.jsonl"),
        ("short.csv", None, "no column 'Correct Answer'"),
    ],
)
def test_tasks_that_are_not_there_are_named(names, data, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write(tmp_path, SVAMP)
    (tmp_path / "short.csv").write_text("Question\na\n")
    with pytest.raises(InputError, match=message):
        find_tasks(names, data)


TASK = CodeTask("", (), ("f",), "", "import math\n\ndef f(x):\n", "")


@pytest.mark.parametrize(
    ("answer", "want"),
    [("    return 2 * x\n", 6), ("def f(x):\n    return math.floor(x)\n", 3), ("  return (", None)],
)
def test_an_answer_is_a_continuation_or_stands_by_itself(answer, want):
    found = {}
    try:
        exec(TASK.source(answer), found)
        assert found["f"](3) == want
    except SyntaxError:
        assert want is None


def test_the_files_of_names_are_all_readable(data_dir):
    names = "gsm8k,math500,aime2024,aime2025,amc23,svamp,humaneval,mbpp"
    sizes = [len(task.items) for task in find_tasks(names, data_dir / "reasoning")]
    assert sizes == [1319, 500, 30, 30, 40, 1000, 164, 500]
