"""What is measured of a scorer or a model on the test's files."""

import dataclasses
import itertools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from pangu_jax.core.errors import InputError
from pangu_jax.data.multiconir import Part, find_parts, read_rows
from pangu_jax.eval import condition_position
from pangu_jax.eval.embedding import embed
from pangu_jax.eval.embedding_cache import Cosines, wanted_texts
from pangu_jax.eval.lexical import Scorer
from pangu_jax.eval.multiconir import figures, outcomes, score_ranked, score_task1
from pangu_jax.eval.text_encoder import TextEncoder

Rows = dict[Part, list]


def read_test(folder: str | Path, rows: int | None) -> Rows:
    """The rows of tasks 1, 2 and 3, by file.

    Raises:
      InputError: the folder lacks one of the two files of a domain.
    """
    parts = [part for part in find_parts(folder) if part.task in (1, 2)]
    found = {part: list(itertools.islice(read_rows(part), rows)) for part in parts}
    for domain in {part.domain for part in parts}:
        if {part.task for part in parts if part.domain == domain} != {1, 2}:
            raise InputError(f"{folder} lacks one of {domain}_Task1.csv and {domain}_Task2_&_3.csv")
    return found


def domains(rows: Rows) -> list[str]:
    """The test's domains."""
    return sorted({part.domain for part in rows})


def measured(rows: Rows, scorer_of: Callable[[Part, list], Scorer]) -> dict[str, Any]:
    """Figures of the three tasks by domain, and the wins of task 1, as JSON values.

    Args:
      rows: the test.
      scorer_of: gives the scorer of a file and its rows.
    """
    found = {}
    for domain in domains(rows):
        first, second = (
            next(part for part in rows if part.domain == domain and part.task == task)
            for task in (1, 2)
        )
        growing = score_task1(rows[first], scorer_of(first, rows[first]), pairs_only=True)
        scorer = scorer_of(second, rows[second])
        listed = score_ranked(rows[second], scorer)
        natural = score_ranked(rows[second], scorer, natural=True)
        wins = outcomes(1, growing, "collection")
        found[domain] = {
            "task1": figures(1, growing, "collection"),
            "task2": figures(2, listed, "collection"),
            "task3": figures(3, natural, "collection", listed=listed),
            "wins": wins.astype(int).tolist(),
        }
    return found


def measured_model(model: TextEncoder, rows: Rows, *, batch: int) -> dict[str, Any]:
    """`measured` of a model of vectors, in float32."""

    def visit(scorer: Scorer) -> None:
        measured(rows, lambda part, own: scorer)

    scorer = _cosines(model, visit, batch=batch)
    return measured(rows, lambda part, own: scorer)


def positions(model: TextEncoder, rows: Sequence, *, orders: int, batch: int) -> dict[str, Any]:
    """What each place of a query of ten conditions is worth; see `eval.condition_position`.

    Args:
      model: the model.
      rows: of task 1.
      orders: random orders beside the given one.
      batch: texts embedded at once.
    """
    drawn = condition_position.draw_orders(len(rows), orders, seed=0)

    def visit(scorer: Scorer) -> None:
        condition_position.score_positions(rows, scorer, drawn)

    scorer = _cosines(model, visit, batch=batch)
    return condition_position.figures(
        condition_position.score_positions(rows, scorer, drawn), orders
    )


def _cosines(model: TextEncoder, visit: Callable[[Scorer], None], *, batch: int) -> Scorer:
    """The scorer of vectors of all texts that the visit scores, each embedded once."""
    wanted = sorted(wanted_texts(visit), key=lambda item: (len(item[1]), item))
    cfg = dataclasses.replace(model.cfg, prefix="", normalize=True)
    with jax.default_matmul_precision("highest"):  # as figures of other machines are
        vectors = embed(
            model.params,
            [text for _, text in wanted],
            cfg=cfg,
            tokenizer=model.tokenizer,
            batch=batch,
            max_length=model.max_seq_length,
        ).vectors
    places = {item: row for row, item in enumerate(wanted)}
    return Cosines(places, np.asarray(vectors)).scores
