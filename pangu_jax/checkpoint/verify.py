"""Verifies a Hugging Face folder: against itself, and against the checksums released with it."""

import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path

from pangu_jax.checkpoint import hf, safetensors_files
from pangu_jax.core.config import read_json
from pangu_jax.core.digest import digest
from pangu_jax.core.errors import InputError

# Which hash a sum is of, by its hexadecimal digits.
HASHES = {32: "md5", 40: "sha1", 64: "sha256", 128: "sha512"}
LISTS = re.compile(r"(md5|sha\d+)sums?(\.txt)?|checksums?(\.txt)?|checklist\.chk", re.IGNORECASE)
SIDECAR = re.compile(r"(.+)\.(md5|sha1|sha256|sha512)(sum)?", re.IGNORECASE)

_LINE = re.compile(r"\\?([0-9a-f]+)(?:\s+\*?(.+))?", re.IGNORECASE)  # as sha256sum writes it
_TAGGED = re.compile(r"\w+ \((.+)\) = ([0-9a-f]+)", re.IGNORECASE)  # sha256sum --tag, and BSD


def check_structure(folder: str | Path) -> str:
    """Compares config.json, the index and the headers of the files, and reads every value.

    Returns:
      The findings, as text.

    Raises:
      InputError: they do not match, or a value is not finite.
    """
    folder = Path(folder)
    opened = hf.read_headers(folder)
    if not os.path.lexists(folder / safetensors_files.SINGLE):
        _check_index(folder)
    places = hf.assign_tensors(opened, folder)
    for place in (place for parts in places.values() for place in parts):
        hf.read_part(opened.stored[place.tensor], place)
    number = len({stored.file for stored in opened.stored.values()})
    files = "1 file fit" if number == 1 else f"{number:,} files fit"
    return f"{len(opened.stored):,} tensors in {files} config.json; all values are finite"


def check_sums(
    folder: str | Path, progress: Callable[[str], None] = lambda name: None
) -> tuple[list[str], list[str]]:
    """Recomputes the checksums that came with the folder.

    These are lists such as SHA256SUMS, files such as model.safetensors.sha256, and, in the cache of
    the Hugging Face hub, the names of the links' targets.

    Args:
      folder: the folder.
      progress: called with each file before it is read.

    Returns:
      The files whose sums are right, and missing files that have a sum.

    Raises:
      InputError: there are no sums, a file with tensors has none, or a file differs; names all.
    """
    folder = Path(folder)
    try:
        sums = _linked_sums(folder) | _written_sums(folder)
    except OSError as error:
        raise InputError(f"cannot read {folder}: {error.strerror}") from error
    if not sums:
        raise InputError(
            f"{folder} came without checksums (SHA256SUMS, checksums.txt, checklist.chk, *.sha256, "
            "or the links of the Hugging Face cache), so whether it is what was published cannot "
            "be told"
        )
    right, absent, wrong = [], [], []
    for name, wanted in sorted(sums.items()):
        if not os.path.exists(folder / name):
            absent.append(name)
            continue
        progress(name)
        found = _digest(safetensors_files.own_file(folder, name), HASHES[len(wanted)])
        (right if found == wanted else wrong).append(name)
    differ = [f"{name} differs from its {HASHES[len(sums[name])]}" for name in wrong]
    files = {stored.file.name for stored in safetensors_files.find(folder).values()}
    differ += [f"{name} has no checksum" for name in sorted(files - sums.keys())]
    if differ:
        raise InputError(f"{folder} is not what was published: {', '.join(differ)}")
    return right, absent


def _digest(path: Path, kind: str) -> str:
    try:
        return digest(path, kind)
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from error


def _check_index(folder: Path) -> None:
    """Checks that the index and the files agree on every tensor."""
    weight_map = read_json(safetensors_files.own_file(folder, safetensors_files.INDEX))[
        "weight_map"
    ]
    for name, stored in safetensors_files.find(folder).items():
        if weight_map.get(name) != stored.file.name:
            where = weight_map.get(name, "nowhere")
            raise InputError(
                f"{stored.file} holds {name}, which {safetensors_files.INDEX} has {where}"
            )


def _linked_sums(folder: Path) -> dict[str, str]:
    links = [path for path in folder.iterdir() if path.is_symlink()]
    blobs = {path.name: path.resolve().name for path in links}
    return {name: blob for name, blob in blobs.items() if re.fullmatch("[0-9a-f]{64}", blob)}


def _written_sums(folder: Path) -> dict[str, str]:
    found: dict[str, str] = {}
    for path in sorted(folder.iterdir()):
        beside = SIDECAR.fullmatch(path.name)
        if beside is None and not LISTS.fullmatch(path.name):
            continue
        for name, value in _read_sums(path, beside and beside[1]):
            if found.setdefault(name, value) != value and len(found[name]) == len(value):
                raise InputError(f"{path} has another checksum for {name} than the file before it")
    return found


def _read_sums(path: Path, only: str | None) -> Iterator[tuple[str, str]]:
    """(file, sum) for each line; `only` is the name that a list of one file may omit."""
    try:
        text = safetensors_files.own_file(path.parent, path.name).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot read {path}: {error}") from error
    lines = [line.strip() for line in text.splitlines()]
    for line in (line for line in lines if line and not line.startswith("#")):
        value, name = _split(line)
        name = (only or name).removeprefix("./")
        if len(value) not in HASHES or not name:
            raise InputError(f"{path} is no list of checksums: {line!r:.60} is not HEX  NAME")
        if Path(name).is_absolute() or ".." in Path(name).parts:
            raise InputError(f"{path} names a file outside its folder: {name!r:.100}")
        if name != path.name:  # a list that was made while it was there
            yield name, value.lower()


def _split(line: str) -> tuple[str, str]:
    """Sum and file of a line; both empty if the line has none."""
    if tagged := _TAGGED.fullmatch(line):
        return tagged[2], tagged[1]
    plain = _LINE.fullmatch(line)
    return (plain[1], plain[2] or "") if plain else ("", "")
