"""MultiConIR's tables of scores: the texts of a row that are scored, and their columns.

The columns are those that the released metrics read, so that its scripts read our files; numbers
are written so that they round-trip bit for bit.

Source: arXiv 2503.08046; EIT-NLP/MultiConIR, evaluation.
"""

import csv
import dataclasses
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pangu_jax.core.errors import InputError
from pangu_jax.core.files import atomic_write
from pangu_jax.data.csv_file import check_fields, csv_rows
from pangu_jax.data.multiconir import CONDITIONS, RankedRow, Task1Row, Text
from pangu_jax.eval import pairwise_metrics
from pangu_jax.eval.lexical import Scorer
from pangu_jax.eval.pairwise_metrics import (
    EASY,
    GROWING,
    NEIGHBORS,
    RANKED,
    SECOND,
    STEPS,
    Protocol,
    Statistic,
    estimate,
    flips,
    wins,
)

Table = dict[str, np.ndarray]
INDEX = "Index"

# The single figure of each task.
STATISTICS: dict[int, Statistic] = {
    1: pairwise_metrics.mean_rate,
    2: pairwise_metrics.mean_rate,
    3: pairwise_metrics.pooled_rate,
    4: pairwise_metrics.mean_rate,
}


def score_task1(rows: Sequence[Task1Row], scorer: Scorer, *, pairs_only: bool) -> Table:
    """Task 1: scores of each of the ten queries with the positive and its negatives.

    Each column is float64 [rows].

    Args:
      rows: of one domain, at least one.
      scorer: scores documents by a query.
      pairs_only: whether a query's documents are the positive and the paired negative alone, as
        for BM25 in the released code; else the second negative and seven easy ones, the positives
        of the next rows, are scored too, as for dense models there.
    """
    found = []
    for place, row in enumerate(rows):
        easy = [rows[(place + i) % len(rows)].positive for i in range(1, NEIGHBORS + 1)]
        line = {}
        for i in range(CONDITIONS):
            documents = {"Positive": row.positive, "HN1": row.negatives[i]}
            if not pairs_only:
                documents |= {} if row.others is None else {"HN2": row.others[i]}
                documents |= {f"EN{j}": text for j, text in enumerate(easy, 1)}
            scores = scored(scorer, row.queries[i], list(documents.values()))
            names = [f"Query{i + 1}_{name}" for name in documents]
            line |= dict(zip(names, scores, strict=True))
        found.append(line)
    return columns(found)


def score_ranked(rows: Iterable[RankedRow], scorer: Scorer, *, natural: bool = False) -> Table:
    """Tasks 2, 3 and 4: scores of one query with the positive and its ten negatives.

    Each column is float64 [rows].

    Args:
      rows: of one file.
      scorer: scores documents by a query.
      natural: whether the query is the one sentence of task 3, not the list.
    """
    found = []
    for row in rows:
        scores = scored(scorer, row.natural if natural else row.query, row.documents)
        found.append(dict(zip(RANKED, scores, strict=True)))
    return columns(found)


def oracle_task1(rows: int) -> Table:
    """Task-1 scores of an oracle that counts the conditions met."""
    found = {}
    for i in range(1, CONDITIONS + 1):
        found[f"Query{i}_Positive"] = np.full(rows, float(i))
        found[f"Query{i}_HN1"] = np.full(rows, i - 1.0)
    return found


def oracle_ranked(rows: int) -> Table:
    """The same in tasks 2, 3 and 4."""
    return {name: np.full(rows, float(CONDITIONS - k)) for k, name in enumerate(RANKED)}


def outcomes(
    task: int, table: Table, protocol: Protocol, *, listed: Table | None = None
) -> np.ndarray:
    """Outcomes of a task's comparisons, float64 [rows, 10]: wins, and in task 3 flips.

    Args:
      task: 1 to 4.
      table: the scores; in task 3 those of the query in one sentence.
      protocol: how missing scores count.
      listed: in task 3 the scores of the listed query.
    """
    if task == 1:
        return wins(table, GROWING, protocol)
    found = wins(table, STEPS, protocol)
    if task != 3:
        return found
    if listed is None:
        raise ValueError("task 3 compares with task 2")
    return flips(wins(listed, STEPS, protocol), found)


