"""What became of mutants: kept in a file, a line each, and told at the end."""

import difflib
import json
import tomllib
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from mutation.runs import Case

# What must be the same for results to be of one sample; `commit` only tells readers more.
ASKED = ("sample", "seed", "rooms", "files", "code", "operators")


class Results:
    """The file of results: what was asked for, then one line per mutant."""

    def __init__(self, path: Path, head: dict):
        self._path, self.records = path, []
        if path.exists() and path.stat().st_size:
            found, self.records = read(path)
            other = [f"{k} {found[k]}, not {head[k]}" for k in ASKED if found[k] != head[k]]
            if other:
                raise SystemExit(f"{path} holds results of {'; '.join(other)}: name another file")
            with path.open("rb+") as file:  # what a line lacks that was not written to its end
                file.truncate(path.read_bytes().rfind(b"\n") + 1)
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._write(head)

    def add(self, record: dict) -> None:
        """Appends a mutant's result."""
        self.records.append(record)
        self._write(record)

    def _write(self, values: dict) -> None:
        with self._path.open("ab", buffering=0) as file:
            file.write(json.dumps(values).encode() + b"\n")


def read(path: Path) -> tuple[dict, list[dict]]:
    """What was asked for, and the results; a last line that was cut off is left out."""
    try:
        head, *records = [json.loads(line) for line in path.read_bytes().split(b"\n")[:-1]]
        whole = all(key in head for key in ASKED)
    except (OSError, ValueError, TypeError) as error:
        raise SystemExit(f"{path} cannot be read as results of this tool: {error}") from None
    if not whole:
        raise SystemExit(f"{path} does not say which sample its results are of")
    return head, records


def record(case: Case, skipped: list[int]) -> dict:
    """A mutant's result, as it is kept."""
    mutant, runs = case.mutant, case.runs
    texts = (mutant.before.splitlines(), mutant.after.splitlines())
    names = (f"a/{mutant.path}", f"b/{mutant.path}")
    return {
        "name": mutant.name,
        "status": case.status,
        "tests": case.tests[: len(runs)],
        "passed": [run.passed for run in runs],
        "skipped": skipped,
        "seconds": round(sum(run.seconds for run in runs), 1),
        "diff": "\n".join(difflib.unified_diff(*texts, *names, n=1, lineterm="")),
    }


def changed(diff: str) -> tuple[str, str]:
    """The lines that a mutant lacks, and those it has instead."""
    lines = diff.splitlines()[3:]
    return tuple("\n".join(s[1:].strip() for s in lines if s.startswith(sign)) for sign in "-+")


def judgments(tree: Path) -> dict[tuple[str, str, str], str]:
    """Why some survivors are the same program, by path, line and what it became."""
    path = tree / "tools" / "mutants_judged.toml"
    if not path.exists():
        return {}
    rows = tomllib.loads(path.read_text(encoding="utf-8")).get("equivalent", [])
    return {(row["path"], row["was"], row["now"]): row["because"] for row in rows}


def report(records: Iterable[dict], judged: dict) -> str:
    """The score, the rooms', and the survivors each with what was changed."""
    total, rooms, told = Counter(), {}, []
    for result in sorted(records, key=lambda result: result["name"]):
        path, status = result["name"].split(":")[0], result["status"]
        was, now = changed(result["diff"])
        because = judged.get((path, was, now)) if status == "survived" else None
        if status == "survived":
            told += _survivor(result, was, now, because)
        status = "equivalent" if because else status
        total[status] += 1
        rooms.setdefault(path.split("/")[1], Counter())[status] += 1
    lines = [f"{room}: {_score(counts)}" for room, counts in rooms.items()]
    return "\n".join([f"in all: {_score(total)}", *lines, *told])


def _score(counts: Counter) -> str:
    judged = counts["killed"] + counts["timeout"] + counts["survived"]
    parts = [f"killed {counts['killed']} of {judged} mutants"]
    if judged:
        parts[0] += f" ({100 * counts['killed'] / judged:.0f} %)"
    for status, words in (
        ("timeout", "timed out"),
        ("survived", "survived"),
        ("equivalent", "equivalent besides"),
        ("incompetent", "without an answer besides"),
    ):
        if counts[status]:
            parts.append(f"{counts[status]} {words}")
    return ", ".join(parts)


def _survivor(result: dict, was: str, now: str, because: str | None) -> list[str]:
    met = [
        f"{test} ({passed} passed, {skipped} skipped)"
        for test, passed, skipped in zip(
            result["tests"], result["passed"], result["skipped"], strict=True
        )
    ]
    lines = ["", f"{result['name']}: {', '.join(met) or 'no test imports it'}"]
    lines += [f"  - {line}" for line in was.splitlines()]
    lines += [f"  + {line}" for line in now.splitlines()]
    return lines + ([f"  equivalent: {because}"] if because else [])
