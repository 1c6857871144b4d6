"""Records of facts, each of which is one condition, and their overlap with the rows of a test.

    records = read_records("movies.jsonl.xz")
    print(overlap(records, rows))
    records = keep_apart(records, rows, seed=0)

A line of the file is {"id": "Alien", "facts": [["year", "1979"], ["cast", "Ian Holm"], ...]}.
Values are looked for in texts as runs of words, whatever the case and the punctuation, so nothing
need be known of how a test words its conditions.
"""

import dataclasses
import json
import lzma
import re
import zlib
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pangu_jax.core.errors import InputError
from pangu_jax.data.csv_file import open_packed
from pangu_jax.data.multiconir import RankedRow, Task1Row

NAMES = frozenset({"director", "writer", "cast"})  # kinds whose values are names of people
Fact = tuple[str, str]  # kind and value

# Wordings of a test's conditions for facts other than names; other wordings are ignored.
_TOLD = {
    "year": re.compile(r"\breleased in (\d{4})\b"),
    "genre": re.compile(r"\bbelongs to the ([^;.]+?) genre\b"),
    "title_len": re.compile(r"\bhas a title of (\d+) word"),
}
_PERSON = re.compile(r"[A-Z][\w'-]+( [A-Z][\w'-]*\.?)? [A-Z][\w'-]+")
_Index = dict[str, list[tuple[tuple[str, ...], str]]]  # by first word


@dataclasses.dataclass(frozen=True)
class Record:
    """Facts about one entity.

    Attributes:
      id: its name in errors; no text mentions it.
      facts: kinds and values, each a condition that it meets.
    """

    id: str
    facts: tuple[Fact, ...]


def read_records(path: str | Path) -> list[Record]:
    """The records of a .jsonl file, which may be packed as .gz or .xz.

    Raises:
      InputError: the file cannot be read, or a line is not such a record; names the line.
    """
    path, found = Path(path), []
    try:
        with open_packed(path) as file:
            for number, line in enumerate(file, 1):
                if line.strip():
                    found.append(_record(line, f"{path} line {number}"))
    except (OSError, EOFError, zlib.error, lzma.LZMAError) as error:
        raise InputError(f"cannot read {path}: {error}") from error
    if not found:
        raise InputError(f"{path} has no records")
    return found


def names(records: Iterable[Record]) -> set[str]:
    """The names of people in records."""
    return {value for record in records for kind, value in record.facts if kind in NAMES}


def texts(rows: Iterable[Task1Row | RankedRow]) -> set[str]:
    """The distinct texts of a test's rows: queries, positives, and all negatives."""
    found: set[str | None] = set()
    for row in rows:
        if isinstance(row, Task1Row):
            found.update([*row.queries, row.positive, *row.negatives, *(row.others or ())])
        else:
            found.update([row.query, row.natural, *row.documents])
    return {text for text in found if text is not None}


def words(text: str) -> tuple[str, ...]:
    """Lower case, runs of letters and digits."""
    return tuple(re.findall(r"\w+", text.lower()))


def found_values(values: Iterable[str], where: Iterable[str]) -> set[str]:
    """The values that occur in texts, as runs of whole words."""
    index = _indexed(values)
    return {value for text in where for value in _found(index, text)}


def shared_records(
    records: Sequence[Record], rows: Iterable[Task1Row | RankedRow]
) -> list[tuple[Record, int]]:
    """Records that a row's positive is about, and which row, from 1.

    Such a record has all of its names in the positive or, without names, all of its values: other
    facts may differ, such as a year, as films are remade with other people.
    """
    told = [(record, _telling(record)) for record in records]
    index, found = _indexed(value for _, own in told for value in own), []
    for number, row in enumerate(rows, 1):
        positive = row.positive if isinstance(row, Task1Row) else row.documents[0]
        there = set(_found(index, positive or ""))
        found += [(record, number) for record, own in told if own and own <= there]
    return found


def keep_apart(
    records: Sequence[Record], rows: Sequence[Task1Row | RankedRow], *, seed: int
) -> list[Record]:
    """The records to train on if these rows are the test.

    Records that a row is about are left out, and names that occur in the rows are mapped to others.

    Raises:
      InputError: nothing is left, or there are too few names to map to.
    """
    shared = {id(record) for record, _ in shared_records(records, rows)}
    kept = [record for record in records if id(record) not in shared]
    if not kept:
        raise InputError(f"all {len(records)} records are in the test; give others to train on")
    taken = found_values(names(kept), texts(rows))
    found = rename(kept, taken, rows=rows, seed=seed)
    refuse_names(found, rows)
    return found