def figures(
    task: int, table: Table, protocol: Protocol, *, listed: Table | None = None, seed: int = 0
) -> dict[str, Any]:
    """The figures of a task on one domain as JSON values; undefined ones are None.

    The arguments are those of `outcomes`, and the seed of the intervals.
    """
    found = outcomes(task, table, protocol, listed=listed)
    there = ~np.isnan(found)
    pairs = GROWING if task == 1 else STEPS
    by_column = pairwise_metrics.rates(np.nansum(found, axis=0), there.sum(0))
    compared = sum(a in table and b in table for a, b in pairs) * len(found)
    values = {
        "rows": len(found),
        "left_out": int(compared - there.sum()),
        "flip_rate" if task == 3 else "win_rate": by_column.tolist(),
        "mean": dataclasses.asdict(estimate([found], STATISTICS[task], seed=seed)),
        "ties": pairwise_metrics.ties(table, pairs).tolist(),
    }
    if task != 3:
        values["average_difference"] = pairwise_metrics.gaps(table, pairs).tolist()
    if task == 1:
        values["decline"] = dataclasses.asdict(
            estimate([found], pairwise_metrics.decline, seed=seed)
        )
        second = estimate([wins(table, SECOND, protocol)], pairwise_metrics.mean_rate, seed=seed)
        easy = estimate([wins(table, EASY, protocol)], pairwise_metrics.mean_rate, seed=seed)
        values |= {"second": dataclasses.asdict(second), "easy": dataclasses.asdict(easy)}
    return jsonable(values)


def scored(scorer: Scorer, query: Text, documents: Sequence[Text]) -> np.ndarray:
    """The documents' scores, float64 [documents]; NaN without text, which the scorer never sees."""
    found = np.full(len(documents), np.nan)
    there = [i for i, text in enumerate(documents) if text is not None]
    if query is not None and there:
        found[there] = scorer(query, [str(documents[i]) for i in there])
    return found


def columns(lines: list[dict[str, float]]) -> Table:
    """The table of rows that have the same names."""
    return {name: np.array([line[name] for line in lines]) for name in lines[0]}


def write_scores(path: str | Path, table: Table) -> None:
    """Writes a table as CSV, with a column Index; a missing score is an empty field.

    Raises:
      InputError: it cannot be written.
    """
    with atomic_write(path) as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow([INDEX, *table])
        for index, row in enumerate(zip(*table.values(), strict=True)):
            writer.writerow([index, *("" if math.isnan(x) else repr(float(x)) for x in row)])


def read_scores(path: str | Path) -> Table:
    """The table of a CSV file, float64 [rows] per column, without its column Index.

    Raises:
      InputError: it cannot be read, or holds something other than numbers; names row and column.
    """
    path = Path(path)
    header, rows = csv_rows(path, strict=True)
    found: list[list[float]] = []
    for number, (_, row) in enumerate(check_fields(path, len(header), rows), 1):
        found.append([_number(path, number, *at) for at in zip(header, row, strict=True)])
    if not found:
        raise InputError(f"{path} has a header and no rows")
    table = dict(zip(header, np.array(found).T, strict=True))
    table.pop(INDEX, None)
    return table


def jsonable(value: Any) -> Any:
    """JSON values with None for NaN."""
    if isinstance(value, dict):
        return {name: jsonable(item) for name, item in value.items()}
    if isinstance(value, list):
        return [jsonable(item) for item in value]
    return None if isinstance(value, float) and math.isnan(value) else value


def _number(path: Path, row: int, name: str, text: str) -> float:
    try:
        return float(text) if text else math.nan
    except ValueError:
        raise InputError(
            f"{path} row {row}: {text!r:.40} in column {name!r} is no number"
        ) from None
