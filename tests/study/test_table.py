"""Means with their spread, and tables."""

import statistics

import pytest

from pangu_jax.study.table import extent, mean_std, standard_error, table


def test_figures_carry_their_spread():
    values = [1.0, 2.0, 4.0]
    assert mean_std(values) == f"{7 / 3:.3f} ± {statistics.stdev(values):.3f}"
    assert extent(values, 1) == "2.3 (1.0-4.0)"
    assert mean_std([1.5]) == extent([1.5]) == "1.500"
    other = [3.0, 5.0]
    want = (statistics.variance(values) / 3 + statistics.variance(other) / 2) ** 0.5
    assert standard_error(values, other) == pytest.approx(want)


def test_a_table_has_a_line_a_row():
    assert table(("a", "b"), [[1, "x"], ["", 2]]) == "| a | b |\n|---|---|\n| 1 | x |\n|  | 2 |"
