"""Tasks: problems to train on and problems to measure on, by name or from a file."""

import contextlib
import dataclasses
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

from pangu_jax.core.errors import InputError
from pangu_jax.data.chain_of_thought import Problem, read_problems
from pangu_jax.data.multiplication import draw_multiplications
from pangu_jax.data.prosqa import draw_prosqa, symbols
from pangu_jax.data.tokenizer import ByteTokenizer
from pangu_jax.data.word_tokenizer import opened, word_files
from pangu_jax.reasoning.latent.held_out import hashes, not_among
from pangu_jax.reasoning.latent.planning import planned
from pangu_jax.reasoning.latent.slots import (
    FIELDS,
    NAMES,
    Encoded,
    Markers,
    encode,
    markers_of,
    plan_ids,
    plan_name,
)

MULTIPLICATION = re.compile(r"mult(\d+)x(\d+)")
TEST_SEED = 2**31 - 1  # of drawn test questions, away from those that anybody trains with
# Files that a name stands for, in the folder of data, .gz or not: to train on, to measure on.
FILES = {"gsm8k": ("gsm8k_train.jsonl", "gsm8k_test.jsonl")}
PROSQA, SYMBOLS = "prosqa", "prosqa-symbols"
KNOWN = f"mult4x4 (any mult<D>x<D>), {PROSQA}, {SYMBOLS}, gsm8k, or a .jsonl file"


@dataclasses.dataclass(frozen=True)
class Task:
    """Problems to train on and to measure on; no question is in both, by `held_out.key`.

    Attributes:
      training: problems.
      testing: problems.
      chance: expected accuracy of guessing among the answers that a question offers; None if it
        offers none.
    """

    training: list[Problem]
    testing: list[Problem]
    chance: float | None


@dataclasses.dataclass(frozen=True)
class Ids:
    """A task as ids.

    Attributes:
      markers: of the tokenizer.
      training: problems to train on.
      testing: problems to measure on.
      vocab: number of ids.
      tokenizer: digest of the tokenizer.
      plans: ids of planning tokens, with which the steps to train on begin.
    """

    markers: Markers
    training: list[Encoded]
    testing: list[Encoded]
    vocab: int
    tokenizer: str
    plans: tuple[int, ...] = ()

    @property
    def longest(self) -> int:
        """Tokens of the longest chain and answer to train on, with the markers."""
        return max(sum(map(len, x.steps)) + len(x.answer) + 2 for x in self.training)

    @property
    def longest_question(self) -> int:
        """Tokens of the longest question to train or measure on."""
        return max(len(x.question) for x in (*self.training, *self.testing))

    def of(self, names: Iterable[str]) -> list[int]:
        """The ids of tokens, by names of `names_of`."""
        known = {name: getattr(self.markers, field) for name, field in FIELDS.items()}
        known |= {plan_name(number): token for number, token in enumerate(self.plans)}
        return [known[name] for name in names]


def names_of(plans: int) -> list[str]:
    """The names of the markers and of `plans` planning tokens."""
    return [*NAMES, *map(plan_name, range(plans))]


def words_of(task: Task, plans: int = 0) -> dict[str, bytes]:
    """The files of a tokenizer with a token for each word of the task, and those of `names_of`."""
    problems = [*task.training, *task.testing]
    texts = (text for x in problems for text in (x.question, *x.steps, x.answer))
    return word_files(texts, names_of(plans))


def encode_task(task: Task, files: Mapping[str, bytes], plans: int = 0) -> Ids:
    """The task as ids.

    Args:
      task: the task.
      files: of a tokenizer with the markers (`words_of`); none is the tokenizer of bytes.
      plans: kinds of planning tokens that the steps to train on get; 0 for none.

    Raises:
      InputError: the tokenizer lacks a marker or a planning token.
    """
    with opened(files) if files else contextlib.nullcontext(ByteTokenizer()) as tokenizer:
        ids = plan_ids(tokenizer, plans)
        training = [encode(problem, tokenizer) for problem in task.training]
        return Ids(
            markers_of(tokenizer),
            planned(training, ids) if plans else training,
            [encode(problem, tokenizer) for problem in task.testing],
            tokenizer.vocab_size,
            tokenizer.digest,
            ids,
        )


