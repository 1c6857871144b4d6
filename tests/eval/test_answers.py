"""The answer that a text ends in, and numbers, letters and words that are equal."""

import time

import pytest

from pangu_jax.core.errors import InputError
from pangu_jax.eval.answers import equal, extract

TAGS = ("<think>", "</think>")


@pytest.mark.parametrize(
    ("kind", "text", "want"),
    [
        ("maths", r"so \boxed{\frac{1}{2}} and then \boxed{\frac{a}{b}}. Done 7", r"\frac{a}{b}"),
        ("maths", r"\boxed{\{1, 2\}} is it, \boxed{open", r"\{1, 2\}"),
        ("maths", r"\fbox {x}", "x"),
        ("maths", "The answer is $x+1$, as 5 shows.", "x+1"),
        ("maths", "The final answer is: **3/4**.\nI am 99 % sure.", "3/4"),
        ("maths", "Answer: 3.5. Check: 7", "3.5"),
        ("maths", "72/8 = <<72/8=9>>9\n#### 9", "9"),
        ("maths", "It costs 5 each, 15 in all.", "15"),
        ("maths", "I do not know", None),
        ("number", "The answer is 5 of the 8.", "5"),
        ("number", "10-3", "3"),
        ("number", "from 3 to -4", "-4"),
        ("number", "in all $1,234.50.", "1,234.50"),
        ("number", "a1 b_2", None),
        ("number", r"\boxed{12} of 13", "12"),
        ("number", r"\boxed{x = 24 \text{ cm}^2}", "24"),
        ("number", r"\boxed{18 \text{ apples in 3 bags}}", "18"),
        ("number", r"so \boxed{-\dfrac{1}{2}}", "-1/2"),
        ("number", r"\boxed{3 / 4}", "3/4"),
        ("number", "The answer is:\n- 18", "18"),
        ("number", "20 - 3 remain", "3"),
        ("letter", "The correct answer is (B) a fish, not C.", "B"),
        ("letter", r"\boxed{\text{C}}", "C"),
        ("letter", "A", "A"),
        ("letter", "D. a bird", "D"),
        ("letter", "A fish is what I take", None),
        ("letter", "Of (A) and (C) it must be (C), I think", "C"),
        ("letter", "**Answer: E**", "E"),
        ("boolean", "Yes, but no. The answer is yes", "yes"),
        ("boolean", "So it is False.", "no"),
        ("boolean", "nothing", None),
        ("words", "First.\n\nThe answer is New York.", "New York"),
        ("words", "one\ntwo\n", "two"),
        (
            "code",
            "```python\na\n```\ntext\n```py\ndef f():\n    pass\n```\nmore",
            "def f():\n    pass\n",
        ),
        ("code", "```\nopen to the end", "open to the end"),
        ("code", "no block", None),
    ],
)
def test_the_answer_of_a_text(kind, text, want):
    found = extract(text, kind)
    assert (found.lstrip("$") if kind == "number" and found else found) == want


@pytest.mark.parametrize("text", ["\\boxed{" * 10000, "\\boxed{{" * 5000 + "}" * 5000])
def test_what_is_opened_again_and_again_takes_no_longer(text):
    begin = time.process_time()
    assert extract(text, "words") is not None
    assert time.process_time() - begin < 5


@pytest.mark.parametrize(
    ("text", "want"),
    [("<think>1</think>2", "2"), ("<think>it is 1", None), ("1</think>2", "2"), ("3", "3")],
)
def test_what_is_thought_is_no_answer(text, want):
    assert extract(text, "number", thinking=TAGS) == want


@pytest.mark.parametrize(
    ("kind", "gold", "answer", "want"),
    [
        ("number", "18", "$18.00", True),
        ("number", "1,000", "1000", True),
        ("number", "-3", "\u22123", True),
        ("number", "0.75", "3/4", True),
        ("number", "0.333333333", "0.3333333331", True),
        ("number", "0.33", "0.333", False),
        # An integer must be right to the last digit.
        ("number", "12345678901234567890", "12345678901234567891", False),
        ("number", "1", "1e999999999", False),
        ("number", "1", "1" * 10**6, False),
        ("number", "1", "1/0", True),
        ("number", "18", None, False),
        ("number", "none", "18", None),
        ("letter", "B", "(B)", True),
        ("letter", "(B)", "C", False),
        ("letter", "B", None, False),
        ("boolean", "True", "yes", True),
        ("boolean", "no", "yes", False),
        ("words", "New  York", "new york.", True),
        ("words", "New York", "York", False),
        ("words", "New York", None, False),
        ("maths", r"\frac12", "0.5", True),
    ],
)
def test_what_is_equal(kind, gold, answer, want):
    assert equal(gold, answer, kind) is want


@pytest.mark.parametrize("call", [lambda: extract("1", "sums"), lambda: equal("1", "1", "sums")])
def test_kinds_that_are_not_there_are_named(call):
    with pytest.raises(InputError, match="unknown kind of answer 'sums'; known: maths, number"):
        call()
    with pytest.raises(InputError, match="by running it"):
        equal("a", "a", "code")
