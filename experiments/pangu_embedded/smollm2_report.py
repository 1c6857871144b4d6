"""The report of `smollm2_rl`: accuracy before and after, with intervals."""

from pathlib import Path
from typing import Any

import numpy as np

from pangu_jax.eval.pass_at_k import wilson
from pangu_jax.study import plot, report
from pangu_jax.study.table import table


def write(folder: Path, results: dict[str, Any]) -> Path:
    """Draws the plot and writes report.md, from the cells that there are; returns its path."""
    parts = [text(results)]
    if "base" in results:
        _plot(folder, results)
        parts.append("![right answers](plots/accuracy.png)")
    return report.write(folder, "\n\n".join([*parts, report.machine()]) + "\n")


def _columns(results: dict[str, Any]) -> tuple[dict[str, dict[str, Any]], list[str]]:
    """Answers by what was learned before, and the seeds that learned by rewards."""
    columns = {"as it is": results["base"]}
    if "sft accuracy" in results:
        columns["solutions"] = results["sft accuracy"]
    seeds = [name.partition("/")[2] for name in results if name.startswith("rl accuracy/")]
    return columns | {f"rewards, seed {x}": results[f"rl accuracy/{x}"] for x in seeds}, seeds


def _plot(folder: Path, results: dict[str, Any]) -> None:
    """Right answers with intervals, a panel for each test."""
    tests, (columns, _) = results["split"]["tests"], _columns(results)
    size = (2.6 * len(tests) + 1.5, 1.5 + 0.35 * len(columns))
    with plot.figure(
        folder, "accuracy", 1, len(tests), figsize=size, squeeze=False, sharey=True
    ) as panels:
        for panel, test in zip(panels[0], tests, strict=True):
            found = {name: wilson(_right(column, test)) for name, column in columns.items()}
            plot.estimates(panel, {k: [(x.value, x.low, x.high)] for k, x in found.items()})
            panel.set(xlabel="right answers", title=test)


def text(results: dict[str, Any]) -> str:
    """What the cells that there are say, as Markdown."""
    if "base" not in results:
        return "# Word problems\n\nNothing is measured yet."
    columns, seeds = _columns(results)
    parts = ["# Word problems", _accuracies(results["split"], columns)]
    if seeds:
        parts.append(_gains(results["split"], results["sft accuracy"], columns, seeds))
    parts.append(_likeness(results["split"], columns))
    parts += [_run(results, seed) for seed in seeds]
    return "\n\n".join(parts)


def _right(column: dict[str, Any], name: str) -> np.ndarray:
    return np.array([int(digit) for digit in column[name]["right"]], float)


def _accuracies(split: dict[str, Any], columns: dict[str, Any]) -> str:
    rows = []
    for name, count in split["tests"].items():
        row = [name, f"{count:,}"]
        for column in columns.values():
            found = wilson(_right(column, name))
            row.append(f"{100 * found.value:.1f} [{100 * found.low:.1f}, {100 * found.high:.1f}]")
        rows.append(row)
    learned, dropped = split["training"], sum(split["dropped"].values())
    pools = ", ".join(f"{count:,} of {name}" for name, count in learned.items())
    return (
        "Right answers, % [Wilson's 95 % interval].\n\n"
        + table(["test", "questions", *columns], rows)
        + f"\n\nLearned from: {pools}; {dropped} were dropped, as a test has the like."
    )


def _gains(split: dict[str, Any], before: dict[str, Any], columns, seeds: list[str]) -> str:
    rows = []
    for name in split["tests"]:
        row = [name]
        for seed in seeds:
            row.append(_gain(_right(columns[f"rewards, seed {seed}"], name) - _right(before, name)))
        rows.append(row)
    head = ["test", *(f"seed {seed}" for seed in seeds)]
    said = (
        "What rewards add to solutions, percentage points [95 % interval: Wilson's, of the gains "
        "among answers that changed], and how many became right and wrong."
    )
    return f"{said}\n\n{table(head, rows)}"


def _gain(moved: np.ndarray) -> str:
    """Of differences of right answers, each -1, 0 or 1."""
    up, down = int((moved > 0).sum()), int((moved < 0).sum())
    if up + down == 0:
        return "none changed"
    share, found = 100 * (up + down) / len(moved), wilson(np.repeat([1.0, 0.0], [up, down]))
    gain, low, high = (share * (2 * x - 1) for x in (found.value, found.low, found.high))
    return f"{gain:+.1f} [{low:+.1f}, {high:+.1f}], {up} and {down}"


def _likeness(split: dict[str, Any], columns: dict[str, Any]) -> str:
    rows = []
    for name, count in split["tests"].items():
        row = [name]
        for column in columns.values():
            found = column[name]
            cut, none = found["cut off"] / count, found["no answer"] / count
            row.append(f"{found['tokens']:.0f}, {cut:.1%}, {none:.1%}")
        rows.append(row)
    said = "Tokens per answer, the share that was cut off, and the share without a number."
    return f"{said}\n\n{table(['test', *columns], rows)}"


def _run(results: dict[str, Any], seed: str) -> str:
    found = results[f"rl/{seed}"]
    ages = ", ".join(f"{count} of age {age}" for age, count in enumerate(found["ages"]))
    parts = np.array_split(found["reward"], min(5, len(found["reward"])))
    means = [f"{part.mean():.3f}" for part in parts]
    lines = [
        f"Seed {seed}: {len(found['reward'])} updates in {found['seconds of updates']:.0f} s; mean "
        "reward "
        f"by fifths {', '.join(means)}; groups trained on: {ages}."
    ]
    if (beside := results.get(f"transformers/{seed}")) is not None:
        if beside["same"] is None:
            lines.append("Not compared with transformers, which is not installed.")
        else:
            lines.append(
                f"In stock transformers, float32, {beside['same']} of {beside['answers']} greedy "
                "answers are the same in every token."
            )
        lines.append(
            "Log-probabilities of sampled tokens are the trainer's within "
            f"{beside['log-probability']:.1e}."
        )
    return " ".join(lines)
