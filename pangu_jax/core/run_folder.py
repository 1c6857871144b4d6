"""A folder that only one process at a time may write: a run, a forecaster, a command's output.

`open_run` has the rules by which a run is started, resumed, or refused.
"""

import contextlib
import fcntl
import json
import os
import time
from collections.abc import Collection
from pathlib import Path
from typing import Any

from pangu_jax.core.config import read_json, save_config, to_json, up_to_date
from pangu_jax.core.errors import InputError

SETTINGS = "config.json"
LEFT = ("metrics.jsonl",)  # of a run that served its purpose, where another may begin
OTHERWISE = "choose another folder or delete it"
PATIENCE_S = 60.0  # of those who wait; what they wait for takes seconds


class Claim:
    """Exclusive hold on a folder, against other processes and within this one; a context manager.

    It ends when it is closed, and with the process however that ends: the lock is the kernel's, on
    the folder itself, so nothing is left of it. Where a file system knows no locks, all may claim.
    """

    def __init__(self, folder: str | Path, doing: str = "writing to", *, wait: bool = False):
        """Creates the folder if it is missing, and locks it.

        Args:
          folder: what is claimed.
          doing: what the holder of the claim does, for the errors that others then get.
          wait: whether to wait for that other, a minute at most.

        Raises:
          InputError: the folder cannot be made, or another has claimed it.
        """
        self.folder = Path(folder).absolute()
        self._made = False
        end = time.monotonic() + (PATIENCE_S if wait else 0)
        while (lock := self._lock()) is None:
            if time.monotonic() >= end:
                raise InputError(f"another process is {doing} {self.folder}")
            time.sleep(0.01)
        self._open: int | None = lock

    def __enter__(self) -> "Claim":
        """Returns the claim."""
        return self

    def __exit__(self, *_: object) -> None:
        """Releases the folder."""
        self.close()

    def close(self) -> None:
        """Releases the folder, and removes it if the claim made it and it is still empty."""
        if self._open is None:
            return
        if self._made and self.holds():
            with contextlib.suppress(OSError):
                self.folder.rmdir()
        os.close(self._open)
        self._open = None

    def holds(self) -> bool:
        """Whether the path still names the claimed folder: neither moved nor lost."""
        return self._open is not None and _is_named(self._open, self.folder)

    def _lock(self) -> int | None:
        """The folder, open and locked; None if another process has locked or is replacing it."""
        try:
            made = not self.folder.exists()
            self.folder.mkdir(parents=True, exist_ok=True)
            lock = os.open(self.folder, os.O_RDONLY)
        except FileNotFoundError:  # removed in between by one who gave it up
            return None
        except OSError as error:
            raise InputError(f"cannot make the folder {self.folder}: {error.strerror}") from error
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(lock)
            return None
        except OSError:
            pass  # a file system without locks
        if not _is_named(lock, self.folder):  # replaced or removed before it was locked
            os.close(lock)
            return None
        self._made = self._made or made
        return lock


def _is_named(lock: int, folder: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(lock), folder.stat())
    except OSError:
        return False


def open_run(
    folder: str | Path,
    settings: dict[str, Any],
    *,
    free: Collection[str] = (),
    doing: str = "computing in",
) -> Claim:
    """Claims the folder of a run that is then started or resumed.

    The rules are the same for everything that keeps a run in a folder:

    - One process holds it, from before anything in it is looked at until it ends.
    - Its settings are the first that is written, as config.json. Who goes on must have the same,
      but for what changes no result.
    - A folder whose settings have a name that is none of these is of another command or of a newer
      version, and one that holds files but no settings is something else: both are left alone.

    Args:
      folder: of the run; made if missing.
      settings: JSON values and configs, by the names that errors use.
      free: names whose values may differ.
      doing: as in `Claim`.

    Raises:
      InputError: another process has claimed the folder, it holds something else or a run of other
        settings, or it cannot be read or written.
    """
    claim = Claim(folder, doing)
    try:
        begin_run(folder, settings, free=free)
    except BaseException:
        claim.close()
        raise
    return claim


def begin_run(folder: str | Path, settings: dict[str, Any], *, free: Collection[str] = ()) -> None:
    """The part of `open_run` after the claim, with the same arguments."""
    wanted = json.loads(json.dumps(to_json(settings)))  # as reading gives them back
    if not has_run(folder, wanted, free=free):
        save_config(wanted, Path(folder) / SETTINGS)


def has_run(folder: str | Path, settings: dict[str, Any], *, free: Collection[str] = ()) -> bool:
    """Whether the claimed folder holds a run of these settings; False if it holds none.

    Args:
      folder: of the run.
      settings: JSON values by name, as its config.json has them.
      free: names whose values may differ.

    Raises:
      InputError: it holds a run of other settings, or something else; names what.
    """
    path = Path(folder) / SETTINGS
    if path.exists():
        found = read_json(path, finite=False)
        if not isinstance(found, dict):
            raise InputError(f"{path} holds no JSON object")
        check_same(up_to_date(found), settings, f"{folder} holds a run", free=free)
        return True
    others = [p.name for p in Path(folder).glob("[!.]*") if p.name not in LEFT]
    if others:
        raise InputError(
            f"{folder} holds {min(others)} but no run, which would have {SETTINGS}; {OTHERWISE}"
        )
    return False


def check_same(
    found: dict[str, Any], settings: dict[str, Any], what: str, *, free: Collection[str] = ()
) -> None:
    """Checks that something was made with these settings.

    Args:
      found: its settings, as they were read.
      settings: JSON values by name.
      what: how errors name it, such as "FOLDER holds a run".
      free: names whose values may differ.

    Raises:
      InputError: a setting differs, or is none of these; names the first.
    """
    for name in sorted(found.keys() - settings.keys() - set(free)):
        raise InputError(
            f"{what} with the setting {name!r}, which is none of this command's: another command "
            f"or a newer version made it; {OTHERWISE}"
        )
    for name in sorted(settings.keys() - set(free)):
        if found.get(name) != settings[name]:
            which, *values = _difference(name, found.get(name), settings[name])
            there, here = (json.dumps(value)[:80] for value in values)
            raise InputError(f"{what} with another {which}: {there}, not {here}; {OTHERWISE}")


def _difference(name: str, found: Any, wanted: Any) -> tuple[str, Any, Any]:
    """The first difference, as deep as both are objects: its dotted name and both values."""
    while True:
        found, wanted = _by_place(found, wanted)
        if not (isinstance(found, dict) and isinstance(wanted, dict)):
            return name, found, wanted
        inner = next(
            key for key in sorted({*found, *wanted})
            if (key in found, found.get(key)) != (key in wanted, wanted.get(key))
        )  # fmt: skip
        name, found, wanted = f"{name}.{inner}", found.get(inner), wanted.get(inner)


def _by_place(*pair: Any) -> tuple[Any, ...]:
    """Two equally long lists of objects as objects keyed by position; anything else unchanged."""
    if not all(isinstance(x, list) and all(isinstance(y, dict) for y in x) for x in pair):
        return pair
    if len({len(x) for x in pair}) > 1:
        return pair
    return tuple(dict(enumerate(x)) for x in pair)
