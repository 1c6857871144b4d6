"""Hashes of files and of JSON values."""

import hashlib
import json
from pathlib import Path
from typing import Any


def sha256(path: str | Path) -> str:
    """SHA-256 of a file, as hexadecimal digits.

    Raises:
      OSError: it cannot be read.
    """
    return digest(path, "sha256")


def digest(path: str | Path, kind: str) -> str:
    """Hash of a file in hexadecimal digits; `kind` is a name that hashlib knows.

    Raises:
      OSError: it cannot be read.
    """
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, kind).hexdigest()


def json_digest(values: Any) -> str:
    """SHA-256 of JSON values, independent of key order."""
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()