def read_task(
    name: str,
    *,
    test: str | Path | None,
    problems: int,
    tests: int,
    seed: int = 0,
    workers: int = 1,
) -> Task:
    """The task of that name.

    Args:
      name: mult4x4 and the like, or prosqa or prosqa-symbols (see `data.prosqa`), whose problems
        are drawn; or a file, which is read.
      test: a file with the problems to measure on, taken in order; None draws them, or takes the
        last ones of the file.
      problems: number drawn to train on; of a file all are taken.
      tests: most problems to measure on.
      seed: of the drawn training problems.
      workers: processes that draw ProsQA's problems; see `draw_prosqa`.

    Raises:
      InputError: an unknown name, a file that cannot be read, or too few problems.
    """
    drawn = is_drawn(name)
    training = _draw(name, problems, seed, workers) if drawn else read_problems(name)
    testing = test_problems(name, test=test, tests=tests)
    training = not_among(training, hashes(testing))
    if not training:
        raise InputError(
            f"{name} has no problem to train on besides the {len(testing)} that are measured on: "
            "measure on fewer (tests), or on another file's (test)"
        )
    return Task(training, testing, chance(name))


def located(
    name: str, test: str | None, data: str | Path | None, *, trains: bool = True
) -> tuple[str, str | None]:
    """Arguments of `read_task`: its name and test file, with known names replaced by files.

    Args:
      name: of a task; one of `FILES` becomes the file of its training questions.
      test: a file to measure on; None becomes the name's test questions, if it has some.
      data: the folder with the files of names.
      trains: whether the training questions are wanted, too.

    Raises:
      InputError: no folder, or one that lacks a file.
    """
    if name not in FILES or (test is not None and not trains):
        return name, test
    if data is None:
        raise InputError(
            f"the task {name} needs --data, the folder with {' and '.join(FILES[name])}"
        )
    training, testing = FILES[name]
    test = _file(testing, data) if test is None else test
    return _file(training, data) if trains else name, test


def test_problems(name: str, *, test: str | Path | None, tests: int) -> list[Problem]:
    """The problems that a task measures on; see `read_task`."""
    if test is not None:
        found = read_problems(test)[:tests]
        return list(map(symbols, found)) if name == SYMBOLS else found
    return _draw(name, tests, TEST_SEED) if is_drawn(name) else read_problems(name)[-tests:]


def is_drawn(name: str) -> bool:
    """Whether the task's problems are drawn, not read from a file.

    Raises:
      InputError: it is neither that nor a file.
    """
    if name in (PROSQA, SYMBOLS) or MULTIPLICATION.fullmatch(name):
        return True
    if not Path(name).exists():
        raise InputError(f"there is no task {name!r}; known: {KNOWN}")
    return False


def chance(name: str) -> float | None:
    """The expected accuracy of guessing among the answers that a question offers."""
    return 0.5 if name in (PROSQA, SYMBOLS) else None


def _file(name: str, data: str | Path) -> str:
    for end in ("", ".gz"):
        if (found := Path(data) / f"{name}{end}").is_file():
            return str(found)
    raise InputError(f"the folder {data} has no file {name} or {name}.gz")


def _draw(name: str, count: int, seed: int, workers: int = 1) -> list[Problem]:
    if name in (PROSQA, SYMBOLS):
        return draw_prosqa(count, seed=seed, workers=workers, in_symbols=name == SYMBOLS)
    sizes = re.findall(r"\d+", name)
    if sizes[0] != sizes[1]:
        raise InputError(f"{name}: both factors must have the same number of digits")
    return draw_multiplications(count, int(sizes[0]), seed=seed)
