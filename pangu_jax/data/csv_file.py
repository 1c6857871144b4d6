"""Rows of CSV files, streamed: a header, then rows with as many fields."""

import csv
import gzip
import lzma
import zlib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from pangu_jax.core.errors import InputError
from pangu_jax.core.files import regular

_OPENERS = {".gz": gzip.open, ".xz": lzma.open}


def open_packed(path: str | Path) -> IO[bytes]:
    """The content of a file, unpacked if its name ends in .gz or .xz.

    Raises:
      InputError: it is not an ordinary file.
      OSError: it cannot be opened.
    """
    path = regular(path)
    return _OPENERS.get(path.suffix.lower(), open)(path, "rb")


def csv_rows(
    path: Path, delimiter: str = ",", *, strict: bool = False
) -> tuple[list[str], Iterator[tuple[int, list[str]]]]:
    """The names of a UTF-8 CSV file's columns, and line number and fields of each row.

    Names are stripped, fields are not. Lines without a character are left out. The file, which may
    be packed as .gz or .xz, is read as the rows are taken.

    Args:
      path: the file.
      delimiter: between fields.
      strict: whether a quoted field that does not end, or goes on after its quote, is refused.

    Raises:
      InputError: here or as rows are read: a missing or empty file, duplicate names, a row of
        another length, or text that is not UTF-8.
    """
    lines = _lines(regular(path), delimiter, strict)
    named = (row for _, row in lines if any(field.strip() for field in row))
    header = [name.strip() for name in next(named, [])]
    if not header:
        raise InputError(f"{path} is empty")
    if any("\0" in name for name in header):
        raise InputError(f"{path} holds NUL characters, so it is not UTF-8 text; is it UTF-16?")
    for name, count in Counter(header).items():
        if count > 1 and name:
            raise InputError(f"{path} has two columns named {name!r}")
    return header, lines


def check_fields(
    path: Path, length: int, rows: Iterator[tuple[int, list[str]]]
) -> Iterator[tuple[int, list[str]]]:
    """The rows, each checked to have `length` fields.

    Raises:
      InputError: one has another number; names its line.
    """
    for line, row in rows:
        if len(row) != length:
            raise InputError(f"{path} line {line} has {len(row)} fields, the header has {length}")
        yield line, row


def _lines(path: Path, delimiter: str, strict: bool) -> Iterator[tuple[int, list[str]]]:
    try:
        opener = _OPENERS.get(path.suffix.lower(), open)
        with opener(path, "rt", encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file, delimiter=delimiter, strict=strict)
            for row in reader:
                if row:
                    yield reader.line_num, row
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8 text") from error
    except (OSError, EOFError, zlib.error, lzma.LZMAError, csv.Error) as error:
        raise InputError(f"cannot read {path}: {error}") from error
