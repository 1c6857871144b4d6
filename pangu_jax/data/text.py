"""Documents from a folder, a text or jsonl file, gzip, or Python's own source."""

import contextlib
import gzip
import hashlib
import json
import re
import sysconfig
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from pangu_jax.core.config import parse_json
from pangu_jax.core.errors import InputError
from pangu_jax.core.files import regular
from pangu_jax.data.records import is_prepared, read_texts

ENDINGS = (".txt", ".jsonl", ".txt.gz", ".jsonl.gz")
_RECORD = re.compile(r"\.jsonl(\.gz)?:\d+$", re.IGNORECASE)  # a document that is a line


@dataclass(frozen=True)
class Document:
    """One text and the name by which it is split and reported.

    Attributes:
      name: the file's path relative to the folder given, with ":line" for jsonl.
      text: its content.
    """

    name: str
    text: str


def documents(
    path: str | Path, *, field: str = "text", endings: tuple[str, ...] = ENDINGS
) -> Iterator[Document]:
    """The documents of a file or, in sorted order, of a folder and all folders below it.

    A file is one document, in memory whole; a line of a .jsonl file is one, read line by line.

    Args:
      path: a file, or a folder whose files with one of the endings are read; "stdlib" is the
        interpreter's own standard library (see `stdlib`), "packages" the installed packages; a
        prepared dataset (see `records`), or folder:split for one split of it.
      field: the key that holds the text in .jsonl lines.
      endings: which files of a folder count, in either case; (".py", ".md") reads source instead.

    Raises:
      InputError: nothing there, a file that is not UTF-8 text, a line that is not JSON or lacks
        the field; the message names the file and line.
    """
    if str(path) in ("stdlib", "packages"):
        yield from stdlib() if str(path) == "stdlib" else packages()
        return
    path = Path(path)
    if is_prepared(path):
        for name, raw in read_texts(path, field):
            yield Document(name, _decode(raw, f"{path} {name}"))
        return
    if not path.exists():
        raise InputError(f"there is no file or folder {path}")
    files = _files(path, endings) if path.is_dir() else [path]
    if not files:
        raise InputError(f"{path} holds no file that ends in {', '.join(endings)}")
    root, found = path if path.is_dir() else path.parent, False
    for file in files:
        for document in _read(file, file.relative_to(root).as_posix(), field):
            found = found or bool(document.text)
            yield document
    if not found:
        raise InputError(f"{path} holds no text: every document is empty")


def lines(path: str | Path, *, field: str = "text") -> Iterator[Document]:
    """The texts of a file, or of a folder's files, one per line: `documents` cut at lines.

    A record of a .jsonl file or of a prepared dataset stays whole; an empty line of another file is
    an empty text, so that texts have the numbers of their lines.

    Args:
      path: see `documents`.
      field: see `documents`.

    Raises:
      InputError: see `documents`.
    """
    for document in documents(path, field=field):
        if is_prepared(Path(path)) or _RECORD.search(document.name):
            yield document
        elif document.text:
            found = document.text.removesuffix("\n").split("\n")
            for number, line in enumerate(found, 1):
                yield Document(f"{document.name}:{number}", line.removesuffix("\r"))


def records(path: str | Path, *fields: str) -> Iterator[tuple[int, str, dict[str, Any]]]:
    """Yields (line number, name in errors, object) for the objects of a .jsonl or .jsonl.gz file.

    Args:
      path: the file.
      fields: keys under which each must have a text.

    Raises:
      InputError: there is no such file, it has no object, or a line is not a JSON object with a
        text under those keys; the message names the line.
    """
    if not str(path).lower().endswith((".jsonl", ".jsonl.gz")):
        raise InputError(f"{path} is no .jsonl or .jsonl.gz file, with one object per line")
    found = False
    for number, where, line in _lines(regular(path)):
        record = parse_json(line, where)
        if not isinstance(record, dict):
            raise InputError(f"{where} must be an object, got {record!r:.60}")
        for field in fields:
            _text_of(record, field, where)
        found = True
        yield number, where, record
    if not found:
        raise InputError(f"{path} is empty")


def stdlib() -> Iterator[Document]:
    """Python source of the interpreter's own standard library, sorted by path.

    Text that every machine with Python has. Third-party packages and the library's own tests are
    left out, so that installed packages and Python's packaging matter little; different
    Python versions give different text. One file is in memory at a time.

    Raises:
      InputError: this Python came without the source of its library.
    """
    root = Path(sysconfig.get_path("stdlib"))
    skip = {"site-packages", "dist-packages", "test", "tests", "idle_test", "__pycache__"}
    found = False
    for document in _python(root, skip):
        found = True
        yield document
    if not found:
        raise InputError(f"this Python keeps no source of its library in {root}")


