"""Runs Python that a model wrote, where it can do no harm, and judges it by tests.

The code and the tests run in two sandboxes that share two pipes. So nothing that the code does
changes the verdict but what its functions return; see `sandbox_child` for both sides.
"""

import contextlib
import dataclasses
import functools
import json
import os
import platform
import selectors
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any

from pangu_jax.core.errors import InputError
from pangu_jax.reasoning.sandbox_child import READY

SCRIPT = Path(__file__).with_name("sandbox_child.py")
MACHINES = ("x86_64", "aarch64")  # whose system calls the script knows
SHOWN = 2**16  # bytes of output, and of a verdict, that are kept
_SYSTEM = ("/usr", "/lib", "/lib32", "/lib64")
_ENVIRONMENT = {"LC_ALL": "C.UTF-8", "HOME": "/tmp", "PATH": "/usr/bin"}
_DEVICES = ("/dev/null", "/dev/zero", "/dev/urandom")


@dataclasses.dataclass(frozen=True)
class Limits:
    """What code may take; its tests are held to the same.

    Attributes:
      seconds: of the clock, until there must be a verdict.
      cpu_seconds: of the processor, of all threads together.
      memory: bytes of address space.
      file: bytes of one file.
      space: bytes of all files.
      threads: at most; there are no further processes.
    """

    seconds: float = 20.0
    cpu_seconds: int = 5
    memory: int = 2**30
    file: int = 2**23
    space: int = 2**25
    threads: int = 32


@dataclasses.dataclass(frozen=True)
class Verdict:
    """What came out.

    Attributes:
      passed: how many tests passed.
      total: how many there are.
      loaded: whether the code could be run at all.
      error: what went wrong first, None where nothing did. Of a failed test only that it did.
      output: the beginning of what the code printed.
    """

    passed: int
    total: int
    loaded: bool
    error: str | None
    output: str

    @property
    def right(self) -> bool:
        """Whether every test passed."""
        return self.passed == self.total


def run(
    source: str,
    tests: Sequence[str],
    *,
    names: Sequence[str],
    setup: str = "",
    allow: bool = False,
    limits: Limits = Limits(),
) -> Verdict:
    """Runs code, then tests of what it defines.

    In the tests `names` stand for calls into the sandbox of the code. Arguments and results go
    there and back as values: numbers, texts, bytes, and lists, tuples, sets and dictionaries of
    them. Other objects of the code can be given back to it, iterated, and asked for attributes, but
    not compared. What a call changes in its arguments is not seen.

    There is no network, no file but Python and the system's libraries, which cannot be written, and
    an empty /tmp; no further process can be started. Nothing is left behind.

    Args:
      source: what a model wrote.
      tests: Python, at least one piece; each passes that raises nothing.
      names: the functions, classes and constants that the tests have from the code. All others
        are Python's or those of `setup`, whatever the code defines.
      setup: Python that is trusted, run before the tests and beside them.
      allow: must be true. Running code that a model wrote is for the user to decide.
      limits: what it may take.

    Raises:
      InputError: it is not allowed, this system has no sandbox or cannot start one now, `tests` is
        empty, or they are no Python or their setup fails.
    """
    if not allow:
        raise InputError(
            "code that a model wrote is run only where that is allowed: by --allow-code-execution, "
            "or allow=True"
        )
    if not tests:
        raise InputError("there is no test to judge the code by")
    task = {"source": source, "tests": list(tests), "names": list(names), "setup": setup}
    try:
        with contextlib.ExitStack() as open_now:
            found, printed, late = _run(task, limits, open_now)
    except OSError as error:  # no more processes, files or memory
        raise InputError(f"cannot start a sandbox: {error}") from error
    return _verdict(found, printed.decode(errors="replace"), late, len(tests))


