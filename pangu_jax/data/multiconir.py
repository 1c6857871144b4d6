"""MultiConIR's files: queries of one to ten conditions, and documents that meet fewer and fewer.

    for part in find_parts("MultiConIR"):
        for row in read_rows(part):
            ...

The released layout is Task1/{domain}_Task1.csv, Task2_&_3/{domain}_Task2_&_3.csv and
Task4/{domain}_{512,1024}.csv, in a folder `datasets` or not; the files may also lie in one folder,
and be packed as .gz or .xz.

Source: arXiv 2503.08046; columns as its released code reads them.
"""

import dataclasses
import hashlib
import lzma
import re
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal

from pangu_jax.core.errors import InputError
from pangu_jax.core.files import regular
from pangu_jax.data.csv_file import check_fields, csv_rows, open_packed

CONDITIONS = 10
FOLDERS = ("", "Task1", "Task2_&_3", "Task4")
_NAME = re.compile(r"(?P<stem>(?P<domain>.+)_(?P<task>Task1|Task2_&_3|512|1024))\.csv(\.gz|\.xz)?")
# What pandas, by which the released code reads, takes for a missing text.
MISSING = frozenset(
    ["", "#N/A", "#N/A N/A", "#NA", "-1.#IND", "-1.#QNAN", "-NaN", "-nan", "1.#IND", "1.#QNAN",
     "<NA>", "N/A", "NA", "NULL", "NaN", "None", "n/a", "nan", "null"]
)  # fmt: skip

_NUMBERS = [re.compile(rf"(?<!\S){i}\. ") for i in range(1, CONDITIONS + 1)]
_BETWEEN = ";,. \t\r\n"  # what may stand between conditions

Text = str | None


@dataclasses.dataclass(frozen=True)
class Part:
    """One file.

    Attributes:
      path: of the file.
      stem: its name without endings, such as "Movies_Task1".
      domain: "Movies".
      task: the form of its rows: that of task 1, of tasks 2 and 3, or of task 4.
      length: of task 4, the approximate number of words of its documents.
    """

    path: Path
    stem: str
    domain: str
    task: Literal[1, 2, 4]
    length: int | None = None


@dataclasses.dataclass(frozen=True)
class Task1Row:
    """A row of task 1: a query grows by one condition at a time.

    Attributes:
      queries: the first with one condition, the last with ten.
      positive: the document that meets all ten.
      negatives: the i-th is paired with the i-th query.
      others: the second negatives; None where the file has none.
    """

    queries: tuple[Text, ...]
    positive: Text
    negatives: tuple[Text, ...]
    others: tuple[Text, ...] | None


@dataclasses.dataclass(frozen=True)
class RankedRow:
    """A row of tasks 2, 3 and 4: documents that meet fewer and fewer of ten conditions.

    Attributes:
      query: the conditions listed.
      natural: the same as one sentence; None also where a file of task 4 has none.
      documents: the positive, which meets all, then the ten negatives, which meet fewer and fewer.
    """

    query: Text
    natural: Text
    documents: tuple[Text, ...]


def find_parts(folder: str | Path) -> list[Part]:
    """The files of a folder in either layout: by task, length and domain.

    Raises:
      InputError: there is no such folder, it has none of the files, or one of them twice.
    """
    root = Path(folder)
    if not root.is_dir():
        raise InputError(f"there is no folder {root}")
    root = root / "datasets" if (root / "datasets").is_dir() else root
    found: dict[str, Part] = {}
    for name in FOLDERS:
        for path in sorted((root / name).iterdir()) if (root / name).is_dir() else ():
            part = _part(path)
            if part is None:
                continue
            if part.stem in found:
                raise InputError(f"{found[part.stem].path} and {path} are one part; remove one")
            found[part.stem] = part
    if not found:
        raise InputError(
            f"{root} holds none of MultiConIR's files: {{domain}}_Task1.csv, "
            "{domain}_Task2_&_3.csv, {domain}_512.csv or {domain}_1024.csv, in folders Task1, "
            "Task2_&_3 and Task4 or in one, possibly .gz or .xz"
        )
    return sorted(found.values(), key=lambda part: (part.task, part.length or 0, part.domain))


