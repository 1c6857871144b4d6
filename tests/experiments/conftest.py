"""What the plots of reports show."""

import pytest
from matplotlib.figure import Figure


@pytest.fixture
def drawn(monkeypatch):
    """By the title of a panel that `plot.estimates` drew: its points by name, and lines beside.

    Points are (value, low, high), rounded to six digits; filled as figures are saved.
    """
    found, save = {}, Figure.savefig

    def read(figure, *args, **kwargs):
        names = [label.get_text() for label in figure.axes[0].get_yticklabels()]
        for axes in figure.axes:
            points = {}
            for name, (line, _, (bars,)) in zip(names, axes.containers, strict=True):
                ends = [segment[:, 0] for segment in bars.get_segments()]
                points[name] = [
                    tuple(round(float(x), 6) for x in (value, low, high))
                    for value, (low, high) in zip(line.get_xdata(), ends, strict=True)
                ]
            beside = {
                line.get_label(): float(line.get_xdata()[0])
                for line in axes.lines
                if not line.get_label().startswith("_")
            }
            found[axes.get_title()] = points, beside
        save(figure, *args, **kwargs)

    monkeypatch.setattr(Figure, "savefig", read)
    return found
