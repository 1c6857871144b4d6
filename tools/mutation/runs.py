"""Test files run on mutants, in copies of the checkout, and for as long as there is time."""

import contextlib
import os
import queue
import re
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from pathlib import Path

from mutation.sites import PACKAGE, Mutant

COPIED = (PACKAGE, "tests", "experiments", "tools", "docs", "README.md", "pyproject.toml")
USUAL_AT_MOST = 1800.0  # seconds for a test file without a mutation
MEMORY = 8 << 30  # bytes a mutant may use: some ask for arrays without bounds
SAYS_NOTHING = (3, 5)  # pytest's exit statuses when it broke, and when it found no tests


@dataclass(frozen=True)
class Run:
    """How a test file ended: pytest's exit status, None where it took longer than it may."""

    status: int | None
    seconds: float
    passed: int
    skipped: int
    text: str


@dataclass
class Case:
    """A mutant on its way through its test files."""

    mutant: Mutant
    tests: list[str]
    runs: list[Run] = field(default_factory=list)

    @property
    def next(self) -> str:
        """The test file whose turn it is."""
        return self.tests[len(self.runs)]

    @property
    def status(self) -> str | None:
        """How it ended; None while it has test files to meet."""
        if self.runs and self.runs[-1].status != 0:
            status = self.runs[-1].status
            if status is None:
                return "timeout"
            return "incompetent" if status in SAYS_NOTHING else "killed"
        return "survived" if len(self.runs) == len(self.tests) else None


class Children:
    """Runs pytest in process groups of its own, until there is no time left."""

    def __init__(self, ends: float):
        self._ends, self._stopped = ends, False
        self._live: set[subprocess.Popen] = set()
        self._lock = threading.Lock()

    @property
    def over(self) -> bool:
        """Whether nothing more is to be started, and what runs is not to be counted."""
        return self._stopped or time.monotonic() >= self._ends

    def stop(self) -> None:
        """Ends all that runs."""
        with self._lock:
            self._stopped = True
            for child in self._live:
                _end(child)

    def run(self, folder: Path, test: str, limit: float) -> Run | None:
        """Runs a test file in a copy of the checkout; None where that was cut short."""
        command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider"]
        command += ["-m", "(long or not parity) and not slow", test]
        began = time.monotonic()
        with tempfile.TemporaryFile() as output:
            with self._lock:
                if self.over:
                    return None
                child = subprocess.Popen(
                    command,
                    cwd=folder,
                    env=_environment(folder),
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                )
                self._live.add(child)
            _bound_memory(child)
            try:
                status = child.wait(min(limit, max(self._ends - began, 0)))
            except subprocess.TimeoutExpired:
                status = None
            with self._lock:
                self._live.discard(child)
                _end(child)
            child.wait()
            output.seek(0)
            text = output.read().decode(errors="replace")
        if self.over:
            return None
        return Run(status, time.monotonic() - began, *_counts(text), text)


def _end(child: subprocess.Popen) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGKILL)


def _environment(folder: Path) -> dict[str, str]:
    """This one's, with the copy first on the path.

    Compiled files are not written, as they are told from their source by its length and the second
    it was written in, which two mutants may share.
    """
    others = [os.path.abspath(p) for p in os.environ.get("PYTHONPATH", "").split(os.pathsep) if p]
    return {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "PYTHONDONTWRITEBYTECODE": "1",
        "PYTHONPATH": os.pathsep.join([str(folder), *others]),
        "TMPDIR": str(folder.parent),
    }


def _bound_memory(child: subprocess.Popen) -> None:
    if hasattr(resource, "prlimit"):  # Linux
        with contextlib.suppress(ProcessLookupError):
            resource.prlimit(child.pid, resource.RLIMIT_DATA, (MEMORY, MEMORY))