@functools.cache
def backend() -> str:
    """What shuts code in here: "bwrap", else "unshare"; both are tried.

    Raises:
      InputError: neither is there and permitted.
    """
    if sys.platform == "linux" and platform.machine() in MACHINES:
        for name in ("bwrap", "unshare"):
            if shutil.which(name) and _works(name):
                return name
    raise InputError(
        "code is not run here: that takes Linux on x86_64 or aarch64, and either bubblewrap or the "
        "permission to make user namespaces with unshare"
    )


def _run(
    task: dict[str, Any], limits: Limits, open_now: contextlib.ExitStack
) -> tuple[bytes, bytes, bool]:
    """What the tester and the code wrote, and whether time ran out."""
    given = open_now.enter_context(tempfile.TemporaryFile())  # noqa: SIM115
    given.write(json.dumps(task).encode())
    given.seek(0)
    calls, replies, output, verdict = (_pipe(open_now) for _ in range(4))
    # After both were ended, which is below: what they held is closed when they are gone.
    open_now.callback(_until_closed, verdict[0], output[0])
    try:
        for part, source, target, others in (
            ("candidate", calls[0], output[1], (replies[1],)),
            ("tester", replies[0], verdict[1], (calls[1], given)),
        ):
            open_now.enter_context(_started(part, limits, source, target, others))
    finally:  # so that each of them sees when the other ends
        for end in (*calls, *replies, output[1], verdict[1]):
            end.close()
    return _listen(verdict[0], output[0], time.monotonic() + limits.seconds)


def _pipe(open_now: contextlib.ExitStack) -> tuple[IO[bytes], IO[bytes]]:
    """Both ends, which no other process gets."""
    ends = os.pipe()
    read = open_now.enter_context(open(ends[0], "rb", buffering=0))  # noqa: SIM115
    write = open_now.enter_context(open(ends[1], "wb", buffering=0))  # noqa: SIM115
    return read, write


@contextlib.contextmanager
def _started(
    part: str, limits: Limits, source: IO, target: IO, others: Sequence[IO]
) -> Iterator[None]:
    """One of the two in its sandbox, until the block ends; then nothing of it is left."""
    numbers = [file.fileno() for file in others]
    command = [*_shut_in(backend(), limits), *_python(part, limits, backend()), *map(str, numbers)]
    process = subprocess.Popen(
        command,
        stdin=source,
        stdout=target,
        stderr=subprocess.DEVNULL,
        pass_fds=numbers,
        env=_ENVIRONMENT,
        cwd="/",
        start_new_session=True,
    )
    try:
        yield
    finally:
        # The process namespace's first process goes with the one that made it, and all others
        # with the first.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _listen(verdict: IO[bytes], output: IO[bytes], end: float) -> tuple[bytes, bytes, bool]:
    """What both pipes gave, the beginning of it, until the first is closed."""
    kept = {verdict: bytearray(), output: bytearray()}
    with selectors.DefaultSelector() as ready:
        for pipe in kept:
            ready.register(pipe, selectors.EVENT_READ)
        while verdict in ready.get_map() and time.monotonic() < end:
            _take(ready, kept, end - time.monotonic())
        # What was printed before the verdict may still be in the pipe, and may go on coming.
        while len(kept[output]) < SHOWN and _take(ready, kept, 0):
            pass
    return bytes(kept[verdict]), bytes(kept[output]), time.monotonic() >= end


def _until_closed(*pipes: IO[bytes]) -> None:
    """Waits until nobody can write to pipes any more; those who could have been ended."""
    kept, end = {pipe: bytearray(SHOWN) for pipe in pipes}, time.monotonic() + 10
    with selectors.DefaultSelector() as ready:
        for pipe in pipes:
            ready.register(pipe, selectors.EVENT_READ)
        while ready.get_map() and time.monotonic() < end:
            _take(ready, kept, end - time.monotonic())


def _take(ready: selectors.BaseSelector, kept: dict[Any, bytearray], seconds: float) -> bool:
    """Reads what is there, and keeps what fits; whether there was something."""
    came = ready.select(max(0.0, seconds)) if ready.get_map() else []
    for key, _ in came:
        part = os.read(key.fd, SHOWN)
        if not part:
            ready.unregister(key.fileobj)
        found = kept[key.fileobj]
        found += part[: SHOWN - len(found)]
    return bool(came)


