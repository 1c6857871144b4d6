"""Questions of public benchmarks, from files in the forms in which they are handed around."""

import dataclasses
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from pangu_jax.core.digest import sha256
from pangu_jax.core.errors import InputError
from pangu_jax.data.csv_file import check_fields, csv_rows
from pangu_jax.data.text import records
from pangu_jax.eval.answers import KINDS
from pangu_jax.reasoning.code_tasks import CodeTask, humaneval, livecodebench, mbpp

# The files that a name stands for, in the folder of data, .gz or not.
FILES = {
    "gsm8k": ("gsm8k_test.jsonl",),
    "math500": ("math500.jsonl",),
    "aime2024": ("aime2024.jsonl",),
    "aime2025": ("aime2025.jsonl",),
    "amc23": ("amc23.jsonl",),
    "svamp": ("svamp_test.jsonl",),
    "humaneval": ("humaneval.jsonl",),
    "mbpp": ("mbpp_test.jsonl",),
    "gpqa": ("gpqa_diamond.csv", "gpqa_main.csv"),
    "livecodebench": ("livecodebench.jsonl", "test.jsonl"),
}
_GPQA = ("Question", "Correct Answer", *(f"Incorrect Answer {i}" for i in (1, 2, 3)))


@dataclasses.dataclass(frozen=True)
class Item:
    """One question.

    Attributes:
      question: what is asked, choices included.
      kind: of its answer, one of `answers.KINDS`.
      gold: the right answer; empty where `code` tells.
      code: how an answer of the kind "code" is judged.
    """

    question: str
    kind: str
    gold: str = ""
    code: CodeTask | None = None


@dataclasses.dataclass(frozen=True)
class Task:
    """Questions of one file.

    Attributes:
      name: how results call it.
      file: where they lie.
      sha256: of the file.
      items: at least one.
    """

    name: str
    file: Path
    sha256: str
    items: tuple[Item, ...]


def find_tasks(names: str, data: str | Path | None) -> list[Task]:
    """The tasks of names and files, with commas between them.

    Args:
      names: each a name of `FILES`, or a file of one of the forms that `read_items` knows.
      data: the folder that has the files of names.

    Raises:
      InputError: a name or a file that is none, or one that comes twice.
    """
    found: list[Task] = []
    for name in filter(None, (part.strip() for part in names.split(","))):
        path = _find(name, data) if name in FILES else Path(name)
        if name not in FILES and not path.name.lower().endswith(_ENDINGS):
            raise InputError(
                f"--tasks has {name!r}, which is no file that ends in {', '.join(_ENDINGS)}, and "
                f"none of the names {', '.join(FILES)}"
            )
        items = tuple(read_items(path))
        own = name if name in FILES else re.sub(r"\.(jsonl|csv)(\.gz)?$", "", path.name, flags=re.I)
        if own in (task.name for task in found):
            raise InputError(f"--tasks has two tasks of the name {own!r}")
        found.append(Task(own, path, sha256(path), items))
    if not found:
        raise InputError(f"--tasks names none; known: {', '.join(FILES)}, or a file")
    return found


def read_items(path: str | Path) -> list[Item]:
    """The questions of a file, whose form is told by the keys of its first record.

    Raises:
      InputError: the file cannot be read, is of no known form, or a line differs; names it.
    """
    if str(path).lower().endswith((".csv", ".csv.gz")):
        return list(_gpqa(Path(path)))
    _, _, first = next(records(path))
    for keys, read in _FORMS:
        if first.keys() >= set(keys):
            return list(read(path))
    raise InputError(
        f"{path} has the keys {', '.join(first) or 'none'}; known forms have "
        + "; ".join(", ".join(keys) for keys, _ in _FORMS)
    )


def _find(name: str, data: str | Path | None) -> Path:
    if data is None:
        raise InputError(f"the task {name} needs --data, the folder with {FILES[name][0]}")
    places = [Path(data) / f"{file}{end}" for file in FILES[name] for end in ("", ".gz")]
    for place in places:
        if place.is_file():
            return place
    names = ", ".join(place.name for place in places)
    raise InputError(f"the folder {data} has no file of {name}: it would be one of {names}")


