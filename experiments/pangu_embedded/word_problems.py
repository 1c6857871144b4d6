"""School word problems: tests, training questions with worked solutions, and what keeps them apart.

| set | tested on | trained on | a worked solution |
|---|---|---|---|
| GSM8K | its test part | its training part | its own, without calculator marks |
| SVAMP | 300, the test part | 700, the training part | its equation |
| MultiArith | all 600 | none | |
| ASDiv | so many, by a hash of the question | the rest | its formula |

SVAMP's file has both parts; the 700 are those of the file that has teachers' solutions to them.
Questions of ASDiv whose answer is no number are left out.
"""

import dataclasses
import hashlib
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np

from pangu_jax.core.errors import InputError
from pangu_jax.data.chain_of_thought import FINAL, MARK
from pangu_jax.data.text import records
from pangu_jax.eval import answers
from pangu_jax.reasoning.bench_tasks import Item, read_items

FILES = ("gsm8k_train", "gsm8k_test", "svamp_test", "distill_svamp", "multiarith", "asdiv")
_WORDS = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen "
    "sixteen seventeen eighteen nineteen twenty thirty forty fifty sixty seventy eighty ninety "
    "hundred thousand million half dozen"
)
_NUMBER = re.compile(rf"\d[\d.,/]*|\b(?:{'|'.join(_WORDS.split())})\b")


@dataclasses.dataclass(frozen=True)
class Problem:
    """A question with its worked solution, which ends in the boxed answer."""

    item: Item
    solution: str


@dataclasses.dataclass(frozen=True)
class WordProblems:
    """What is measured with, and what is learned from.

    Attributes:
      tests: by the name of their set.
      training: by the name of their set; no question is `alike` to one of a test.
      dropped: how many training questions were, by set.
    """

    tests: dict[str, list[Item]]
    training: dict[str, list[Problem]]
    dropped: dict[str, int]


def read(data: str | Path, *, asdiv_tested: int) -> WordProblems:
    """The sets of a folder.

    Args:
      data: has `FILES`, each .jsonl or .jsonl.gz.
      asdiv_tested: how many questions of ASDiv are tested on.

    Raises:
      InputError: a file is missing or of another form, or nothing is left to learn from.
    """
    paths = {name: _path(Path(data), name) for name in FILES}
    svamp_tests, svamp = _svamp(paths["svamp_test"], paths["distill_svamp"])
    asdiv_tests, asdiv = _asdiv(paths["asdiv"], asdiv_tested)
    tests = {
        "SVAMP": svamp_tests,
        "MultiArith": list(_multiarith(paths["multiarith"])),
        "ASDiv": asdiv_tests,
        "GSM8K": read_items(paths["gsm8k_test"]),
    }
    found = {"GSM8K": list(_gsm8k(paths["gsm8k_train"])), "SVAMP": svamp, "ASDiv": asdiv}
    training = apart(found, (item.question for items in tests.values() for item in items))
    empty = [name for name, problems in training.items() if not problems]
    if empty:
        raise InputError(f"{data} has no question of {empty[0]} to learn from")
    dropped = {name: len(found[name]) - len(training[name]) for name in found}
    return WordProblems(tests, training, dropped)


def apart(
    training: Mapping[str, Iterable[Problem]], tests: Iterable[str]
) -> dict[str, list[Problem]]:
    """The training questions that no test has, in the same words, whatever their numbers are."""
    keys = {alike(question) for question in tests}
    return {
        name: [problem for problem in problems if alike(problem.item.question) not in keys]
        for name, problems in training.items()
    }


def alike(question: str) -> str:
    """Its words in lower case, a # for each number: the same for questions that are alike."""
    numbers = _NUMBER.sub(" # ", question.casefold())
    words = " ".join(re.sub(r"[^\w#]+", " ", numbers).split())
    return re.sub(r"#(?: #)+", "#", words)  # twenty-five is one number


class Drawn:
    """Training questions by number: from each set as often, all of it before any again."""

    def __init__(self, training: Mapping[str, list[Problem]], seed: int):
        """Of pools with a question each, shuffled by the seed."""
        self._pools, self._seed = list(training.values()), seed
        self._orders: dict[tuple[int, int], np.ndarray] = {}

    def of(self, number: int) -> Item:
        """A question."""
        number, which = divmod(number, len(self._pools))
        pool = self._pools[which]
        turn, place = divmod(number, len(pool))
        if (which, turn) not in self._orders:
            rng = np.random.default_rng([self._seed, which, turn])
            self._orders[which, turn] = rng.permutation(len(pool))
        return pool[self._orders[which, turn][place]].item


def _path(data: Path, name: str) -> Path:
    for end in ("", ".gz"):
        if (path := data / f"{name}.jsonl{end}").is_file():
            return path
    raise InputError(f"the folder {data} has neither {name}.jsonl nor {name}.jsonl.gz")


def _problem(item: Item, work: str) -> Problem:
    return Problem(item, f"{work}\nThe answer is \\boxed{{{item.gold}}}.")


def _gsm8k(path: Path):
    for item, (_, where, record) in zip(read_items(path), records(path, "answer"), strict=True):
        work, mark, _ = record["answer"].rpartition(FINAL)
        if not mark:
            raise InputError(f"{where} has an answer without {FINAL!r} and a value")
        yield _problem(item, MARK.sub("", work).strip())


def _svamp(path: Path, others: Path) -> tuple[list[Item], list[Problem]]:
    known = {_plain(record["question"]) for _, _, record in records(others, "question")}
    tests, training = [], []
    for item, (_, _, record) in zip(read_items(path), records(path, "Equation"), strict=True):
        if _plain(item.question) in known:
            training.append(_problem(item, f"{_equation(record['Equation'])} = {item.gold}"))
        else:
            tests.append(item)
    return tests, training


def _plain(question: str) -> str:
    return " ".join(re.findall(r"[\w.]*\w", question.casefold()))


def _equation(text: str) -> str:
    """Without the parentheses around all of it, and 3 for 3.0."""
    inner = text.removeprefix("( ").removesuffix(" )")
    depths = np.cumsum([0, *((sign == "(") - (sign == ")") for sign in inner)])
    inner = inner if (depths >= 0).all() and depths[-1] == 0 else text
    return re.sub(r"(\d)\.0\b", r"\1", inner).replace("( ", "(").replace(" )", ")")


def _asdiv(path: Path, tested: int) -> tuple[list[Item], list[Problem]]:
    found = []
    for _, where, record in records(path, "body", "question", "answer", "formula"):
        number = re.fullmatch(r"(-?[\d.,/]+)(?:\s*\(.*\))?", record["answer"].strip())
        if number is None:
            continue
        question = f"{record['body'].strip()} {record['question'].strip()}"
        found.append(_problem(_number(question, number[1], where), record["formula"].strip()))
    found.sort(key=lambda problem: hashlib.sha256(alike(problem.item.question).encode()).digest())
    return [problem.item for problem in found[:tested]], found[tested:]


def _multiarith(path: Path):
    for _, where, record in records(path, "input"):
        yield _number(record["input"].strip(), str(record.get("target")), where)


def _number(question: str, gold: str, where: str) -> Item:
    if answers.value(gold) is None:
        raise InputError(f"{where} has the answer {gold!r}, which is no number")
    return Item(question, "number", gold)
