"""Whether answers are right, and what a task's answers come to."""

import pytest

from pangu_jax.core.errors import InputError
from pangu_jax.eval import answers_maths
from pangu_jax.reasoning import bench
from pangu_jax.reasoning.bench_tasks import Item, Task
from pangu_jax.reasoning.code_tasks import CodeTask

CODE = Item("", "code", code=CodeTask("", ("assert f() == 1", "assert f()"), ("f",), "", "", ""))


def task(item):
    return Task("own", None, "", (item,))


@pytest.mark.parametrize(
    ("item", "found", "right", "why"),
    [
        (Item("", "number", "2"), "2.0", True, None),
        (Item("", "number", "2"), "3", False, None),
        (Item("", "number", "none"), "3", None, "cannot be compared"),
        (Item("", "number", "2"), None, False, "no answer found"),
        (CODE, "def f(): return 1", True, None),
        (CODE, "def f(): return 2", False, "1 of 2 tests: AssertionError"),
        (Item("", "code", code=CodeTask("", ("a b",), ("f",), "", "", "")), "f = 1", None,
         "the tests cannot be run: SyntaxError"),
    ],
)  # fmt: skip
def test_an_answer_is_right_wrong_or_cannot_be_told(item, found, right, why):
    judged = bench.judge(item, found, allow_code=True)
    assert judged.right is right and (judged.why or "").startswith(why or "")


def test_a_process_that_cannot_be_started_says_nothing_of_the_answer(monkeypatch):
    monkeypatch.setattr(answers_maths, "_JUDGES", [answers_maths.Judge(workers=1)])
    monkeypatch.setattr("sys.executable", "/nowhere/python")
    judged = bench.judge(Item("", "maths", "2"), "2")
    assert judged.right is None and "cannot start Python" in judged.why


def test_code_is_not_run_unless_that_is_allowed(monkeypatch):
    with pytest.raises(InputError, match=r"own is judged by running .*--allow-code-exec"):
        bench.check_judges([task(CODE)], allow_code=False)
    assert bench.judge(CODE, "def f(): return 1").right is None
    monkeypatch.setattr("pangu_jax.reasoning.sandbox.backend", lambda: pytest.fail("asked"))
    bench.check_judges([task(Item("", "number", "2"))], allow_code=False)


def test_what_was_not_judged_is_counted_and_is_not_zero():
    rows = [(0, True), (0, False), (1, None), (1, True), (2, None), (2, None)]
    found = [
        {"question": q, "right": right, "found": "a" if q else None, "tokens": 10 * q, "end": end}
        for (q, right), end in zip(rows, ["stop", "length"] * 3, strict=True)
    ]
    cell = bench.figures(found, 3, 2, seed=0)
    assert cell["avg"]["value"] == pytest.approx((0.5 + 1) / 2) and cell["avg"]["questions"] == 2
    assert cell["pass"]["2"]["value"] == 1 and cell["pass"]["2"]["questions"] == 1
    assert [cell[k] for k in ("answers", "format_errors", "cut_off", "not_judged")] == [6, 2, 3, 3]
    assert cell["tokens"]["value"] == 10
    empty = bench.figures([{**found[2], "question": 0}], 1, 1, seed=0)
    assert empty["avg"] == {"value": None, "low": None, "high": None, "questions": 0}


@pytest.mark.parametrize(("samples", "want"), [(1, [1]), (4, [1, 2, 4]), (6, [1, 2, 4, 6])])
def test_the_k_that_are_measured(samples, want):
    assert bench.powers(samples) == want