def _counts(text: str) -> tuple[int, int]:
    """How many tests passed and how many were skipped, from pytest's last line."""
    last = text.rstrip().rpartition("\n")[2]
    found = {word: int(number) for number, word in re.findall(r"(\d+) (passed|skipped)", last)}
    return found.get("passed", 0), found.get("skipped", 0)


def copy_checkout(tree: Path, folder: Path) -> None:
    """Copies what tests may want of a checkout."""
    folder.mkdir(parents=True)
    compiled = shutil.ignore_patterns("__pycache__")
    for name in COPIED:
        if (tree / name).is_dir():
            shutil.copytree(tree / name, folder / name, ignore=compiled)
        elif (tree / name).exists():
            shutil.copy(tree / name, folder / name)


class Copies:
    """A copy of the checkout, and processors, for each thread that asks."""

    def __init__(self, tree: Path, root: Path, workers: int):
        self._tree, self._root, self._mine = tree, root, threading.local()
        self._numbers = queue.SimpleQueue()
        for number in range(workers):
            self._numbers.put(number)
        self._workers = workers

    def claim(self) -> None:
        """Makes the calling thread's copy.

        jax takes as many threads as there are processors it may use. XLA_FLAGS would not hold it
        back: the tests set their own.
        """
        number = self._numbers.get()
        folder = self._mine.folder = self._root / str(number) / "checkout"
        copy_checkout(self._tree, folder)
        if hasattr(os, "sched_setaffinity"):  # Linux; of this thread, and so of its children
            have = sorted(os.sched_getaffinity(0))
            mine = have[number :: self._workers] or [have[number % len(have)]]
            os.sched_setaffinity(0, mine)

    def run(self, children: Children, mutant: Mutant | None, test: str, limit: float) -> Run | None:
        """Runs a test file on a mutant, or on the library as it is."""
        folder = self._mine.folder
        if mutant is None:
            return children.run(folder, test, limit)
        path = folder / mutant.path
        try:
            path.write_text(mutant.after, encoding="utf-8")
            return children.run(folder, test, limit)
        finally:
            path.write_text(mutant.before, encoding="utf-8")


class Campaign:
    """Takes mutants through their tests, each test file without a mutation first."""

    def __init__(
        self,
        cases: list[Case],
        timeout: float,
        children: Children,
        add: Callable[[Case, list[int]], None],
    ):
        self._waiting = [case for case in cases if case.tests]
        self._timeout, self._children, self._add = timeout, children, add
        self._usual: dict[str, Run] = {}
        self._measured: set[str] = set()
        for case in cases:
            if not case.tests:
                add(case, [])
        self.broken: dict[str, Run] = {}

    def run(self, pool: ThreadPoolExecutor, copies: Copies, workers: int) -> None:
        """Goes on until all is done, or there is no time left."""
        running: dict[Future, Case | str] = {}
        while True:
            while len(running) < workers and (job := self._next()):
                case, test = (job, job.next) if isinstance(job, Case) else (None, job)
                limit = self._limit(test) if case else USUAL_AT_MOST
                mutant = case.mutant if case else None
                running[pool.submit(copies.run, self._children, mutant, test, limit)] = job
            if not running:
                return
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                self._ended(running.pop(future), future.result())

    def _limit(self, test: str) -> float:
        return max(self._timeout, 5 * self._usual[test].seconds)

    def _next(self) -> Case | str | None:
        """A mutant whose next test file is known, else a test file to be measured."""
        if self._children.over:
            return None
        for case in self._waiting:
            if case.next in self._usual:
                self._waiting.remove(case)
                return case
        for case in self._waiting:
            if case.next not in self._measured:
                self._measured.add(case.next)
                return case.next
        return None

    def _ended(self, job: Case | str, run: Run | None) -> None:
        if run is None:
            return
        if isinstance(job, str):
            (self._usual if run.status == 0 else self.broken)[job] = run
            return
        job.runs.append(run)
        if job.status is None:
            self._waiting.insert(0, job)
        else:
            self._add(job, [self._usual[test].skipped for test in job.tests[: len(job.runs)]])
