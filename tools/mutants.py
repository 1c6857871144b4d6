"""Mutates the library here and there, and reports which mutants the tests notice.

    python tools/mutants.py --sample 100 --out results.jsonl [--seed 0] [--workers 4] [--minutes 9]
    python tools/mutants.py --sample 100 --out again.jsonl --survivors results.jsonl
    python tools/mutants.py --report results.jsonl

The mutations are cosmic-ray's (`pip install 'pangu-jax[mutants]'`): numbers one more and one less,
other operators and comparisons, conditions turned round, True for False, loops without a turn,
`break` for `continue`, handlers that catch nothing. Places are drawn with the seed, each room by
its share of all places, so that the score estimates the library's; `mutation/sites.py` says what is
no place (annotations, messages of errors, decorators: a function without `@jax.jit` is the same).

A mutant meets the nearest test files one by one, until one fails: `tests/<room>/test_<module>.py`,
then those that import the module. Each file first runs without a mutation, once a call: one that
fails then proves nothing and counts for no mutant, and one that passes says how long it takes. A
mutant for which a file takes longer than five times that, and than --timeout, is timed out.

Mutants live in copies of the checkout, one a worker, which holds its tests to its own processors.
Results are lines of JSON, appended as they come; the same command goes on where it was stopped, as
long as neither code nor tests changed. With --survivors, new tests meet what old ones missed.
Survivors that nobody can tell from the library are named, with the reason, in
`mutants_judged.toml`. Exits with 1 where tests fail without a mutation.
"""

import argparse
import contextlib
import hashlib
import importlib.metadata
import os
import signal
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from mutation.nearest_tests import NearestTests
from mutation.results import Results, judgments, read, record, report
from mutation.runs import Campaign, Case, Children, Copies, copy_checkout
from mutation.sites import PACKAGE, ROOMS, Mutant, sample


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--sample", type=int, default=100, help="how many mutants")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="where results go, a JSON object per line")
    parser.add_argument("--report", type=Path, help="only prints what such a file holds")
    parser.add_argument("--survivors", type=Path, help="only mutants that survived in such a file")
    parser.add_argument("--workers", type=int, default=max((os.cpu_count() or 1) // 2, 1))
    parser.add_argument("--rooms", nargs="+", choices=ROOMS, default=list(ROOMS))
    parser.add_argument("--files", type=int, default=3, help="test files a mutant meets at most")
    parser.add_argument("--timeout", type=float, default=60, help="seconds")
    parser.add_argument("--minutes", type=float, default=1e6, help="after which nothing runs")
    parser.add_argument("--tree", type=Path, default=Path(__file__).parents[1], help="the checkout")
    options = parser.parse_args()
    if not (options.out or options.report):
        parser.error("one of --out and --report is needed")
    for name in ("sample", "workers", "files", "timeout", "minutes"):
        if not getattr(options, name) > 0:
            parser.error(f"--{name} is {getattr(options, name)}, and must be above 0")
    return options


def digest(tree: Path) -> str:
    """The digest of the code and of the tests, with which results stand and fall."""
    paths = [p for room in (PACKAGE, "tests") for p in sorted((tree / room).rglob("*.py"))]
    found = hashlib.sha256()
    for path in paths:
        found.update(f"{path.relative_to(tree).as_posix()}\0".encode() + path.read_bytes() + b"\0")
    return found.hexdigest()[:16]


def commit(tree: Path) -> str | None:
    """The commit of the checkout, for readers; None where git or its folder is not available."""
    command = ["git", "-C", str(tree), "rev-parse", "HEAD"]
    with contextlib.suppress(OSError):
        return subprocess.run(command, capture_output=True, text=True).stdout.strip() or None
    return None


def heading(options: argparse.Namespace, tree: Path) -> dict:
    """What was asked for, and of which code."""
    try:
        version = importlib.metadata.version("cosmic-ray")
    except importlib.metadata.PackageNotFoundError:
        raise SystemExit("cosmic-ray is not installed: pip install 'pangu-jax[mutants]'") from None
    return {
        "sample": options.sample,
        "seed": options.seed,
        "rooms": options.rooms,
        "files": options.files,
        "code": digest(tree),
        "operators": f"cosmic-ray {version}",
        "commit": commit(options.tree),
    }


def run(
    mutants: list[Mutant], results: Results, tree: Path, options: argparse.Namespace, ends: float
) -> int:
    """Runs what is not done yet; returns the exit status."""
    done = {result["name"] for result in results.records}
    near = NearestTests(tree)
    cases = [Case(m, near.nearest(m.path, options.files)) for m in mutants if m.name not in done]
    children = Children(ends)

    def add(case: Case, skipped: list[int]) -> None:
        result = record(case, skipped)
        results.add(result)
        count = f"[{len(results.records)}/{len(mutants)}]"
        print(count, case.status, case.mutant.name, *result["tests"][-1:], flush=True)

    campaign, status = Campaign(cases, options.timeout, children, add), 0
    with tempfile.TemporaryDirectory(prefix="mutants-", ignore_cleanup_errors=True) as root:
        copies = Copies(tree, Path(root), options.workers)
        pool = ThreadPoolExecutor(options.workers, initializer=copies.claim)
        try:
            campaign.run(pool, copies, options.workers)
        except KeyboardInterrupt:
            status = 130
        finally:
            children.stop()
            pool.shutdown(cancel_futures=True)
    for test, found in campaign.broken.items():
        status = status or 1
        last = "it takes too long" if found.status is None else found.text.strip().split("\n")[-1]
        print(f"{test} fails without a mutation, so it counts for no mutant: {last}")
    if left := len(mutants) - len(results.records):
        print(f"{left} of {len(mutants)} mutants are left: the same command goes on with them")
    return status


def survivors(mutants: list[Mutant], path: Path) -> list[Mutant]:
    """Those of a sample that survived other tests, to see whether these notice them."""
    wanted = {result["name"] for result in read(path)[1] if result["status"] == "survived"}
    if lacking := wanted - {mutant.name for mutant in mutants}:
        raise SystemExit(f"{sorted(lacking)[0]} survived in {path} and is not of this sample")
    return [mutant for mutant in mutants if mutant.name in wanted]


def interrupt(*_) -> None:
    raise KeyboardInterrupt


def main() -> int:
    began, options = time.monotonic(), arguments()
    judged = judgments(options.tree)
    if options.report:
        print(report(read(options.report)[1], judged))
        return 0
    signal.signal(signal.SIGTERM, interrupt)
    with tempfile.TemporaryDirectory(prefix="mutants-") as root:
        tree = Path(root, "checkout")
        copy_checkout(options.tree, tree)  # which nobody edits meanwhile
        results = Results(options.out, heading(options, tree))
        mutants = sample(tree, options.rooms, options.sample, options.seed)
        if options.survivors:
            mutants = survivors(mutants, options.survivors)
        status = run(mutants, results, tree, options, began + 60 * options.minutes)
    print(report(results.records, judged))
    return status


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
