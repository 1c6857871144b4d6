"""Whether answers to benchmarks are right, and what a task's answers come to."""

import dataclasses
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pangu_jax.core.digest import json_digest, sha256
from pangu_jax.core.errors import InputError
from pangu_jax.eval import answers, answers_child, answers_maths, pass_at_k
from pangu_jax.reasoning import bench_prompts, bench_tasks, code_tasks, sandbox, sandbox_child
from pangu_jax.reasoning.bench_tasks import Item, Task

RULES = (
    *(answers, answers_maths, answers_child, sandbox, sandbox_child),
    *(bench_prompts, bench_tasks, code_tasks, sys.modules[__name__]),
)


@dataclasses.dataclass(frozen=True)
class Judgment:
    """What is made of one answer.

    Attributes:
      right: None where that cannot be told; the answer is then left out, and counted.
      why: what went wrong, if anything is known of it.
    """

    right: bool | None
    why: str | None = None


def check_judges(tasks: Sequence[Task], *, allow_code: bool) -> None:
    """Nothing, if answers to the tasks can be judged here.

    Raises:
      InputError: they have to be run, which is not allowed or not possible, or compared by a
        library that is missing.
    """
    kinds = {item.kind: task.name for task in tasks for item in task.items}
    if "code" in kinds and not allow_code:
        raise InputError(
            f"the task {kinds['code']} is judged by running code that the model writes, which is "
            "done only with --allow-code-execution; --judge later keeps the answers until then"
        )
    if "code" in kinds:
        sandbox.backend()
    if "maths" in kinds:
        answers.equal("1", "1", "maths")


def judge(item: Item, found: str | None, *, allow_code: bool = False) -> Judgment:
    """Whether an answer is right.

    Args:
      item: the question.
      found: the answer that was found in what the model said; None is wrong.
      allow_code: whether code may be run; see `sandbox.run`.
    """
    if found is None:
        return Judgment(False, "no answer found")
    try:
        if item.code is None:
            right = answers.equal(item.gold, found, item.kind)
            return Judgment(right, "cannot be compared" if right is None else None)
        verdict = item.code.judge(found, allow=allow_code)
    except InputError as error:  # a process cannot be started, say
        return Judgment(None, str(error))
    passed = f"{verdict.passed} of {verdict.total} tests"
    why = None if verdict.right else f"{passed}: {verdict.error or 'not passed'}"
    return Judgment(verdict.right, why)


def rules() -> str:
    """SHA-256 of the code that finds and judges answers."""
    return json_digest([sha256(Path(str(module.__file__))) for module in RULES])


def powers(samples: int) -> list[int]:
    """The k of pass@k that are measured: 1, 2, 4, ..., and all."""
    return sorted({1 << i for i in range(samples.bit_length())} | {samples})


def figures(
    found: Iterable[Mapping[str, Any]], questions: int, samples: int, *, seed: int
) -> dict[str, Any]:
    """What the answers to a task come to, as JSON values; null where nothing was measured.

    Args:
      found: for each answer "question" (from 0), "right", "found", "tokens" and "end".
      questions: how many there are.
      samples: answers of each.
      seed: of the interval of lengths.
    """
    right, tried, tokens = (np.zeros(questions, int) for _ in range(3))
    count = unanswered = cut = 0
    for answer in found:
        i = answer["question"]
        tried[i] += answer["right"] is not None
        right[i] += answer["right"] is True
        tokens[i] += answer["tokens"]
        count += 1
        unanswered += answer["found"] is None
        cut += answer["end"] == "length"
    return {
        "questions": questions,
        "answers": count,
        "avg": _shown(pass_at_k.avg_at_k(right, tried)),
        "pass": {str(k): _shown(pass_at_k.pass_at(k, right, tried)) for k in powers(samples)},
        "tokens": _shown(pass_at_k.mean(tokens / samples, seed=seed)),
        "format_errors": unanswered,
        "cut_off": cut,
        "not_judged": count - int(tried.sum()),
    }


def _shown(estimate: pass_at_k.Estimate) -> dict[str, float | int | None]:
    values = dataclasses.asdict(estimate)
    return values if estimate.questions else {**dict.fromkeys(values), "questions": 0}
