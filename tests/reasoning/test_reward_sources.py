"""What single sources make of answers."""

import pytest

from pangu_jax.reasoning.code_tasks import CodeTask
from pangu_jax.reasoning.reward import ROUTES, Sample, Scale, grade
from pangu_jax.reasoning.reward_sources import (
    answer,
    code,
    format_of,
    judge_prompt,
    judged_by_model,
    per_sample,
    preferred_by_model,
    repeats,
    too_long,
    verdict,
)

TAGS = ("<think>", "</think>")
TESTS = ("assert f(1) == 2", "assert f(2) == 4", "assert f(3) == 6")


def said(text, kind="number", gold="2", **more):
    return Sample("q", text, text, kind, gold, **more)


@pytest.mark.parametrize(
    ("sample", "value", "failed"),
    [
        (said("It is 2."), 1.0, False),
        (said("It is 3."), 0.0, False),
        (said("It is"), 0.0, False),
        (said("2", gold="none"), None, False),
        (said("2", gold=""), None, False),
        (said("2", "general"), None, False),
        (said(r"\boxed{\frac{1}{2}}", "maths", "0.5"), 1.0, False),
        (said("2", "maths", "..."), None, False),
    ],
)
def test_an_answer_is_right_wrong_or_nothing_to_compare_with(sample, value, failed):
    found = answer(sample)
    assert (found.value, found.failed) == (value, failed), found


def test_what_cannot_be_compared_in_time_is_a_failure(monkeypatch):
    hang = lambda gold, found, kind: None if found != gold else True  # noqa: E731
    monkeypatch.setattr("pangu_jax.eval.answers.equal", hang)
    found = answer(said(r"\boxed{9^{9^{9}}}", "maths"))
    assert found.failed and found.value is None and "in time" in found.evidence


def test_threads_change_no_score():
    of = [said(f"It is {i % 4}.", gold=str(i % 3)) for i in range(60)]
    assert (
        per_sample(answer, 8)(of) == per_sample(answer, 1)(of) == [answer(sample) for sample in of]
    )


def test_one_sample_that_a_judge_chokes_on_is_one_failure():
    def judge(sample):
        return answer(sample) if sample.gold == "2" else 1 / 0

    found = per_sample(judge)([said("2"), said("2", gold="3")])
    assert [score.failed for score in found] == [False, True] and "ZeroDiv" in found[1].evidence
    graded = grade([said("2"), said("2", gold="3")], ROUTES, {"answer": per_sample(judge)})
    assert graded.usable.tolist() == [True, False] and graded.reward[0] == 1 and graded.failed == 1


def block(text):
    return f"So:\n```python\n{text}\n```"


@pytest.mark.parametrize(
    ("text", "shown", "value", "binary", "evidence"),
    [
        ("no block", 1, 0.0, 0.0, "no block"),
        (block("def f(:"), 1, 0.0, 0.0, "SyntaxError"),
        (block("1 / 0"), 1, 0.1, 0.0, "ZeroDivisionError"),
        (block("def f(x): return 'secret' + x"), 1, 0.1, 0.0, "shown 0 of 1 tests: TypeError"),
        (block("def f(x): return 2"), 1, 0.2, 0.0, "0 of 2 hidden tests"),
        (block("def f(x): return min(2 * x, 4)"), 1, 0.6, 0.0, "1 of 2 hidden tests"),
        (block("def f(x): return 2 * x"), 1, 1.0, 1.0, "2 of 2"),
        (block("def f(x): return 2 * x") + block("print(f(1))"), 1, 1.0, 1.0, "2 of 2"),
        (block("def f(x): return min(2 * x, 4)"), 3, 0.7, 0.0, "2 of 3 tests: AssertionError"),
        (block("def f(x): return {}[x]"), 0, 0.1, 0.0, "0 of 3 tests"),
    ],
)
def test_code_in_stages(text, shown, value, binary, evidence):
    task = CodeTask("", TESTS, ("f",), "", "", "", shown)
    sample = Sample("q", text, text, "code", code=task)
    (found,) = code(allow=True)([sample])
    assert found.value == pytest.approx(value) and evidence in found.evidence, found
    if not shown:  # what hidden tests raise would tell of them
        assert found.evidence == evidence
    (found,) = code(allow=True, binary=True)([sample])
    assert found.value == binary


def test_code_that_may_not_be_run_is_a_failure_and_not_wrong():
    task = CodeTask("", TESTS, ("f",), "", "", "")
    (found,) = code(allow=False)([Sample("q", "", block("f = abs"), "code", code=task)])
    assert found.failed and "--allow-code-execution" in found.evidence
    assert code(allow=True)([Sample("q", "", "", "code")])[0].value is None


def test_form_repetition_and_length():
    thought = Sample("q", "<think>a</think>b", "b", mode="fast", tokens=90, budget=100)
    (found,) = format_of(TAGS)([thought])
    assert found.value == 0 and "none was asked for" in found.evidence
    assert format_of(None)([thought])[0].value == 1
    assert too_long(thought).value == pytest.approx(0.5)
    assert too_long(Sample("q", "", "", mode="slow", tokens=90, budget=100)).value is None
    assert repeats(Sample("q", "so it is " * 99, "")).value > 0.9


def test_preferences_are_places_among_earlier_ones():
    source = preferred_by_model(
        lambda of: [float(s.said) for s in of], Scale((1.0, 2.0, 3.0)).place
    )
    values = [x.value for x in source([Sample("q", "", "0"), Sample("q", "", "5")])]
    assert values == [0, 1]


@pytest.mark.parametrize(
    ("reply", "value", "failed"),
    [
        ("Yes.", 1.0, False),
        ("**no**, yes", 0.0, False),
        ("There is no mistake: yes.", 1.0, False),
        ("There is no mistake in it", None, True),
        ("I know not", None, True),
    ],
)
def test_an_evaluator_says_yes_or_no_or_fails(reply, value, failed):
    assert (verdict(reply).value, verdict(reply).failed) == (value, failed)
    sample = said("It is 7.", gold="8")
    prompts = []
    found = judged_by_model(lambda texts: prompts.extend(texts) or [reply])([sample])
    assert found == [verdict(reply)] and "It is 7." in prompts[0] and "answer:\n8" in prompts[0]
    assert "Reference" not in judge_prompt(said("2", gold=""))