def rename(
    records: Sequence[Record], taken: set[str], *, rows: Iterable[Task1Row | RankedRow], seed: int
) -> list[Record]:
    """The records with taken names replaced by others, one for one.

    A new name is made of the first and last words of two that are not taken, and is neither in the
    rows nor in the records.

    Args:
      records: the records.
      taken: names, those that occur in a test.
      rows: of the test.
      seed: of the draws.

    Raises:
      InputError: there are too few names that are not taken.
    """
    known = names(records)
    free = sorted(known - taken)
    parts = [name.split() for name in free if _PERSON.fullmatch(name)]
    if not parts:
        raise InputError("all names of the records occur in the test, so there are none to map to")
    draw, wanted = np.random.default_rng([seed, len(taken)]), sorted(taken & known)
    drawn = {
        f"{' '.join(parts[a][:-1])} {parts[b][-1]}": None
        for a, b in draw.integers(0, len(parts), (4 * len(wanted) + 64, 2)).tolist()
    }
    bad = found_values(drawn, texts(rows)) | known
    others = [name for name in drawn if name not in bad]
    if len(others) < len(wanted):
        raise InputError(
            f"{len(wanted)} names occur in the test, and the others of the records give only "
            f"{len(others)} new ones"
        )
    mapped = dict(zip(wanted, others, strict=False))
    return [
        Record(
            record.id,
            tuple(
                (kind, mapped.get(value, value) if kind in NAMES else value)
                for kind, value in record.facts
            ),
        )
        for record in records
    ]


def refuse_names(records: Sequence[Record], rows: Iterable[Task1Row | RankedRow]) -> None:
    """Checks that no name in the records occurs in a test.

    Raises:
      InputError: some do; names one.
    """
    left = found_values(names(records), texts(rows))
    if left:
        raise InputError(
            f"{len(left)} names of the training records occur in the test, such as {min(left)!r}; "
            "map them to others first"
        )


def overlap(records: Sequence[Record], rows: Sequence[Task1Row | RankedRow]) -> dict[str, Any]:
    """Overlap of training and test data, as JSON values.

    Of names how many are in a test's texts; of year, genre and title length how many of the rows
    have a value that some record has, where their conditions say it in words that are known here.
    """
    known = names(records)
    there = found_values(known, texts(rows))
    with_name = sum(bool(names([record]) & there) for record in records)
    found: dict[str, Any] = {
        "records": len(records),
        "rows": len(rows),
        "shared_records": len(shared_records(records, rows)),
        "names": len(known),
        "shared_names": len(there),
        "records_with_shared_name": with_name,
    }
    own = {kind: {v for r in records for k, v in r.facts if k == kind} for kind in _TOLD}
    for kind, form in _TOLD.items():
        told = [value for row in rows if (value := _told(form, row)) is not None]
        shared = Counter(told).keys() & own[kind]
        found[kind] = {
            "rows": len(told),
            "rows_shared": sum(value in own[kind] for value in told),
            "values": len(set(told)),
            "values_shared": len(shared),
        }
    return found


def _indexed(values: Iterable[str]) -> _Index:
    found: _Index = defaultdict(list)
    for value in set(values):
        if run := words(value):
            found[run[0]].append((run, value))
    return found


def _found(index: _Index, text: str) -> Iterator[str]:
    run = words(text)
    for place, word in enumerate(run):
        for wanted, value in index.get(word, ()):
            if run[place : place + len(wanted)] == wanted:
                yield value


def _told(form: re.Pattern[str], row: Task1Row | RankedRow) -> str | None:
    query = row.queries[-1] if isinstance(row, Task1Row) else row.query
    found = form.search(query or "")
    return None if found is None else found[1]


def _telling(record: Record) -> set[str]:
    """Values that identify a record: its names or, if it has none, all of its values."""
    own = {value for kind, value in record.facts if kind in NAMES and words(value)}
    return own or {value for _, value in record.facts if words(value)}


def _record(line: bytes, where: str) -> Record:
    try:
        read = json.loads(line)
    except ValueError as error:
        raise InputError(f"{where} is no JSON: {error}") from error
    facts = read.get("facts") if isinstance(read, dict) else None
    if not isinstance(facts, list) or not facts or not all(map(_is_fact, facts)):
        raise InputError(f'{where} has no list "facts" of pairs of texts, a kind and a value')
    if not isinstance(read.get("id"), str):
        raise InputError(f'{where} has no text "id"')
    return Record(read["id"], tuple((kind, value) for kind, value in facts))


def _is_fact(value: Any) -> bool:
    return isinstance(value, list) and [isinstance(x, str) for x in value] == [True, True]
