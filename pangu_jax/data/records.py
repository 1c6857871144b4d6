"""Prepared datasets: the array_record files that tensorflow-datasets writes, read with grain.

tensorflow-datasets defines and prepares (see `wikitext2` and `ltsf_tfds`); reading needs neither it
nor TensorFlow, so a machine that trains has grain and array_record only.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pangu_jax.core.config import read_json
from pangu_jax.core.errors import InputError

INFO = "dataset_info.json"


def write(builder_class: type, out: str | Path, **options: Any) -> Path:
    """Writes the dataset that a tensorflow-datasets builder describes, unless it exists already.

    Args:
      builder_class: the builder.
      out: folder of datasets.
      options: for its `download_and_prepare`.

    Returns:
      The prepared folder.

    Raises:
      InputError: nothing can be written there.
    """
    try:
        builder = builder_class(data_dir=str(out), file_format="array_record")
        builder.download_and_prepare(**options)
    except OSError as error:
        raise InputError(f"cannot write {out}: {error.strerror or error}") from error
    return Path(builder.data_dir)


def splits(folder: str | Path) -> dict[str, list[str]]:
    """The array_record files of each split of a prepared dataset.

    Raises:
      InputError: the folder holds no prepared dataset, or one of another format.
    """
    folder = Path(folder)
    info = read_json(folder / INFO)
    if not isinstance(info, dict) or info.get("fileFormat") != "array_record":
        raise InputError(f"{folder / INFO} is of no dataset in array_record files")
    try:
        dataset, described = str(info["name"]), info["splits"]
        counts = {str(split["name"]): len(split["shardLengths"]) for split in described}
    except (KeyError, TypeError) as error:
        raise InputError(
            f"{folder / INFO} is damaged: it does not say the dataset's name and, of each of its "
            "splits, name and shardLengths; prepare it again"
        ) from error
    found = {}
    for name, count in counts.items():
        prefix = f"{dataset}-{name}.array_record"
        files = sorted(str(path) for path in folder.iterdir() if path.name.startswith(prefix))
        if len(files) != count:
            raise InputError(
                f"{folder} has {len(files)} files of the split {name}, {INFO} lists {count}; "
                "prepare it again"
            )
        found[name] = files
    return found


class Records:
    """The Source of one split: texts, bytes and integers by name."""

    def __init__(self, folder: str | Path, split: str):
        """Opens the split's files.

        Raises:
          InputError: there is no such split, or its files are damaged.
        """
        # Here, as whoever reads other text may be without it.
        import grain

        known = splits(folder)
        if split not in known:
            raise InputError(f"{folder} has no split {split!r}; known: {', '.join(known)}")
        self._where = f"{folder} split {split}"
        try:
            self._records = grain.sources.ArrayRecordDataSource(known[split])
            self._length = len(self._records)
        except Exception as error:  # the library raises many kinds for damaged files
            raise InputError(f"cannot read {self._where}: {error}") from error

    def __len__(self) -> int:
        """Number of examples."""
        return self._length

    def __getitem__(self, index: int) -> dict[str, bytes | int]:
        """One example.

        Raises:
          InputError: its record is damaged.
        """
        try:
            return dict(_features(self._records[index]))
        except Exception as error:
            raise InputError(f"record {index} of {self._where} is damaged: {error}") from error


def _features(record: bytes) -> Iterator[tuple[str, bytes | int]]:
    """The features with a single value, bytes or int64, of a serialized tf.train.Example.

    Example has a Features as field 1, which has map entries as field 1: the key as field 1, and as
    field 2 a Feature. Its field 1 is a list of bytes, its values each a field 1; its field 3 a list
    of int64, its values packed into one field 1.
    """
    for features in _fields(record, 1):
        for entry in _fields(features, 1):
            (key,), (feature,) = _fields(entry, 1), _fields(entry, 2)
            values: list[bytes | int] = [v for x in _fields(feature, 1) for v in _fields(x, 1)]
            values += [v for x in _fields(feature, 3) for y in _fields(x, 1) for v in _integers(y)]
            if len(values) == 1:
                yield key.decode(), values[0]


def _fields(message: bytes, number: int) -> list[bytes]:
    """The length-delimited fields of that number in a protocol buffer message."""
    found, at = [], 0
    while at < len(message):
        tag, at = _varint(message, at)
        size, at = _varint(message, at)
        if tag & 7 != 2 or at + size > len(message):
            raise ValueError("a field is not as it should be")
        if tag >> 3 == number:
            found.append(message[at : at + size])
        at += size
    return found


def _integers(packed: bytes) -> Iterator[int]:
    at = 0
    while at < len(packed):
        value, at = _varint(packed, at)
        yield value - 2**64 if value >> 63 else value


def _varint(message: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = message[at]
        value |= (byte & 127) << shift
        at, shift = at + 1, shift + 7
        if byte < 128:
            return value, at


def is_prepared(path: Path) -> bool:
    """Whether a path is a prepared dataset: a folder, or a folder and a split (folder:test)."""
    return (_parted(path)[0] / INFO).is_file()


def read_texts(path: Path, field: str) -> Iterator[tuple[str, bytes]]:
    """(name, text) of all examples of a prepared dataset: all splits, or the one after a colon.

    Raises:
      InputError: there is no such split or field, or a file is damaged.
    """
    folder, split = _parted(path)
    for name in [split] if split else splits(folder):
        records = Records(folder, name)
        for index in range(len(records)):
            texts = {key: x for key, x in records[index].items() if isinstance(x, bytes)}
            if field not in texts:
                raise InputError(
                    f"{folder} split {name} has no text {field!r}; known: {', '.join(texts)}"
                )
            yield f"{name}:{index}", texts[field]


def _parted(path: Path) -> tuple[Path, str]:
    name, colon, split = path.name.partition(":")
    return (path.with_name(name), split) if colon and not path.exists() else (path, "")
