"""HumanEval and MBPP as tasks: what is the answer's, and what is the tests'."""

import json

import pytest

from pangu_jax.core.errors import InputError
from pangu_jax.reasoning import code_tasks
from pangu_jax.reasoning.code_tasks import humaneval, mbpp

PROMPT = "import math\n\ndef helper(x):\n    return x\n\ndef f(x):\n    '''Says x.'''\n"
EVAL = {
    "prompt": PROMPT,
    "entry_point": "f",
    "canonical_solution": "    return helper(x)\n",
    "test": "def check(candidate):\n    assert candidate(1) == helper(1)\n",
}
MBPP = {"prompt": "Write f.", "code": "class P: pass\ndef f(): pass\nN = 1\n", "test": ["f()"]}


def write(folder, record):
    (folder / "tasks.jsonl").write_text(json.dumps(record) + "\n")
    return folder / "tasks.jsonl"


def test_helpers_of_a_prompt_are_the_tests_and_the_function_is_the_answers(tmp_path):
    (task,) = humaneval(write(tmp_path, EVAL))
    assert task.names == ("f",) and task.tests[0].endswith("check(f)\n")
    assert task.setup == "import math\n\ndef helper(x):\n    return x"
    assert task.before + task.reference == PROMPT + "    return helper(x)\n"


def test_names_of_mbpp_are_those_that_the_reference_defines(tmp_path):
    (task,) = mbpp(write(tmp_path, MBPP))
    assert task.names == ("N", "P", "f") and task.tests == ("f()",) and not task.before


@pytest.mark.parametrize(
    ("read", "record", "message"),
    [
        (humaneval, {**EVAL, "prompt": "def f(:"}, "line 1.*the prompt is no Python"),
        (humaneval, {**EVAL, "test": 1}, "test"),
        (mbpp, {**MBPP, "test": []}, 'no list of texts under "test"'),
        (mbpp, {**MBPP, "test": [1]}, 'no list of texts under "test"'),
        (mbpp, {**MBPP, "code": "def"}, "the code is no Python"),
    ],
)
def test_lines_of_another_form_are_named(read, record, message, tmp_path):
    with pytest.raises(InputError, match=message):
        read(write(tmp_path, record))


@pytest.mark.parametrize("code", ["x = " + "not " * 20_000 + "x", "x = x" + " + x" * 20_000])
def test_code_that_is_too_deep_to_be_read_is_refused(code):
    with pytest.raises(InputError, match="the answer is no Python"):
        code_tasks._parsed(code, "the answer")
