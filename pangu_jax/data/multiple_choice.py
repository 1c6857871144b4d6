"""Multiple-choice questions, from the JSON lines of three public sets."""

import dataclasses
import re
from pathlib import Path

from pangu_jax.core.errors import InputError
from pangu_jax.data.text import records


@dataclasses.dataclass(frozen=True)
class Question:
    """One question.

    Attributes:
      text: the question.
      choices: at least two answers.
      answer: index of the right one.
    """

    text: str
    choices: tuple[str, ...]
    answer: int


def questions(path: str | Path) -> list[Question]:
    """Reads a file of {"instruction", "label"} objects, one per line, possibly .gz.

    An instruction ends in its choices, "A. one" per line (CommonsenseQA) or "A: one, B: two"
    (OpenBookQA), and the label is a letter; or it has none and the label is True or False
    (StrategyQA), for which the choices are yes and no.

    Raises:
      InputError: the file cannot be read, or a line is of another form; names it.
    """
    return [
        _question(record["instruction"].strip(), record["label"].strip(), where)
        for _, where, record in records(path, "instruction", "label")
    ]


def _question(text: str, label: str, where: str) -> Question:
    parts = re.split(r"\s*Answer Choices:\s*", text, flags=re.IGNORECASE)
    if len(parts) == 1 and label in ("True", "False"):
        return Question(text, ("yes", "no"), 0 if label == "True" else 1)
    if len(parts) != 2:
        raise InputError(f"{where} has neither choices nor a label of True or False")
    pairs = re.findall(r"([A-Z])[.:] *(.*?)(?:,? *(?=[A-Z][.:] )|\n|$)", parts[1])
    letters, choices = zip(*pairs, strict=True) if pairs else ((), ())
    if len(choices) < 2 or label not in letters or not all(choices):
        raise InputError(f"{where} has the choices {choices} and the label {label!r:.20}")
    return Question(parts[0].removeprefix("Q: "), choices, letters.index(label))
