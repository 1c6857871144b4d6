"""The answer that a text ends in, and numbers, letters and words that are equal."""

import time

import pytest

from pangu_jax.core.errors import InputError
from pangu_jax.eval.answers import KINDS, equal, extract

TAGS = ("<think>", "</think>")


# The kind of an answer, a text, and the answer that it ends in.
TEXTS = [
    ("maths", r"so \boxed{\frac{1}{2}} and then \boxed{\frac{a}{b}}. Done 7", r"\frac{a}{b}"),
    ("maths", r"\boxed{\{1, 2\}} is it, \boxed{open", r"\{1, 2\}"),
    ("maths", r"\fbox {x}", "x"),
    ("maths", r"It is \boxed{7} of 9, put within \boxed{}.", "7"),
    ("maths", "The answer is $18. She pays $5.", "$18"),
    ("maths", "The answer is $$\n18\n$$ and", "18"),
    ("maths", r"The answer is \(x + 1\).", "x + 1"),
    ("maths", r"The answer is $\$11,\! 111$.", r"\$11,\! 111"),
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
    ("number", "The answer is $5 + $10 = $15.", "15"),
    ("number", "The answer is $20 - $5 = $15", "15"),
    ("number", "The answer is $15*2=$30.", "30"),
    ("number", "Answer: $1,000 - $400 = $600", "600"),
    ("number", "The answer is $x = 5$.", "5"),
    ("number", "It is 1024 = 2^10.", "1024"),
    ("number", r"\boxed{2^{10}}", "2^{10}"),
    ("number", "room12 and x_12", None),
    ("number", r"\boxed{\frac{-1}{2}}", r"\frac{-1}{2}"),
    ("letter", "The answer is B, and I am confident.", "B"),
    ("letter", "The answer is D, and A is wrong", "D"),
    ("letter", "The answer is A and B.", None),
    ("letter", "A and B are both right", None),
    ("letter", "The answer is most likely C", "C"),
    ("number", r"\boxed{18 \text{ apples in 3 bags}}", "18"),
    ("number", r"so \boxed{-\dfrac{1}{2}}", r"-\dfrac{1}{2}"),
    ("number", r"\boxed{3 / 4}", "3 / 4"),
    ("number", "The answer is:\n- 18", "18"),
    ("number", "20 - 3 remain", "3"),
    ("number", r"\boxed{3 \times 4 = 12}", "12"),
    ("number", r"\boxed{10 = 2x}", "10"),
    ("number", r"\boxed{2^3}", "2^3"),
    ("number", r"\boxed{18 000}", "18000"),
    ("number", "The answer is 3 * 4 = 12.", "12"),
    ("number", "The answer is 12, where x = 3.", "12"),
    ("number", "The answer is 12 (as 3 * 4 = 12).", "12"),
    ("number", "The answer is 20% of 50 = 10 pounds", "10"),
    ("number", "Answer: Tom has 3 and gets 2 more, so 3 + 2 = 5.", "5"),
    ("number", "Answer:\nStep 1: Add all 3 and 2.\n3 + 2 = 5.\nIn total 5.", "5"),
    ("number", "Is the answer is 4? No: 5", "5"),
    ("number", "It is 24 cm^2", "24"),
    ("number", "1. It is 8 + 4 = 12\n2. We know that", "12"),
    ("number", "It is\n12.\n", "12"),
    ("number", "She eats 1/2", "1/2"),
    ("number", "So 2 1/2 of it", "2 1/2"),
    ("maths", "Answer: 5 (since 2 + 3 = 5)", "5"),
    ("letter", "The correct answer is (B) a fish, not C.", "B"),
    ("letter", "The answer is option B.", "B"),
    ("letter", "The answer would be: the letter B", "B"),
    ("letter", r"\boxed{\mathrm{B}}", "B"),
    ("letter", r"\boxed{\textbf{(B)}}", "B"),
    ("letter", r"\boxed{\text{Option B}}", "B"),
    ("letter", "A and C are wrong. So the correct option is B.", "B"),
    ("letter", "The answer is clear. Option A is wrong, thus B is right.", "B"),
    ("letter", "(B) is correct. (A) is wrong.", "B"),
    ("letter", "A is not correct, I choose B", "B"),
    ("letter", "A is right? No, B is correct", "B"),
    ("letter", "(A) is near, (B) is nearer", "B"),
    ("letter", "The answer is not A.", None),
    ("letter", "The answer is A or B", None),
    ("letter", "The answer is A, because a fish is one", "A"),
    ("letter", "The answer is A because of that", "A"),
    ("letter", "The answer is A fish", None),
    ("letter", "**Final Answer**\n\nB", "B"),
    ("letter", "Answer:\n\n**(b)**", "B"),
    ("letter", "答案是B。", "B"),
    ("letter", r"\boxed{\text{C}}", "C"),
    ("letter", "A", "A"),
    ("letter", "D. a bird", "D"),
    ("letter", "A fish is what I take", None),
    ("letter", "Of (A) and (C) it must be (C), I think", "C"),
    ("letter", "**Answer: E**", "E"),
    ("boolean", "Yes, but no. The answer is yes", "yes"),
    ("boolean", "So it is False.", "no"),
    ("boolean", "That is not true.", "no"),
    ("boolean", "So it is not false", "yes"),
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
]


