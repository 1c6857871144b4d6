"""Problems with worked steps: a question, the steps of a chain of thought, the final answer."""

import dataclasses
import re
from pathlib import Path
from typing import Any

from pangu_jax.core.errors import InputError
from pangu_jax.data.text import records

MARK = re.compile(r"<<[^<>]*>>")
FINAL = "####"


@dataclasses.dataclass(frozen=True)
class Problem:
    """A question with its worked answer.

    Attributes:
      question: its text.
      steps: the chain of thought, one text per step.
      answer: the final answer alone.
    """

    question: str
    steps: tuple[str, ...]
    answer: str


def read_problems(path: str | Path) -> list[Problem]:
    """The problems of a .jsonl or .jsonl.gz file.

    | a line has | its steps are |
    |---|---|
    | question, steps (a list), answer | those given (ProsQA) |
    | question, cot, answer | marks `<<3*4=12>>` if there are any (GSM8K-Aug); the terms of a written multiplication; else the lines |
    | question, answer that ends in `#### value` | the marks before it; the answer is the value (GSM8K) |

    Raises:
      InputError: no such file, a line of another form, or an empty question or answer; names the
        line.
    """  # noqa: E501 (a row of a table is one line)
    found = []
    for _, where, record in records(path, "question", "answer"):
        problem = _problem(record, where)
        for name in ("question", "answer"):
            if not getattr(problem, name).strip():
                raise InputError(f"{where} has an empty {name}")
        found.append(problem)
    return found


def _problem(record: dict[str, Any], where: str) -> Problem:
    question, answer = record["question"], record["answer"]
    if "steps" in record:
        steps = record["steps"]
        if not isinstance(steps, list) or not all(isinstance(step, str) for step in steps):
            raise InputError(f"{where}: steps must be a list of texts, got {steps!r:.60}")
        return Problem(question, tuple(steps), answer)
    if "cot" in record:
        if not isinstance(record["cot"], str):
            raise InputError(f"{where}: cot must be a text, got {record['cot']!r:.60}")
        return Problem(question, split_chain(record["cot"]), answer)
    chain, mark, value = answer.rpartition(FINAL)
    if not mark:
        raise InputError(
            f"{where} has neither steps nor cot, and its answer does not end in {FINAL!r} and a "
            "value"
        )
    return Problem(question, tuple(MARK.findall(chain)), value.strip())


def split_chain(chain: str) -> tuple[str, ...]:
    """The steps of a chain: its marks, the terms of a sum of digits, or its lines."""
    if marks := MARK.findall(chain):
        return tuple(marks)
    if re.fullmatch(r"[0-9+() ]+", chain):
        return tuple(re.split(r" (?=\+ )", chain))
    return tuple(line for line in chain.splitlines() if line.strip())