def _plain(path: str | Path) -> Iterator[Item]:
    """{"question" or "prompt", "answer", "kind"}; the kind may be missing.

    GSM8K's answers are worked out, and end in "#### " and a number.
    """
    for _, where, record in records(path, "answer"):
        question = record.get("question", record.get("prompt"))
        if not isinstance(question, str):
            raise InputError(f"{where} has no text under the key 'question' or 'prompt'")
        worked = "#### " in record["answer"]
        kind = record.get("kind", "number" if worked else "maths")
        if not isinstance(kind, str) or kind not in KINDS or kind == "code":
            known = ", ".join(known for known in KINDS if known != "code")
            raise InputError(f"{where} has the kind {kind!r}; known: {known}")
        yield Item(question, kind, record["answer"].rsplit("#### ", 1)[-1].strip())


def _turns(path: str | Path) -> Iterator[Item]:
    """{"prompt": [{"from": "user", "value": text}], "final_answer": text}."""
    for _, where, record in records(path, "final_answer"):
        turns = record.get("prompt")
        one = turns[0] if isinstance(turns, list) and len(turns) == 1 else None
        if not isinstance(one, dict) or not isinstance(one.get("value"), str):
            raise InputError(f'{where} has no "prompt" of one turn with a text as its "value"')
        yield Item(one["value"], "maths", record["final_answer"])


def _svamp(path: str | Path) -> Iterator[Item]:
    for _, where, record in records(path, "Body", "Question"):
        found = record.get("Answer")
        if isinstance(found, bool) or not isinstance(found, int | float):
            raise InputError(f"{where} has no number under the key 'Answer'")
        body = record["Body"].strip()
        body += "" if body.endswith((".", "?", "!", ",")) else "."
        gold = str(int(found)) if float(found).is_integer() else repr(found)
        yield Item(f"{body} {record['Question'].strip()}", "number", gold)


def _gpqa(path: Path) -> Iterator[Item]:
    """GPQA's own file; the order of choices is drawn by the place of the row, always the same."""
    header, rows = csv_rows(path, strict=True)
    missing = [name for name in _GPQA if name not in header]
    if missing:
        raise InputError(f"{path} has no column {missing[0]!r}, which GPQA's files have")
    places, number = [header.index(name) for name in _GPQA], 0
    for number, (_, row) in enumerate(check_fields(path, len(header), rows), 1):
        question, *choices = (row[place].strip() for place in places)
        order = np.random.default_rng(number).permutation(len(choices))
        listed = [f"({letter}) {choices[i]}" for letter, i in zip("ABCD", order, strict=True)]
        gold = "ABCD"[order.tolist().index(0)]
        yield Item("\n".join([question, "", *listed]), "letter", gold)
    if not number:
        raise InputError(f"{path} has a header and no rows")


def _code(read: Callable[[str | Path], list[CodeTask]]) -> Callable[[str | Path], Iterator[Item]]:
    def items(path: str | Path) -> Iterator[Item]:
        for task in read(path):
            tests = "\n".join(task.tests[: task.shown])
            asks = tests and not task.program and task.reference
            more = f"\n\nYour code should pass these tests:\n{tests}" if asks else ""
            yield Item(task.prompt + more, "code", code=task)

    return items


_FORMS: tuple[tuple[tuple[str, ...], Callable[[Any], Any]], ...] = (
    (("prompt", "entry_point", "canonical_solution", "test"), _code(humaneval)),
    (("question_content", "public_test_cases", "private_test_cases"), _code(livecodebench)),
    (("prompt", "test", "code"), _code(mbpp)),
    (("Body", "Question", "Answer"), _svamp),
    (("prompt", "final_answer"), _turns),
    (("question", "answer"), _plain),
    (("prompt", "answer"), _plain),
)
_ENDINGS = (".jsonl", ".jsonl.gz", ".csv", ".csv.gz")
