"""report.md of a bench: one table, and how its figures were measured."""

import json
from pathlib import Path
from typing import Any

from pangu_jax.study import report


def write_report(folder: Path, settings: dict[str, Any], results: dict[str, Any]) -> str:
    """Writes report.md; returns its table, and where the files are, for the terminal.

    Args:
      folder: the run's folder.
      settings: the run's settings, as `bench` saves them.
      results: the run's cells.

    Raises:
      InputError: it cannot be written.
    """
    tasks = list(settings["data"])
    samples = settings["protocol"]["samples"]
    shown = table({name: results[name] for name in tasks}, samples)
    model, protocol = settings["model"], settings["protocol"]
    prompts = json.dumps(protocol["prompts"], indent=1, ensure_ascii=False)
    lines = [
        f"# {model['name']}", "", shown, "",
        "Intervals cover 95 %, over questions: Wilson's for shares, resampled for lengths. "
        "An answer that could not be judged is left out of avg and pass, and counted; one without "
        "an answer of the form that was asked for is wrong. Cut off is what had no end within "
        f"{protocol['max_new_tokens']:,} tokens.", "",
        f"Mode {protocol['mode']}, {samples} answers per question, temperature "
        f"{protocol['sampling']['temperature']:g}, top-k {protocol['sampling']['top_k']}, top-p "
        f"{protocol['sampling']['top_p']:g}, seed {protocol['seed']}, {protocol['dtype']}.", "",
        *(f"- {name}: {value}" for name, value in results["hashes"].items()), "",
        "## Prompts", "", "```json", prompts, "```", "",
    ]  # fmt: skip
    report.write(folder, "\n".join(lines))
    return f"{shown}\n\nanswers, results.json and report.md are in {folder}"


def table(cells: dict[str, dict[str, Any]], samples: int) -> str:
    """A Markdown table of scores, one row per task, and which tasks repeat questions.

    Args:
      cells: the results of each task, by its name.
      samples: answers per question.
    """
    several = [k for k in next(iter(cells.values()))["pass"] if k != "1"]
    head = ["task", "questions", f"avg@{samples}", *(f"pass@{k}" for k in several), "tokens"]
    head += ["no answer", "cut off", "not judged"]
    rows = [head, ["---"] * len(head)]
    for name, cell in cells.items():
        shares = [_share(cell["avg"]), *(_share(cell["pass"][k]) for k in several)]
        counts = [cell[key] for key in ("format_errors", "cut_off", "not_judged")]
        of = [f"{count / cell['answers']:.1%}" if count else "0" for count in counts]
        rows.append([name, f"{cell['questions']:,}", *shares, _length(cell["tokens"]), *of])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "| " + " | ".join(x.ljust(w) for x, w in zip(row, widths, strict=True)) + " |"
        for row in rows
    ]
    return "\n".join([*lines, *_repetitions(cells)])


def _repetitions(cells: dict[str, dict[str, Any]]) -> list[str]:
    # Cells of before repetitions were counted say nothing of them.
    counts = {name: cell["repeated"] for name, cell in cells.items() if cell.get("repeated")}
    if not counts:
        return []
    told = ", ".join(f"{count:,} of {name}" for name, count in counts.items())
    return [
        "",
        f"Questions whose prompt occurs earlier in their task: {told}. Each counts, as if it were "
        "another one, so intervals are too narrow there.",
    ]


def _share(found: dict[str, Any]) -> str:
    if found["value"] is None:
        return "-"
    return f"{found['value']:.1%} [{found['low']:.1%}, {found['high']:.1%}]"


def _length(found: dict[str, Any]) -> str:
    return f"{found['value']:.0f} [{found['low']:.0f}, {found['high']:.0f}]"
