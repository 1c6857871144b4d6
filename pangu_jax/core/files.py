"""Files appear whole or not at all."""

import contextlib
import os
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Literal

from pangu_jax.core.errors import InputError


@contextlib.contextmanager
def atomic_write(path: str | Path, mode: Literal["w", "wb"] = "w") -> Iterator[IO]:
    """Opens a temporary file beside `path` that takes its place when the block ends well.

    Args:
      path: the file to write; its folder is made if missing.
      mode: "w" (UTF-8 text) or "wb".

    Raises:
      InputError: the folder cannot be made or the file not written (full disk, no permission).
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"cannot make the folder {path.parent}: {error.strerror}") from error
    try:
        # An ordinary open, so that the file gets the mode that the user's umask asks for.
        with open(temporary, mode.replace("w", "x"), encoding=_encoding(mode)) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror or error}") from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def _encoding(mode: str) -> str | None:
    return None if "b" in mode else "utf-8"
