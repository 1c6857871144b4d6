"""Figures and reports appear whole or not at all."""

import pytest

from pangu_jax.study import plot, report


def test_a_figure_and_a_report_appear_whole_or_not_at_all(tmp_path):
    with pytest.raises(ZeroDivisionError), plot.figure(tmp_path, "broken"):
        raise ZeroDivisionError
    assert not list(tmp_path.iterdir())
    with plot.figure(tmp_path, "one", figsize=(1, 1)) as axes:
        plot.guide(axes)
    assert (tmp_path / "plots" / "one.png").read_bytes()[:4] == b"\x89PNG"
    assert report.write(tmp_path, "text").read_text() == "text"
    assert report.machine().startswith("cpu, ") and report.listed((0, 1)) == "0, 1"
