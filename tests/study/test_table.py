"""Means with their spread, and tables."""

import statistics

import pytest

from pangu_jax.study import plot, report
from pangu_jax.study.table import deviation, extent, standard_error, table


def test_figures_carry_their_spread():
    values = [1.0, 2.0, 4.0]
    assert deviation(values) == f"{7 / 3:.3f} ± {statistics.stdev(values):.3f}"
    assert extent(values, 1) == "2.3 (1.0-4.0)"
    assert deviation([1.5]) == extent([1.5]) == "1.500"
    other = [3.0, 5.0]
    want = (statistics.variance(values) / 3 + statistics.variance(other) / 2) ** 0.5
    assert standard_error(values, other) == pytest.approx(want)


def test_a_table_has_a_line_a_row():
    assert table(("a", "b"), [[1, "x"], ["", 2]]) == "| a | b |\n|---|---|\n| 1 | x |\n|  | 2 |"


def test_a_figure_and_a_report_appear_whole_or_not_at_all(tmp_path):
    with pytest.raises(ZeroDivisionError), plot.figure(tmp_path, "broken"):
        raise ZeroDivisionError
    assert not plot.plt.get_fignums() and not list((tmp_path / "plots").iterdir())
    with plot.figure(tmp_path, "one", figsize=(1, 1)) as axes:
        plot.guide(axes)
    assert (tmp_path / "plots" / "one.png").read_bytes()[:4] == b"\x89PNG"
    assert report.write(tmp_path, "text").read_text() == "text"
    assert report.machine().startswith("cpu, ") and report.listed((0, 1)) == "0, 1"