def read_rows(part: Part, *, missing: bool = False) -> Iterator[Task1Row | RankedRow]:
    """The rows of a part, one by one as the file is read.

    Args:
      part: one of `find_parts`.
      missing: whether texts may be missing (an empty field, or one that pandas takes for NaN),
        which then are None.

    Raises:
      InputError: the file cannot be read, lacks a column or rows, or a text is missing and may
        not be; names the row, from 1, and the column.
    """
    header, rows = csv_rows(part.path, strict=True)
    places = _places(part, header)
    make = _task1_row if part.task == 1 else _ranked_row
    number = 0
    for number, (_, row) in enumerate(check_fields(part.path, len(header), rows), 1):
        texts = {name: _text(row[place]) for name, place in places.items()}
        if not missing and None in texts.values():
            name = next(name for name, text in texts.items() if text is None)
            raise InputError(
                f"{part.path} row {number}: column {name!r} is {row[places[name]]!r:.20}, which is "
                "no text; only the protocol collection takes such a row, and leaves the text out"
            )
        yield make(texts)
    if not number:
        raise InputError(f"{part.path} has a header and no rows")


def reordered(query: str, order: Sequence[int]) -> str | None:
    """A query that lists ten conditions, "1. such; 2. such.", with them in another order.

    The text before them, the numbers, and the separators stay in place.

    Args:
      query: the query.
      order: from 0, which condition comes first, second and so on.

    Returns:
      The query, or None if it is not such a list.
    """
    pieces, at = [], 0
    for number in _NUMBERS:
        found = number.search(query, at)
        if found is None:
            return None
        pieces.append(query[at : found.start()])
        at = found.end()
    head, *conditions = [*pieces, query[at:]]
    texts = [condition.rstrip(_BETWEEN) for condition in conditions]
    ends = [x.removeprefix(text) for x, text in zip(conditions, texts, strict=True)]
    return head + "".join(
        f"{number}. {texts[place]}{end}"
        for number, (place, end) in enumerate(zip(order, ends, strict=True), 1)
    )


def content_hash(part: Part) -> str:
    """SHA-256 of a part's content, unpacked, so that it is the same however the file is packed.

    Raises:
      InputError: it cannot be read.
    """
    found = hashlib.sha256()
    try:
        with open_packed(part.path) as file:
            while block := file.read(1 << 20):
                found.update(block)
    except (OSError, EOFError, zlib.error, lzma.LZMAError) as error:
        raise InputError(f"cannot read {part.path}: {error}") from error
    return found.hexdigest()


def _part(path: Path) -> Part | None:
    name = _NAME.fullmatch(path.name)
    if name is None or path.name.startswith("."):
        return None
    task, stem, domain = name["task"], name["stem"], name["domain"]
    if task.isdigit():
        return Part(regular(path), stem, domain, 4, int(task))
    return Part(regular(path), stem, domain, 1 if task == "Task1" else 2)


def _places(part: Part, header: list[str]) -> dict[str, int]:
    """Indices of the columns that a part needs, and of those that it may have.

    Raises:
      InputError: one is missing.
    """
    queries = _names("Query") if part.task == 1 else ["Query10"]
    needed = [*queries, "Positive", *_names("HN")]
    more = _names("HN_") if part.task == 1 else ["Natural_Query10"]
    if part.task == 2 or any(name in header for name in more):
        needed += more
    for name in needed:
        if name not in header:
            raise InputError(f"{part.path} has no column {name!r}; it has {', '.join(header)}")
    return {name: header.index(name) for name in needed}


def _names(prefix: str) -> list[str]:
    return [f"{prefix}{i}" for i in range(1, CONDITIONS + 1)]


def _text(field: str) -> Text:
    return None if field in MISSING or not field.strip() else field


def _task1_row(texts: dict[str, Text]) -> Task1Row:
    def those(prefix: str) -> tuple[Text, ...]:
        return tuple(texts[name] for name in _names(prefix))

    others = those("HN_") if "HN_1" in texts else None
    return Task1Row(those("Query"), texts["Positive"], those("HN"), others)


def _ranked_row(texts: dict[str, Text]) -> RankedRow:
    documents = tuple(texts[name] for name in ("Positive", *_names("HN")))
    return RankedRow(texts["Query10"], texts.get("Natural_Query10"), documents)
