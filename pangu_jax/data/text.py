"""Documents from what a user has: a folder, a file, jsonl, gzip, or Python's own source."""

import gzip
import hashlib
import json
import sysconfig
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pangu_jax.core.errors import InputError

ENDINGS = (".txt", ".jsonl", ".txt.gz", ".jsonl.gz")


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

    A file is one document; a line of a .jsonl file is one. One file is in memory at a time.

    Args:
      path: a file, or a folder whose files with one of the endings are read; "stdlib" is the
        interpreter's own standard library (see `stdlib`), "packages" the installed packages.
      field: the key that holds the text in .jsonl lines.
      endings: which files of a folder count.

    Raises:
      InputError: nothing there, a file that is not UTF-8 text, a line that is not JSON or lacks
        the field; the message names the file and line.
    """
    if str(path) in ("stdlib", "packages"):
        yield from stdlib() if str(path) == "stdlib" else packages()
        return
    path = Path(path)
    if not path.exists():
        raise InputError(f"there is no file or folder {path}")
    files = [path] if path.is_file() else _files(path, endings)
    if not files:
        raise InputError(f"{path} holds no file that ends in {', '.join(endings)}")
    root, found = path if path.is_dir() else path.parent, False
    for file in files:
        for document in _read(file, file.relative_to(root).as_posix(), field):
            found = found or bool(document.text)
            yield document
    if not found:
        raise InputError(f"{path} holds no text: every document is empty")


def stdlib() -> Iterator[Document]:
    """Python source of the interpreter's own standard library, sorted by path.

    Text that every machine with Python has. Third-party packages and the library's own tests are
    left out, so that what is installed and how Python was packaged matter little; different
    Python versions give different text.
    """
    root = Path(sysconfig.get_path("stdlib"))
    skip = {"site-packages", "dist-packages", "test", "tests", "idle_test", "__pycache__"}
    yield from _python(root, skip)


def packages(max_bytes: int | None = None) -> Iterator[Document]:
    """Python source of the installed packages, sorted by path, up to about `max_bytes`."""
    total = 0
    for document in _python(Path(sysconfig.get_path("purelib")), {"__pycache__"}):
        yield document
        total += len(document.text)
        if max_bytes is not None and total >= max_bytes:
            return


def held_out(document: Document, fraction: float) -> bool:
    """Whether a document is kept for evaluation: by the hash of its name, so never in both parts.

    Args:
      document: the document.
      fraction: the share of names that are held out, 0 to 1.
    """
    digest = hashlib.sha256(document.name.encode("utf-8", "surrogateescape")).digest()
    return int.from_bytes(digest[:8], "big") < fraction * 2**64


def _files(folder: Path, endings: tuple[str, ...]) -> list[Path]:
    files = (f for f in folder.rglob("*") if f.name.endswith(endings) and f.is_file())
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
    text = _text(file)
    if ".jsonl" not in file.suffixes:
        yield Document(name, text)
        return
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            yield Document(f"{name}:{number}", _field(line, field, f"{file} line {number}"))


def _text(file: Path) -> str:
    try:
        raw = file.read_bytes()
        raw = gzip.decompress(raw) if file.suffix == ".gz" else raw
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"cannot read {file}: {error}") from error
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise InputError(f"{file} is not UTF-8 text: byte {error.start} is not valid") from error
    if "\0" in text:
        raise InputError(f"{file} is not text: it holds a zero byte at {text.index(chr(0))}")
    return text


def _field(line: str, field: str, where: str) -> str:
    try:
        value = json.loads(line)
    except ValueError as error:
        raise InputError(f"{where} is not JSON: {error}") from error
    if not isinstance(value, dict) or not isinstance(value.get(field), str):
        raise InputError(f"{where} has no text under the key {field!r}")
    return value[field]
