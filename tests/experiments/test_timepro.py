"""The TimePro experiment: published settings, the mixture, resuming, the report."""

import importlib
import json
import sys

import numpy as np
import pytest
from matplotlib.figure import Figure

from pangu_jax.core.errors import InputError
from pangu_jax.core.spec import count
from pangu_jax.models import timepro

MODULES = ("cell", "config", "intervals", "report", "run", "tuned")


@pytest.fixture(scope="module")
def modules():
    """The experiment's modules by name."""
    return {name: importlib.import_module(f"experiments.timepro.{name}") for name in MODULES}


def test_settings_have_the_published_sizes(modules):
    settings = modules["config"].SETTINGS
    assert len(settings) == 32
    for cell, patches, width in (
        (("ETTh1", 96), 16, 256), (("ETTh1", 336), 16, 512), (("ETTh2", 192), 32, 512),
        (("ETTh2", 720), 8, 256), (("ETTm1", 96), 16, 512), (("Exchange", 336), 12, 192),
        (("Exchange", 720), 24, 384), (("Weather", 96), 32, 1024), (("Solar", 192), 24, 1536),
        (("ECL", 96), 24, 768), (("ECL", 720), 16, 512),
    ):  # fmt: skip
        model, _ = settings[cell]
        assert (model.mixer.patches, model.width) == (patches, width), cell
    for cell, used in ((("ETTh1", 720), 1_806_416), (("ECL", 96), 14_574_272)):
        assert count(timepro.spec(settings[cell][0])) == used
    model, training = settings["Exchange", 336]
    assert (training.epochs, training.learning_rate) == (5, 3e-5)
    cells = modules["config"].PRESETS["gpu"].cells
    assert len(set(cells)) == len(cells) == 6 * 4 * 3


@pytest.mark.long
def test_tracked_intervals_cover_what_they_are_made_for(modules, data_dir, capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["intervals.py", "--data", str(data_dir / "ltsf"),
                                      "--sets", "ETTh1", "ETTh2"])  # fmt: skip
    modules["intervals"].main()
    _, _, *rows = capsys.readouterr().out.splitlines()
    assert len(rows) == 2
    for row in rows:
        name, rate, fixed, tracked, *_ = (cell.strip(" %") for cell in row.strip("|").split("|"))
        assert not 88 <= float(fixed) <= 92
        assert 88 <= float(tracked) <= 92


def test_mixing_weights_are_the_best_on_the_simplex(modules):
    rng = np.random.default_rng(0)
    truth = rng.normal(size=500)
    forecasts = np.stack([truth + s * rng.normal(size=500) for s in (0.5, 0.7, 3.0)])
    gram, cross = forecasts @ forecasts.T / 500, forecasts @ truth / 500
    weights = modules["tuned"].mix(gram, cross)
    assert weights.sum() == pytest.approx(1)

    def error(w):
        return ((w @ forecasts - truth) ** 2).mean()

    grid = [(a, b, 1 - a - b) for a in np.linspace(0, 1, 51) for b in np.linspace(0, 1 - a, 51)]
    assert error(weights) <= min(error(np.array(w)) for w in grid) + 1e-6


def test_mixing_is_left_where_it_pays_on_no_windows_but_its_own(modules):
    tuned, rng = modules["tuned"], np.random.default_rng(0)

    def half(errors):
        """Forecasts of 400 windows with these errors beside the truth."""
        truth = rng.normal(size=400)
        forecasts = np.stack([truth + error for error in errors(rng, truth)])
        return (forecasts, truth), (forecasts @ forecasts.T, forecasts @ truth)

    def alike(rng, truth):  # the second is far better in both halves
        return [rng.normal(size=400), 0.3 * rng.normal(size=400)]

    (a, one), (b, two) = half(alike), half(alike)
    weights, gain = tuned.choose(one, two, plain=0)
    assert weights[1] > 0.8 and weights.sum() == pytest.approx(1)
    expected = 0.0
    for fitted, (forecasts, truth) in ((two, a), (one, b)):
        mixed = tuned.mix(*fitted) @ forecasts
        expected += ((forecasts[0] - truth) ** 2 - (mixed - truth) ** 2).sum()
    assert gain == pytest.approx(expected)

    # Each candidate is good in one half alone: by either half the other is the worse choice.
    _, one = half(lambda rng, t: [0.5 * rng.normal(size=400), 3 * rng.normal(size=400)])
    _, two = half(lambda rng, t: [3 * rng.normal(size=400), 0.5 * rng.normal(size=400)])
    assert tuned.mix(*(x + y for x, y in zip(one, two, strict=True))).max() < 0.9
    for plain in (0, 1):
        weights, gain = tuned.choose(one, two, plain=plain)
        assert gain <= 0 and weights.tolist() == np.eye(2)[plain].tolist()


def test_a_run_is_resumed_and_reported(modules, data_dir, tmp_path, capsys):
    run = modules["run"]
    words = ["--preset", "tuned", "--data", str(data_dir / "ltsf"), "--only", "Exchange",
             "--horizons", "96", "--variants", "baselines", "--out", str(tmp_path)]  # fmt: skip
    run.main(run.parse(words))
    assert "begins" in capsys.readouterr().err
    run.main(run.parse(words))
    assert "begins" not in capsys.readouterr().err
    results = json.loads((tmp_path / "results.json").read_text())
    assert results["Exchange-96-baselines"]["repeat"]["mse"] == pytest.approx(0.0811, abs=1e-4)
    report = (tmp_path / "report.md").read_text()
    assert "| Exchange | 96 | 1,422 |" in report
    assert (tmp_path / "plots" / "errors.png").stat().st_size > 1000
    with pytest.raises(InputError, match="no cell of the preset"):
        run.main(run.parse([*words[:4], "--only", "ECL", "--out", str(tmp_path)]))
    with pytest.raises(InputError, match="holds a run with another"):
        run.main(run.parse(["--preset", "smoke", *words[2:4], "--out", str(tmp_path)]))


def test_the_report_says_what_the_branch_brings_and_what_was_cut(modules, tmp_path):
    base = {"data": "ETTm1", "horizon": 96, "windows": 11425, "device": "d", "seconds": 1.0}
    curve = [[{"train": 1.0, "validation": 0.5}]]
    results = {
        "ETTm1-96-full": base
        | {
            "variant": "full",
            "mse": [0.32, 0.34],
            "mae": [0.36, 0.36],
            "cut": True,
            "curves": curve,
        },
        "ETTm1-96-stateless": base
        | {"variant": "stateless", "mse": [0.30, 0.32], "mae": [0.35, 0.35], "curves": curve},
    }
    path = modules["report"].write_report(tmp_path, modules["config"].PRESETS["gpu"], results)
    text = path.read_text()
    assert "0.330 ± 0.014 / 0.360 ± 0.000\\*" in text
    assert "ETTm1-96: MSE +0.0200 with the branch (standard error 0.0141), one of them cut" in text


def test_a_bar_that_the_plot_cuts_has_its_number(modules, tmp_path, monkeypatch):
    report, kept = modules["report"], []
    monkeypatch.setattr(Figure, "savefig", lambda figure, *_, **__: kept.append(figure))
    errors = {"linear": [0.4], "repeat": [1.3], "full": [0.41, 0.39], "tuned": [0.2]}
    report._plot_errors(tmp_path, {("ETTh1", 96, k): {"mse": v} for k, v in errors.items()})
    monkeypatch.undo()
    (figure,) = kept
    assert {text.get_text() for text in figure.axes[0].texts} == {"3.2", "0.5"}