def packages(max_bytes: int | None = None) -> Iterator[Document]:
    """Python source of the installed packages, sorted by path; one file in memory at a time.

    Args:
      max_bytes: stops before the document that would exceed this many UTF-8 bytes; None takes all.

    Raises:
      InputError: no package is installed, or the first file is larger than `max_bytes`.
    """
    # Some systems keep compiled packages in a folder of their own.
    kinds = ("purelib", "platlib")
    roots = dict.fromkeys(Path(sysconfig.get_path(kind)).resolve() for kind in kinds)
    total = 0
    for document in (d for root in roots for d in _python(root, {"__pycache__"})):
        size = len(document.text.encode("utf-8"))
        if max_bytes is not None and total + size > max_bytes:
            break
        total += size
        yield document
    if not total:
        most = "" if max_bytes is None else f" of at most {max_bytes} bytes"
        raise InputError(f"{', '.join(map(str, roots))} begins with no Python source{most}")


def held_out(document: Document, fraction: float) -> bool:
    """Whether a document is held out for evaluation, by the hash of its name.

    The name alone decides, so no document is in both parts.

    Args:
      document: the document.
      fraction: the share of names that are held out, 0 to 1.

    Raises:
      InputError: `fraction` is not between 0 and 1.
    """
    if not 0 <= fraction <= 1:
        raise InputError(f"the held-out share must be between 0 and 1, got {fraction}")
    digest = hashlib.sha256(document.name.encode("utf-8", "surrogateescape")).digest()
    return int.from_bytes(digest[:8], "big") < fraction * 2**64


def split_documents(
    found: Iterable[Document], fraction: float, *, halve: bool = False
) -> tuple[list[Document], list[Document]]:
    """Splits documents into those to train on and those held out (see `held_out`), in order.

    Args:
      found: the documents.
      fraction: the share of names that are held out, 0 to 1.
      halve: a document that is alone is cut in two at the line end before its middle, the second
        part to train on; otherwise one of the lists is then empty.

    Raises:
      InputError: `fraction` is not between 0 and 1.
    """
    training, testing = [], []
    for document in found:
        (testing if held_out(document, fraction) else training).append(document)
    if halve and len(training) + len(testing) == 1:
        text = (training + testing)[0].text
        half = text.rfind("\n", 0, len(text) // 2) + 1
        return [Document("second", text[half:])], [Document("first", text[:half])]
    return training, testing


def take(found: Iterable[Document], size: int, *, in_bytes: bool = False) -> list[Document]:
    """The first documents that together have `size` characters, or UTF-8 bytes; at least one.

    The last of them is taken whole, and all are taken if they have less.
    """
    taken, total = [], 0
    for document in found:
        taken.append(document)
        total += len(document.text.encode("utf-8") if in_bytes else document.text)
        if total >= size:
            break
    return taken


def _files(folder: Path, endings: tuple[str, ...]) -> list[Path]:
    endings = tuple(ending.lower() for ending in endings)
    files = (f for f in folder.rglob("*") if f.name.lower().endswith(endings) and f.is_file())
    return sorted(files, key=lambda f: f.relative_to(folder).as_posix())


def _python(root: Path, skip: set[str]) -> Iterator[Document]:
    for file in _files(root, (".py",)):
        name = file.relative_to(root)
        if skip.isdisjoint(name.parts):
            # A few files of the library declare another encoding; they are not our text.
            try:
                text = file.read_text(encoding="utf-8")
            except (OSError, UnicodeDecodeError):
                continue
            if text:
                yield Document(name.as_posix(), text)


def _read(file: Path, name: str, field: str) -> Iterator[Document]:
    if name.lower().endswith((".jsonl", ".jsonl.gz")):
        for number, where, line in _lines(file):
            yield Document(f"{name}:{number}", _field(line, field, where))
        return
    with _opened(file) as stream:
        yield Document(name, _decode(stream.read(), str(file)))


def _lines(file: Path) -> Iterator[tuple[int, str, str]]:
    """Yields (number from 1, name in errors, text) of every line that is not blank."""
    with _opened(file) as stream:
        for number, line in enumerate(stream, 1):
            if line.strip():
                where = f"{file} line {number}"
                yield number, where, _decode(line, where)


@contextlib.contextmanager
def _opened(file: Path) -> Iterator[IO[bytes]]:
    try:
        packed = file.name.lower().endswith(".gz")
        with gzip.open(file) if packed else open(file, "rb") as stream:
            yield stream
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"cannot read {file}: {error}") from error


def _decode(raw: bytes, where: str) -> str:
    try:
        text = raw.decode("utf-8").removeprefix("\ufeff")  # some editors begin files with a mark
    except UnicodeDecodeError as error:
        raise InputError(f"{where} is not UTF-8 text: byte {error.start} is not valid") from error
    if "\0" in text:
        raise InputError(f"{where} is not text: it holds a zero byte at {raw.index(0)}")
    return text


def _field(line: str, field: str, where: str) -> str:
    try:
        value = json.loads(line)
    except ValueError as error:
        raise InputError(f"{where} is not JSON: {error}") from error
    text = _text_of(value, field, where)
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:  # JSON can write half a character: "\\ud83d"
        raise InputError(f"{where} holds half a surrogate pair, which is no text") from error
    return text


def _text_of(value: Any, field: str, where: str) -> str:
    if not isinstance(value, dict) or not isinstance(value.get(field), str):
        raise InputError(f"{where} has no text under the key {field!r}")
    return value[field]
