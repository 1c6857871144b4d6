"""Which texts are scored for which column, what is missing, and files that come back."""

import math

import numpy as np
import pandas as pd
import pytest

from pangu_jax.core.errors import InputError
from pangu_jax.data.multiconir import RankedRow, Task1Row
from pangu_jax.eval import multiconir
from pangu_jax.eval.multiconir import figures, read_scores, score_ranked, score_task1

TEN = range(1, 11)
KNOWN = {}


def rows(count=9, *, others=True):
    def texts(name, row):
        return tuple(f"{name}{i} of {row}" for i in TEN)

    found = []
    for row in range(count):
        second = texts("HN_", row) if others else None
        found.append(Task1Row(texts("Q", row), f"P of {row}", texts("HN", row), second))
    return found


def scorer(query, documents):
    """A number for each pair of texts, the same each time."""
    return np.array([KNOWN.setdefault((query, text), len(KNOWN) + 0.5) for text in documents])


def test_columns_of_task_1():
    found = score_task1(rows(), scorer, pairs_only=False)
    assert len(found) == 10 * (1 + 1 + 1 + 7)
    for row, i in ((0, 1), (4, 10), (8, 3)):
        query = f"Q{i} of {row}"
        want = {"Positive": f"P of {row}", "HN1": f"HN{i} of {row}", "HN2": f"HN_{i} of {row}"}
        want |= {f"EN{j}": f"P of {(row + j) % 9}" for j in range(1, 8)}
        for name, text in want.items():
            assert found[f"Query{i}_{name}"][row] == KNOWN[query, text]
    assert len(score_task1(rows(others=False), scorer, pairs_only=False)) == 90
    seen = []

    def alone(query, documents):
        seen.append(list(documents))
        return np.zeros(len(documents))

    found = score_task1(rows(3), alone, pairs_only=True)
    assert list(found)[:3] == ["Query1_Positive", "Query1_HN1", "Query2_Positive"]
    assert seen[11] == ["P of 1", "HN2 of 1"] and len(seen) == 30
    few = score_task1(rows(2), scorer, pairs_only=False)
    assert few["Query1_EN2"][0] == KNOWN["Q1 of 0", "P of 0"]  # as the released code turns round


def test_columns_of_the_other_tasks_and_what_is_missing():
    documents = tuple(f"D{k}" for k in range(11))
    graded = [RankedRow("listed", "said", documents), RankedRow("listed", None, documents),
              RankedRow(None, "said", (*documents[:4], None, *documents[5:]))]  # fmt: skip
    listed, said = (score_ranked(graded, scorer, natural=natural) for natural in (False, True))
    assert list(listed) == ["Query10_Positive", *(f"Query10_HN{i}" for i in TEN)]
    assert listed["Query10_HN3"][0] == KNOWN["listed", "D3"] == listed["Query10_HN3"][1]
    assert said["Query10_Positive"][0] == KNOWN["said", "D0"]
    assert np.isnan(
        [listed["Query10_HN3"][2], said["Query10_HN3"][1], said["Query10_HN4"][2]]
    ).all()
    assert said["Query10_HN5"][2] == KNOWN["said", "D5"]
    found = figures(2, listed, "collection")
    assert (found["rows"], found["left_out"]) == (3, 10) and "decline" not in found
    assert figures(2, listed, "official")["left_out"] == 0
    assert figures(3, said, "collection", listed=listed)["left_out"] == 20
    nothing = {name: np.full(2, np.nan) for name in listed}
    found = figures(2, nothing, "collection")
    assert found["win_rate"] == [None] * 10
    assert found["mean"] == {"value": None, "low": None, "high": None}
    assert figures(2, nothing, "official")["win_rate"] == [0] * 10


def test_files_come_back_bit_for_bit(tmp_path):
    draw = np.random.default_rng(0)
    table = {"a": draw.normal(size=50) * 1e-7, "b, c": draw.normal(size=50).astype(np.float32)}
    table["a"][[3, 4]] = math.nan, 1 / 3
    multiconir.write_scores(tmp_path / "s.csv", table)
    found = read_scores(tmp_path / "s.csv")
    assert list(found) == list(table)
    for name, column in table.items():
        np.testing.assert_array_equal(found[name], column.astype(np.float64))
    by_pandas = pd.read_csv(tmp_path / "s.csv")
    np.testing.assert_allclose(by_pandas["a"], table["a"], rtol=1e-14)
    assert by_pandas["Index"].tolist() == list(range(50))


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("a,b\n1,2\n1,x\n", r"s.csv row 2: 'x' in column 'b' is no number"),
        ("a,b\n", "a header and no rows"),
        ("a,b\n1\n", "line 2 has 1 fields"),
    ],
)
def test_files_that_are_none(content, said, tmp_path):
    (tmp_path / "s.csv").write_text(content)
    with pytest.raises(InputError, match=said):
        read_scores(tmp_path / "s.csv")
