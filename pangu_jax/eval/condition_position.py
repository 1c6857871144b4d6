"""The effect of each condition of a query on its score: the drop when a document breaks just one.

In task 1 the i-th negative breaks the i-th condition. Scored by the query of all ten, its distance
to the positive is what that condition is worth to a model, and its share of the ten distances says
where in the query a model looks. Conditions also differ in content; so the query is also asked in
random orders, whose places have no content of their own.

Source: arXiv 2503.08046, the analysis of pooling, of which no code was released; the measure is
ours.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from pangu_jax.data.multiconir import CONDITIONS, Task1Row, reordered
from pangu_jax.eval.lexical import Scorer
from pangu_jax.eval.multiconir import Table, columns, jsonable, scored
from pangu_jax.eval.pairwise_metrics import estimate, rates

Orders = np.ndarray  # int [rows, orders, 10], from 0: which condition stands at each place


def draw_orders(rows: int, orders: int, *, seed: int) -> Orders:
    """Random orders of the conditions, some for each row."""
    draw = np.random.default_rng([seed, rows, orders])
    places = np.broadcast_to(np.arange(CONDITIONS), (rows, orders, CONDITIONS))
    return draw.permuted(places, axis=-1)


def queries(row: Task1Row, orders: np.ndarray) -> list[str | None]:
    """The original query of ten conditions, then in each order; None if it lists none."""
    given = row.queries[-1]
    return [given, *(None if given is None else reordered(given, order) for order in orders)]


def score_positions(rows: Sequence[Task1Row], scorer: Scorer, orders: Orders) -> Table:
    """Scores of the positive and of each broken condition, by place: columns of float64 [rows].

    "Order0_Positive" and "Order0_Broken1" are of the original query, "Order1_Broken1" of the first
    drawn order and the condition that comes first in it.

    Args:
      rows: of one domain.
      scorer: scores documents by a query.
      orders: see `draw_orders`.
    """
    found = []
    for row, own in zip(rows, orders, strict=True):
        line = {}
        for number, query in enumerate(queries(row, own)):
            order = np.arange(CONDITIONS) if number == 0 else own[number - 1]
            documents = [row.positive, *(row.negatives[place] for place in order)]
            names = ["Positive", *(f"Broken{j}" for j in range(1, CONDITIONS + 1))]
            scores = scored(scorer, query, documents)
            line |= {f"Order{number}_{n}": x for n, x in zip(names, scores, strict=True)}
        found.append(line)
    return columns(found)


def drops(table: Table, order: int = 0) -> np.ndarray:
    """Drop of the score when the condition at each place is broken: float64 [rows, 10]."""
    whole = table[f"Order{order}_Positive"]
    broken = [table[f"Order{order}_Broken{j}"] for j in range(1, CONDITIONS + 1)]
    return whole[:, None] - np.stack(broken, axis=1)


def shuffled_drops(table: Table, orders: int) -> np.ndarray:
    """`drops` by the place in drawn orders, the mean of a row's orders: float64 [rows, 10]."""
    return np.mean([drops(table, order) for order in range(1, orders + 1)], axis=0)


def figures(table: Table, orders: int, *, seed: int = 0) -> dict[str, Any]:
    """Statistics of each place, for the original query and for random orders, as JSON values."""
    found = {"rows": len(next(iter(table.values()))), "orders": orders}
    for name, values in (("given", drops(table)), ("shuffled", shuffled_drops(table, orders))):
        found[name] = {
            "left_out": int(np.isnan(values).any(1).sum()),
            "drop": rates(np.nansum(values, axis=0), (~np.isnan(values)).sum(0)).tolist(),
            "share": [
                dataclasses.asdict(estimate([values], share(place), seed=seed))
                for place in range(CONDITIONS)
            ],
            "lean": dataclasses.asdict(estimate([values], lean, seed=seed)),
        }
    return jsonable(found)


def share(place: int) -> Callable[[np.ndarray, np.ndarray], np.ndarray]:
    """A statistic for `pairwise_metrics.estimate`: one place's share in the sum of all ten drops.

    It maps sums and counts [..., 10] to [...].
    """
    return lambda sums, counts: _shares(sums, counts)[..., place]


def lean(sums: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """A statistic of drops: the share of the first five places less that of the last five.

    It maps sums and counts [..., 10] to [...].
    """
    found = _shares(sums, counts)
    half = CONDITIONS // 2
    return found[..., :half].sum(-1) - found[..., half:].sum(-1)


def _shares(sums: np.ndarray, counts: np.ndarray) -> np.ndarray:
    means = rates(sums, counts)
    total = means.sum(-1, keepdims=True)
    return np.divide(means, total, out=np.full(means.shape, np.nan), where=total != 0)