@pytest.mark.parametrize(("kind", "text", "want"), TEXTS)
def test_the_answer_of_a_text(kind, text, want):
    found = extract(text, kind)
    assert (found.lstrip("$") if kind == "number" and found else found) == want


@pytest.mark.parametrize("text", ["\\boxed{" * 10000, "\\boxed{{" * 5000 + "}" * 5000])
def test_what_is_opened_again_and_again_takes_no_longer(text):
    begin = time.process_time()
    assert extract(text, "words") is not None
    assert time.process_time() - begin < 5


PARTS = (
    "the ",
    " ",
    "1 ",
    "$",
    "10 ",
    "answer is ",
    "answer:\n\\( a b c d e f\n",
    "\\frac{1}",
    "1,",
)


@pytest.mark.parametrize(
    "part", [*PARTS, "A or ", "option ", "it is the option ", "\\text{", "1/1"]
)
def test_what_comes_again_and_again_takes_no_longer(part):
    begin = time.process_time()
    for kind in KINDS:
        extract(part * 5_000, kind)
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
        ("number", "3", "-3", False),
        ("number", "-3", "3", False),
        ("number", "0.75", "3/4", True),
        ("number", "0.333333333", "0.3333333331", True),
        ("number", "0.33", "0.333", False),
        ("number", "0.5", "0.50001", False),
        # An integer must be right to the last digit.
        ("number", "12345678901234567890", "12345678901234567891", False),
        ("number", "1", "1e999999999", False),
        ("number", "1", "1" * 10**6, False),
        ("number", "1", "1/0", False),
        ("number", "1", r"\frac{1}{0}", False),
        ("number", "1.5", r"1\frac{1}{2}", True),
        ("number", "1.5", "1 1/2", True),
        ("number", "-1.5", r"-1\frac12", True),
        ("number", "0.5", r"\frac12", True),
        ("number", "1500", r"1.5 \times 10^{3}", True),
        ("number", "0.001", "10^-3", True),
        ("number", "2000", "$2 thousand", True),
        ("number", "18000", r"18\,000", True),
        ("number", "18000", "18{,}000", True),
        ("number", "-5", r"-\$5", True),
        ("number", "1.75", r"\frac{3.5}{2}", True),
        ("number", "125", r"\frac{1,000}{8}", True),
        ("number", "-3.5", r"\frac{7}{-2}", True),
        ("number", "10", r"\frac{10}{x}", False),
        ("number", "0", "2^{10}", False),
        ("number", "3", "3 + 4", False),
        ("number", "2", "2^3", False),
        ("number", "9", r"\sqrt{9}", False),
        ("number", "45", r"45^\circ", True),
        ("number", "20", r"20\%", True),
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
        ("maths", "18", "$18", True),
        ("maths", "1500", "1.5e3", True),
        ("maths", "1234", r"1\,234", True),
        ("maths", "1234", r"12\,34", False),
        # Letters of a formula are variables, not units.
        ("maths", "m+s", "s+m", True),
        ("maths", "h^2+s^2", "s^2+h^2", True),
        ("maths", "x = 24 cm", "24 m", False),
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
