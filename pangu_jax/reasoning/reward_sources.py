"""Sources of rewards: each judges samples by one thing."""

import functools
import re
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

from pangu_jax.eval import answers
from pangu_jax.reasoning.reward import (
    Sample,
    Score,
    Source,
    overlong,
    repetition,
    well_formed,
)

COMPILES, RUNS = 0.1, 0.2  # what code is worth that gets so far
JUDGE = """Question:
{question}

Answer:
{answer}
{gold}
Is the answer correct? Reply with one word, yes or no."""


def per_sample(judge: Callable[[Sample], Score], threads: int = 1) -> Source:
    """A source that judges samples one by one; an exception is a failure of that sample alone.

    Args:
      judge: a function that any thread may call.
      threads: number of threads.
    """

    def one(sample: Sample) -> Score:
        try:
            return judge(sample)
        except Exception as error:  # whatever a library makes of what a model wrote
            return Score(None, f"{type(error).__name__}: {error}", failed=True)

    def every(samples: Sequence[Sample]) -> list[Score]:
        with ThreadPoolExecutor(max(1, threads)) as pool:
            return list(pool.map(one, samples))

    return every


def answer(sample: Sample) -> Score:
    """Scores an answer 1 if `answers` finds it right, else 0.

    It does not apply without a right answer that can be parsed. A comparison that takes too long is
    a failure.
    """
    if sample.kind not in answers.KINDS or sample.kind == "code" or not sample.gold:
        return Score(None, "there is nothing to compare with")
    found = answers.extract(sample.said, sample.kind)
    if found is None:
        return Score(0.0, "no answer found")
    right = answers.equal(sample.gold, found, sample.kind)
    if right is not None:
        return Score(float(right), f"answered {found[:80]}")
    if answers.equal(sample.gold, sample.gold, sample.kind) is None:
        return Score(None, "the right answer cannot be read")
    return Score(None, f"{found[:80]!r} could not be compared in time", failed=True)


def code(*, allow: bool, binary: bool = False, threads: int = 4) -> Source:
    """Scores code in stages: compiled, run on tests that the model may see, then on the others.

    Text that is not code is worth 0, code that compiles 0.1, code that passes the shown tests 0.2,
    and the share of the others that pass makes up the rest. If all tests are shown, or none, there
    is no second stage. Errors of tests are evidence only if these are shown.

    Args:
      allow: whether code may be run; see `sandbox.run`.
      binary: 1 for code that passes everything, else 0.
      threads: sandboxes at once.
    """
    return per_sample(functools.partial(_code, allow=allow, binary=binary), threads)


def format_of(thinking: tuple[str, str] | None) -> Source:
    """1 for an answer of the form that was asked for, else 0; see `well_formed`."""

    def judge(sample: Sample) -> Score:
        wrong = well_formed(
            sample.text, thinking, mode=sample.mode, starts_in_thinking=sample.starts_in_thinking
        )
        return Score(0.0 if wrong else 1.0, wrong or "")

    return per_sample(judge)


def repeats(sample: Sample) -> Score:
    """Scores repetition in the text; see `reward.repetition`."""
    return Score(repetition(sample.text))


def too_long(sample: Sample) -> Score:
    """Scores how far a fast answer is into the last fifth of its budget; no other gets a score."""
    if sample.mode != "fast" or sample.budget is None:
        return Score(None)
    return Score(overlong(sample.tokens, sample.budget))


def preferred_by_model(
    score: Callable[[Sequence[Sample]], Sequence[float]], place: Callable
) -> Source:
    """Makes a source that ranks answers among earlier ones by a preference model.

    Args:
      score: scores samples, on any scale.
      place: maps a score to a value, such as `reward.Scale.place`.
    """

    def source(samples: Sequence[Sample]) -> list[Score]:
        return [Score(place(x), f"scored {x:.3g}") for x in score(samples)]

    return source


def judged_by_model(ask: Callable[[Sequence[str]], Sequence[str]]) -> Source:
    """Makes a source that asks a language model whether an answer is correct.

    A reply that neither begins nor ends with yes or no is a failure.

    Args:
      ask: replies to prompts, such as one of `llm_judge.make_asker`.
    """

    def source(samples: Sequence[Sample]) -> list[Score]:
        return [verdict(reply) for reply in ask([judge_prompt(sample) for sample in samples])]

    return source


def judge_prompt(sample: Sample) -> str:
    """The prompt for an evaluator, with the right answer if it is known."""
    gold = f"\nReference answer:\n{sample.gold}\n" if sample.gold else ""
    return JUDGE.format(question=sample.question, answer=sample.said.strip(), gold=gold)


def verdict(reply: str) -> Score:
    """The yes or no that a reply begins with, else that it ends with.

    One within a sentence does not count: "There is no mistake".
    """
    found = re.match(r"\W*(yes|no)\b", reply, re.I) or re.search(r"\b(yes|no)\W*$", reply, re.I)
    if found is None:
        return Score(None, f"the evaluator said {reply[:80]!r}", failed=True)
    return Score(float(found[1].lower() == "yes"), f"the evaluator said {found[1]}")


def _code(sample: Sample, *, allow: bool, binary: bool) -> Score:
    task = sample.code
    if task is None:
        return Score(None, "there is nothing to run")
    source = answers.code(sample.said, task.asked)
    if source is None:
        return Score(0.0, "no block of code found")
    shown, hidden = task.tests[: task.shown], task.tests[task.shown :]
    first = task.judge(source, allow=allow, tests=shown or hidden)
    if binary:
        every = first.right and (
            not (shown and hidden) or task.judge(source, allow=allow, tests=hidden).right
        )
        return Score(float(every))
    error = first.error or ""
    if not first.loaded:
        stops = error.startswith(("SyntaxError", "IndentationError", "TabError"))
        return Score(0.0 if stops else COMPILES, error)
    passed = f"{first.passed} of {first.total} tests"
    told = f"{passed}: {error}" if shown and error else passed
    if not (shown and hidden):
        return Score(COMPILES + (1 - COMPILES) * first.passed / first.total, told)
    if not first.right:
        return Score(COMPILES, f"of those that are shown {told}")
    rest = task.judge(source, allow=allow, tests=hidden)
    share = RUNS + (1 - RUNS) * rest.passed / rest.total
    return Score(share, f"{rest.passed} of {rest.total} hidden tests")
