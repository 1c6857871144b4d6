"""Runs `pangu-jax multiconir`; its options are in `cli/options/multiconir.py`."""

import itertools
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from pangu_jax.cli.multiconir_model import BM25, Model, bm25_model, neural_model
from pangu_jax.cli.multiconir_report import (
    PLACES,
    check_results,
    compare_runs,
    load_table,
    write_report,
)
from pangu_jax.cli.options.multiconir import Options
from pangu_jax.cli.progress import Show, progress, working
from pangu_jax.core.cells import compute, open_results
from pangu_jax.core.config import check_size
from pangu_jax.core.digest import json_digest, sha256
from pangu_jax.core.errors import InputError
from pangu_jax.data.multiconir import Part, content_hash, find_parts, read_rows
from pangu_jax.eval import condition_position, lexical, pairwise_metrics
from pangu_jax.eval.lexical import Scorer
from pangu_jax.eval.multiconir import (
    Table,
    figures,
    oracle_ranked,
    oracle_task1,
    score_ranked,
    score_task1,
    write_scores,
)

FLOORS: dict[str, Scorer | None] = {
    "length": lexical.length,
    "overlap": lexical.overlap,
    "constant": lexical.constant,
    "oracle": None,
}


@dataclass(frozen=True)
class Run:
    """What the cells of a run share.

    Attributes:
      folder: the run's folder.
      results: the cells that there are.
      options: what was asked for.
      model: the model to measure.
    """

    folder: Path
    results: dict[str, Any]
    options: Options
    model: Model


Cell = tuple[str, Part, int]  # scorer, or what is studied; part; task


def main(options: Options) -> None:
    """Writes scores, results.json and report.md, and prints the main figures; or compares runs."""
    check_size("seed", options.seed, least=0)
    if options.compare is not None:
        _check(options, refused=("model", "data", "rows", "orders"), needed=("out",),
               by="--compare")  # fmt: skip
        print(compare_runs(*options.compare, str(options.out), seed=options.seed))
        return
    _check(options, needed=("model", "data", "out"), by="a run")
    if options.rows is not None:
        check_size("rows", options.rows)
    if options.orders is not None:
        check_size("orders", options.orders)
    parts = find_parts(str(options.data))
    model = bm25_model(options) if options.model == BM25 else neural_model(options)
    settings = _settings(options, model, parts)
    folder = Path(str(options.out))
    results = open_results(folder, settings)
    check_results(folder, results)
    hashes = {name: json_digest(settings[name]) for name in ("model", "data", "protocol")}
    compute(folder, results, "hashes", lambda: hashes)
    with progress() as show:
        _measure(Run(folder, results, options, model), parts, show)
    print(write_report(folder, settings, results))


def _check(options: Options, *, needed: tuple = (), refused: tuple = (), by: str) -> None:
    for name in (*needed, *refused):
        if (getattr(options, name) is None) == (name in needed):
            raise InputError(f"{by} {'needs' if name in needed else 'takes no'} --{name}")


def _settings(options: Options, model: Model, parts: list[Part]) -> dict[str, Any]:
    with working("reading the data"):
        hashes = {part.stem: content_hash(part) for part in parts}
    protocol = {
        "name": options.protocol,
        "comparison": "strictly greater; a tie is no win",
        "missing texts": "refused" if options.protocol == "official" else "left out",
        "rows": options.rows,
        "intervals": f"{pairwise_metrics.COVERAGE:.0%}, {pairwise_metrics.DRAWS} resamples of rows",
        "seed": options.seed,
    }
    settings = {"model": model.about, "data": hashes, "protocol": protocol}
    return {**settings, "orders": options.orders}


def _measure(run: Run, parts: list[Part], show: Show) -> None:
    """Computes the missing cells domain by domain, so that only one domain's texts are held."""
    cells = [cell for part in parts for cell in _cells(part, run.options)]
    for domain in sorted({part.domain for part in parts}):
        wanted = [cell for cell in cells if cell[1].domain == domain]
        if all(_name(*cell) in run.results for cell in wanted):
            continue
        rows = {part: _rows(part, run.options) for part in parts if part.domain == domain}
        visit = partial(_visit, run, rows)
        scorer_of = run.model.prepare(run.folder, run.results, domain, visit, show)
        for part, group in itertools.groupby(wanted, key=lambda cell: cell[1]):
            scorer = scorer_of(part, rows[part])
            for cell in group:
                fill = _study if cell[0] == PLACES else _score
                make = partial(fill, run, cell, rows[part], scorer)
                compute(run.folder, run.results, _name(*cell), make)
                done = sum(_name(*cell) in run.results for cell in cells)
                show("scoring, cells", done, len(cells))


def _visit(run: Run, rows: dict[Part, list], scorer: Scorer) -> None:
    """Calls a scorer with everything that the model will have to score in these parts."""
    for part, own in rows.items():
        for task in _tasks(part):
            _table("model", task, own, scorer, pairs_only=run.model.pairs_only)
        if run.options.orders and part.task == 1:
            condition_position.score_positions(own, scorer, _orders(own, run))


def _tasks(part: Part) -> tuple[int, ...]:
    return (2, 3) if part.task == 2 else (part.task,)


def _cells(part: Part, options: Options) -> list[Cell]:
    found = [(who, part, task) for who in ("model", *FLOORS) for task in _tasks(part)]
    return found + ([(PLACES, part, 1)] if options.orders and part.task == 1 else [])


def _score(run: Run, cell: Cell, rows: list, scorer: Scorer) -> dict[str, Any]:
    """Writes a scorer's scores on a task; returns their figures."""
    who, part, task = cell
    table = _table(who, task, rows, scorer, pairs_only=run.model.pairs_only)
    about = _write(run, f"scores/{who}/{part.stem}_task{task}_results.csv", table)
    listed = load_table(run.folder, run.results, _name(who, part, 2)) if task == 3 else None
    found = figures(task, table, run.options.protocol, listed=listed, seed=run.options.seed)
    return {"task": task, "domain": part.domain, "length": part.length, **about, **found}


def _study(run: Run, cell: Cell, rows: list, scorer: Scorer) -> dict[str, Any]:
    """Writes the scores with broken conditions; returns how much each place moves the score."""
    _, part, _ = cell
    orders = _orders(rows, run)
    table = condition_position.score_positions(rows, scorer, orders)
    about = _write(run, f"scores/{PLACES}/{part.stem}.csv", table)
    found = condition_position.figures(table, orders.shape[1], seed=run.options.seed)
    return {"domain": part.domain, **about, **found}


def _write(run: Run, file: str, table: Table) -> dict[str, Any]:
    write_scores(run.folder / file, table)
    return {"file": file, "sha256": sha256(run.folder / file)}


def _table(who: str, task: int, rows: list, scorer: Scorer, *, pairs_only: bool) -> Table:
    if who == "oracle":
        return oracle_task1(len(rows)) if task == 1 else oracle_ranked(len(rows))
    floor = FLOORS.get(who)
    if task == 1:
        return score_task1(rows, floor or scorer, pairs_only=pairs_only or floor is not None)
    return score_ranked(rows, floor or scorer, natural=task == 3)


def _orders(rows: list, run: Run) -> np.ndarray:
    return condition_position.draw_orders(len(rows), run.options.orders or 0, seed=run.options.seed)


def _name(who: str, part: Part, task: int) -> str:
    return f"{who}/{part.stem}/task{task}"


def _rows(part: Part, options: Options) -> list:
    rows = read_rows(part, missing=options.protocol == "collection")
    return list(itertools.islice(rows, options.rows))
