"""Atomic writes: files and folders appear whole or not at all."""

import contextlib
import ctypes
import errno
import fcntl
import os
import re
import shutil
import stat
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Literal

from pangu_jax.core.errors import InputError

# What a folder is called while it is filled, and one while it is being replaced.
_NEW, _OLD = ".new", ".old"
_TEMPORARY = r"\.{}\.[0-9a-f]{{8}}(\.new|\.old)"
_AS_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW


@contextlib.contextmanager
def atomic_write(path: str | Path, mode: Literal["w", "wb"] = "w") -> Iterator[IO]:
    """Opens a temporary file beside `path` that replaces it when the block succeeds.

    Args:
      path: the file to write; its folder is made if missing.
      mode: "w" (UTF-8 text) or "wb".

    Raises:
      InputError: the folder cannot be made or the file not written (full disk, no permission).
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}")
    _make_folder(path.parent)
    try:
        # An ordinary open, so that the file's mode follows the user's umask.
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


@contextlib.contextmanager
def new_folder(path: str | Path, *, replace: bool = False) -> Iterator[Path]:
    """A temporary folder beside `path` that replaces it when the block succeeds.

    What a killed process left of the same folder is cleared first; a folder that a living process
    is filling is left alone, as it holds a lock. A folder that is replaced is swapped with the
    new one in a single step; a file system without such a step has it set aside for a moment, and a
    process killed in that moment leaves it to be put back by the next call.

    Folders and files get the modes of ordinary ones. Inside such a block, one for the temporary
    folder gives that folder itself.

    Args:
      path: the folder to make; its parents are made if missing.
      replace: whether a folder that is not empty may be there. Whether it is one that may go is
        for the caller to check.

    Raises:
      InputError: something is there that may not be replaced, or the folder cannot be written.
    """
    path = Path(path)
    place = path.resolve()  # what a link points to is replaced, not the link
    if re.fullmatch(_TEMPORARY.format(".*"), place.name) and place.is_dir():
        yield path  # whoever makes it sees to the rest
        return
    _make_folder(place.parent)
    _clear(place)
    _refuse_occupied(path, replace)
    temporary, lock = _locked_folder(place)
    try:
        yield temporary
        _settle(temporary)
        _put(temporary, place, replace)
    except OSError as error:
        if error.errno in (errno.ENOTEMPTY, errno.EEXIST):
            _refuse_occupied(path, replace)  # filled by someone else meanwhile
        raise InputError(f"cannot write {path}: {error.strerror or error}") from error
    finally:
        # Before the lock is released; after a swap this is the folder that was replaced.
        shutil.rmtree(temporary, ignore_errors=True)
        os.close(lock)


def regular(path: str | Path) -> Path:
    """`path`, if it is an ordinary file: opening a pipe would wait for its writer.

    Raises:
      InputError: it is missing, a folder, or a pipe, socket or device.
    """
    try:
        mode = os.stat(path).st_mode
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"cannot read {path}: {reason}") from error
    if stat.S_ISDIR(mode):
        raise InputError(f"cannot read {path}: {os.strerror(errno.EISDIR)}")
    if not stat.S_ISREG(mode):
        raise InputError(f"cannot read {path}: it is no ordinary file but a pipe or device")
    return Path(path)


def _encoding(mode: str) -> str | None:
    return None if "b" in mode else "utf-8"


def _make_folder(path: Path) -> None:
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"cannot make the folder {path}: {error.strerror}") from error


def _refuse_occupied(path: Path, replace: bool) -> None:
    try:
        occupied = os.path.lexists(path) and (
            not path.is_dir() or (not replace and any(path.iterdir()))
        )
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from error
    if occupied:
        raise InputError(f"{path} exists and is not empty; name a new folder")


def _locked_folder(place: Path) -> tuple[Path, int]:
    """A new folder beside `place`, and the lock that shows that its creator is alive."""
    while True:
        temporary = place.with_name(f".{place.name}.{uuid.uuid4().hex[:8]}{_NEW}")
        try:
            temporary.mkdir()  # with the mode that the user's umask asks for
        except OSError as error:
            raise InputError(f"cannot write {place}: {error.strerror}") from error
        with contextlib.suppress(FileNotFoundError):
            lock = os.open(temporary, _AS_FOLDER)
            # Until it is locked another process may remove it; then another name is tried.
            if _lock(lock) is not False and temporary.exists():
                return temporary, lock
            os.close(lock)


def _lock(folder: int) -> bool | None:
    """Locks an open folder until it is closed, however the process ends.

    Returns:
      Whether that could be done; None on a file system without locks.
    """
    try:
        fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return None
    return True


def _clear(place: Path) -> None:
    """Removes, or restores, what killed processes left beside `place`."""
    with contextlib.suppress(OSError):  # a folder that may not be listed
        for left in place.parent.iterdir():
            if re.fullmatch(_TEMPORARY.format(re.escape(place.name)), left.name):
                _clear_one(left, place)


def _clear_one(left: Path, place: Path) -> None:
    try:
        folder = os.open(left, _AS_FOLDER)
    except OSError:  # gone meanwhile, or no folder
        return
    try:
        if _lock(folder) and left.suffix == _OLD and not place.exists():
            left.rename(place)
        elif _lock(folder):
            shutil.rmtree(left, ignore_errors=True)
    finally:
        os.close(folder)


def _settle(folder: Path) -> None:
    """Syncs every file below a folder to disk and makes it as readable as the folder."""
    mode = folder.stat().st_mode
    for where, _, names in os.walk(folder):
        for name in names:
            with open(os.path.join(where, name), "rb") as file:
                runs = os.fstat(file.fileno()).st_mode & 0o111  # a script stays one
                os.fchmod(file.fileno(), mode & (0o666 | runs))
                os.fsync(file.fileno())


def _put(temporary: Path, place: Path, replace: bool) -> None:
    """Renames a folder into place; what had that name becomes `temporary`, or is removed."""
    try:
        os.rename(temporary, place)
        return
    except OSError as error:
        if not replace or error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise
    if _swap(temporary, place):
        return
    old = temporary.with_suffix(_OLD)
    opened = os.open(place, _AS_FOLDER)
    try:
        _lock(opened)  # so that nobody puts it back meanwhile
        os.rename(place, old)
        os.rename(temporary, place)
        shutil.rmtree(old, ignore_errors=True)
    finally:
        os.close(opened)


def _swap(a: Path, b: Path) -> bool:
    """Exchanges two names atomically, where the system and the file system support it."""
    libc = ctypes.CDLL(None, use_errno=True)
    try:
        if sys.platform == "darwin":
            failed = libc.renamex_np(os.fsencode(a), os.fsencode(b), 2)  # RENAME_SWAP
        else:
            here = -100  # AT_FDCWD, and RENAME_EXCHANGE below
            failed = libc.renameat2(here, os.fsencode(a), here, os.fsencode(b), 2)
    except AttributeError:
        return False
    number = ctypes.get_errno()
    if failed and number not in (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP):
        raise OSError(number, os.strerror(number))
    return not failed