def _verdict(found: bytes, output: str, late: bool, total: int) -> Verdict:
    ready, _, result = found.partition(b"\n")
    if ready != READY.encode():  # nothing of the code was run, so it is not the code's fault
        raise InputError(
            "cannot start a sandbox: it was not there "
            + ("in time" if late else "before it ended, as where memory or processes run out")
        )
    if late:
        return Verdict(0, total, True, "it took too long", output)
    try:
        values = json.loads(result)
    except ValueError:
        return Verdict(0, total, True, "the tests took too much", output)
    if "wrong" in values:
        raise InputError(f"the tests cannot be run: {values['wrong']}")
    error = values["error"]
    if error is not None:  # what the code raises may say half a character, which no file can hold
        error = error.encode("utf-8", "replace").decode()
    return Verdict(values["passed"], total, values["loaded"], error, output)


def _shut_in(name: str, limits: Limits) -> list[str]:
    """The words before those of Python."""
    links, folders = _places()
    if name == "unshare":  # the script mounts what there is
        spaces = ("--mount", "--pid", "--net", "--ipc", "--uts")
        # Both go with whoever started them, as by bubblewrap's --die-with-parent.
        dying = [_which("setpriv"), "--pdeathsig", "KILL", "--", _which(name), "--kill-child"]
        return [*dying, "--user", "--map-root-user", *spaces, "--fork", "--"]
    words = [_which(name), "--unshare-user", "--uid", "65534", "--gid", "65534", "--unshare-pid"]
    words += ["--unshare-net", "--unshare-ipc", "--unshare-uts", "--unshare-cgroup-try"]
    words += ["--die-with-parent", "--cap-drop", "ALL", "--hostname", "sandbox"]
    for folder in folders:
        words += ["--dev-bind" if folder in _DEVICES else "--ro-bind", folder, folder]
    for link, target in links:
        words += ["--symlink", target, link]
    words += ["--size", str(limits.space), "--tmpfs", "/tmp", "--chdir", "/tmp"]
    return [*words, "--remount-ro", "/", "--"]


def _python(part: str, limits: Limits, name: str) -> list[str]:
    """Python without the user's settings and packages, and the script, which is not mounted."""
    given = {
        "mount": [*_places(), limits.space] if name == "unshare" else None,
        "resources": {
            "CPU": limits.cpu_seconds,
            "AS": limits.memory,
            "FSIZE": limits.file,
            "NPROC": limits.threads,
            "NOFILE": 64,
            "CORE": 0,
        },
    }
    flags = ["-I", "-S", "-B", "-c", SCRIPT.read_text("utf-8")]
    return [os.path.realpath(sys.executable), *flags, part, json.dumps(given)]


def _places() -> tuple[list[tuple[str, str]], list[str]]:
    """Links, and the folders and devices of the system and of Python that are there."""
    own = {os.path.realpath(sys.base_prefix), os.path.realpath(sys.base_exec_prefix)}
    own = {place for place in own if not place.startswith(("/usr/", "/lib/")) and place != "/usr"}
    links = [(place, os.readlink(place)) for place in _SYSTEM if os.path.islink(place)]
    folders = [place for place in (*_SYSTEM, *sorted(own), *_DEVICES) if os.path.exists(place)]
    return links, [place for place in folders if not os.path.islink(place)]


def _which(name: str) -> str:
    return shutil.which(name) or name


def _works(name: str) -> bool:
    """Whether the script can shut itself in this way."""
    command = [*_shut_in(name, Limits()), *_python("candidate", Limits(), name), "1"]
    nothing = subprocess.DEVNULL
    try:
        done = subprocess.run(
            command, stdin=nothing, stdout=nothing, stderr=nothing, env=_ENVIRONMENT, timeout=30
        )
    except (OSError, subprocess.TimeoutExpired):
        return False
    return done.returncode == 0
