"""`pangu-jax forecast` as a user meets it: train, evaluate, predict elsewhere, bad input."""

import contextlib
import csv
import dataclasses
import json
import os
import shlex
import signal
import subprocess
import sys

import chex
import numpy as np
import pytest

from pangu_jax.checkpoint import forecaster
from pangu_jax.cli import forecast
from pangu_jax.cli.main import main
from pangu_jax.core.errors import InputError
from pangu_jax.data.timestep import TimeStep
from pangu_jax.data.windows import Scaler
from pangu_jax.eval.forecast import fit_linear, score_function
from pangu_jax.eval.intervals import conformal
from pangu_jax.eval.predict import residuals, scaler_of
from pangu_jax.models.timepro_config import TimeProConfig
from pangu_jax.train.fit_config import FitConfig
from pangu_jax.train.metrics import read_metrics

pytestmark = pytest.mark.long  # the model that all of them read takes long to train
RNG = np.random.default_rng(0)
SIZES = ["--look-back", 16, "--patch", 8, "--stride", 8, "--layers", 1, "--batch", 8]


def call(*arguments):
    with pytest.raises(SystemExit) as end:
        main(["forecast", *map(str, arguments)])
    return end.value.code


def write(path, times, columns):
    with open(path, "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["date", *columns])
        for i, time in enumerate(times):
            values = (f"{v[i]:.5f}" for v in columns.values())
            writer.writerow([str(time).replace("T", " "), *values])
    return path


def waves(rows=240):
    t = np.arange(rows)
    noise = np.random.default_rng(0).normal(size=(2, rows))
    return {
        "load, MW": 500 + 40 * np.sin(t / 4) + noise[0],
        "oil": 3 + np.cos(t / 6) + 0.02 * noise[1],
        "fixed": np.full(rows, 7.0),
    }


def stamps(first, step, rows):
    return np.datetime64(first, "s") + np.arange(rows) * np.timedelta64(step, "s")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("forecast")
    path = write(folder / "load.csv", stamps("2024-02-27T00:00", 900, 240), waves())
    options = ["--epochs", 4, "--learning-rate", 3e-3, "--seeds", 2, "--coverage", 0.8]
    model = ["--horizon", 4, "--out", folder / "model", *SIZES]
    code = call("train", "--csv", path, *model, *options)
    assert code == 0
    return folder


def test_a_training_that_was_stopped_goes_on(trained, tmp_path, monkeypatch, capsys):
    options = ["--epochs", 4, "--learning-rate", 3e-3, "--seeds", 2, "--coverage", 0.8]
    given = ["train", "--csv", trained / "load.csv", "--horizon", 4, "--out", tmp_path, *SIZES]

    @contextlib.contextmanager
    def interrupting():
        yield lambda what, done, *_: done == 21 and os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(forecast, "progress", interrupting)
    assert call(*given, *options) == 128 + signal.SIGTERM
    assert "stopped at step 22; the same command goes on" in capsys.readouterr().err
    assert not (tmp_path / "forecaster.json").exists()
    assert call(*given, "--epochs", 2) == 2
    assert "holds a run with another seeds: [0, 1], not [0]" in capsys.readouterr().err
    monkeypatch.undo()
    assert call(*given, *options) == 0
    same_weights(forecaster.load(tmp_path), forecaster.load(trained / "model"))
    # What is left says how it went, and is in nobody's way.
    assert {path.name for path in (tmp_path / "training").iterdir()} == {"metrics.jsonl"}
    lines = read_metrics(tmp_path / "training" / "metrics.jsonl")
    assert [line["step"] for line in lines if "loss" in line] == list(range(1, 73))


def test_evaluation_beats_repeating_and_reports_coverage(trained, capsys):
    assert call("evaluate", "--csv", trained / "load.csv", "--model", trained / "model",
                "--json") == 0  # fmt: skip
    found = json.loads(capsys.readouterr().out)
    assert found["windows"] == 48 - 4 + 1
    assert found["mse"] < found["repeat"]["mse"]
    assert 0.5 < found["coverage"] <= 1
    model = forecaster.load(trained / "model")
    assert model.cfg.measured_coverage == pytest.approx(found["coverage"])
    # The errors once more, window by window.
    series = forecast.read_csv(trained / "load.csv")
    scale = np.array(model.cfg.std)
    errors = []
    for end in range(192, 237):
        part = dataclasses.replace(
            series, values=series.values[end - 16 : end], times=series.times[end - 16 : end]
        )
        out = forecast.predict(model, part).values
        errors.append(((out - series.values[end : end + 4]) / scale) ** 2)
    assert np.mean(errors) == pytest.approx(found["mse"], rel=1e-3)
    assert call("evaluate", "--csv", trained / "load.csv", "--model", trained / "model") == 0
    out = capsys.readouterr().out
    assert "linear map" in out
    assert f"intervals made for 80% cover {found['coverage']:.1%} of the test part" in out
    share = found["intervals"]["tracked"]["coverage_of_step"][2]
    assert f"\n  step 3 {share:24.1%}" in out
    share = found["intervals"]["tracked"]["coverage_of"]["oil"]
    assert f"\n  oil {share:27.1%}" in out


def refitted(trained, rows=slice(0), values=np.nan, epochs=4, filled=None):
    """The forecaster of `trained`, compiled already, made anew after some rows were changed."""
    series = dataclasses.replace(forecast.read_csv(trained / "load.csv"), filled=filled)
    series.values[rows] = values
    found = forecast.fit(
        series,
        horizon=4,
        model=TimeProConfig(16, 4, layers=1, patch=8, stride=8),
        training=FitConfig(batch=8, learning_rate=3e-3, epochs=epochs),
        seeds=range(2),
        coverage=0.8,
    )
    return found, series


def same_weights(a, b):
    chex.assert_trees_all_equal(a.params, b.params)


def test_the_test_rows_reach_nothing_that_is_fitted_chosen_or_calibrated(trained):
    """They are no numbers: one look at them, and a loss, a scale or a width would be none."""
    model = forecaster.load(trained / "model")
    found, series = refitted(trained, slice(192, None))
    assert np.isnan(series.values[192:]).all()
    assert scaler_of(found) == scaler_of(model)
    same_weights(found, model)
    np.testing.assert_array_equal(found.half_width, model.half_width)
    assert (found.cfg.rate, found.cfg.tracked_to) == (model.cfg.rate, model.cfg.tracked_to)
    assert found.cfg.measured_coverage == 0  # here alone they count


def test_the_validation_rows_reach_the_choice_and_the_intervals_alone(trained):
    # One epoch: later ones could differ by which of them validation prefers, as they should.
    one, _ = refitted(trained, epochs=1)
    other, series = refitted(
        trained, slice(168, 192), RNG.normal(size=(24, 3)) * [900, 90, 9], epochs=1
    )
    assert scaler_of(other) == scaler_of(one) == Scaler.fit(series.values[:168])
    same_weights(one, other)
    assert (one.half_width < other.half_width).all()


def test_intervals_are_calibrated_on_values_that_were_there(trained, monkeypatch):
    chosen = []
    monkeypatch.setattr(
        "pangu_jax.task.forecast.choose_rate", lambda *given: chosen.append(given) or 0.03
    )
    filled = np.random.default_rng(1).random((240, 3)) < 0.3
    found, series = refitted(trained, epochs=1, filled=filled)
    starts = np.arange(168 - 16, 192 - 20 + 1)
    there = ~filled[starts[:, None] + 16 + np.arange(4)]
    left = residuals(found, series.values, starts)
    np.testing.assert_allclose(found.half_width, conformal(left, 0.8, there), rtol=1e-6)
    assert (found.half_width != conformal(left, 0.8)).any()
    # And so is the rate chosen.
    ((used, coverage, measured),) = chosen
    np.testing.assert_allclose(used, left, rtol=1e-6)
    np.testing.assert_array_equal(measured, there)
    assert (found.cfg.rate, coverage) == (0.03, 0.8)


def test_the_linear_map_is_fitted_to_the_training_rows(trained):
    model = forecaster.load(trained / "model")
    series = forecast.read_csv(trained / "load.csv")
    table, sizes = scaler_of(model).scale(series.values), {"look_back": 16, "horizon": 4}
    linear = fit_linear(table[:168], np.arange(168 - 20 + 1), **sizes)
    want = score_function(linear, table, np.arange(192 - 16, 240 - 20 + 1), **sizes)
    assert forecast.evaluate(model, series)["linear"] == {"mse": want.mse, "mae": want.mae}


def test_another_process_predicts_from_the_folder_alone(trained, tmp_path):
    path = write(
        tmp_path / "new.csv",
        stamps("2024-02-28T21:00", 900, 12 * 4),
        {k: v[-48:] for k, v in reversed(waves().items())},
    )  # fmt: skip  (columns in another order)
    out, plot = tmp_path / "out.csv", tmp_path / "out.svg"
    command = [sys.executable, "-m", "pangu_jax.cli.main", "forecast", "predict", "--csv", path]
    command += ["--model", trained / "model", "--out", out, "--plot", plot, "--steps", 6]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    with open(out, newline="") as file:
        header, *rows = csv.reader(file)
    assert header[1:4] == ["load, MW", "load, MW low", "load, MW high"]
    assert [row[0] for row in rows][:2] == ["2024-02-29 09:00:00", "2024-02-29 09:15:00"]
    assert len(rows) == 6
    model = forecaster.load(trained / "model")
    want = forecast.predict(model, forecast.read_csv(path), steps=6)
    np.testing.assert_allclose([float(r[1]) for r in rows], want.values[:, 0], rtol=1e-5)
    # Original units, and a constant column stays near its constant.
    assert all(400 < float(row[1]) < 600 for row in rows)
    assert all(abs(float(row[7]) - 7) < 0.1 for row in rows)
    low, high = float(rows[0][2]), float(rows[0][3])
    assert (low, high) == pytest.approx((want.low[0, 0], want.high[0, 0]), rel=1e-5)
    assert rows[3][2] and not rows[4][2]  # beyond the horizon there is no interval
    assert plot.read_text().lstrip().startswith("<?xml")


def until(series, rows, **fields):
    """What the series was when it had so many rows."""
    return dataclasses.replace(
        series, values=series.values[:rows], times=series.times[:rows], **fields
    )


def test_test_intervals_are_those_that_a_file_up_to_then_gives(trained):
    model, series = forecaster.load(trained / "model"), forecast.read_csv(trained / "load.csv")
    model = with_step(model, rate=0.04)
    assert model.cfg.tracked_to == "2024-02-28 23:45:00"  # the last row of the validation part
    ends = range(192, 237)
    given = [forecast.predict(model, until(series, end)) for end in ends]
    wide = np.stack([found.high - found.low for found in given])
    assert [bool(found.notes) for found in given] == [True] + 44 * [False]
    assert (
        "have the widths of 2024-02-28 23:45:00: the series has no later row" in given[0].notes[0]
    )
    np.testing.assert_allclose(wide[0], 2 * model.half_width, rtol=1e-6)
    truth = np.stack([series.values[end : end + 4] for end in ends])
    inside = (truth >= [p.low for p in given]) & (truth <= [p.high for p in given])
    scores = forecast.evaluate(model, series)
    found = scores["intervals"]["tracked"]
    assert found["coverage"] == scores["coverage"] == pytest.approx(inside.mean())
    assert found["coverage_of"]["oil"] == pytest.approx(inside[..., 1].mean())
    assert found["coverage_of_step"] == pytest.approx(inside.mean((0, 2)))
    assert found["width_of"]["oil"] == pytest.approx(wide[..., 1].mean(), rel=1e-5)
    fixed = scores["intervals"]["fixed"]
    assert fixed["width_of"]["oil"] == pytest.approx(2 * model.half_width[:, 1].mean(), rel=1e-5)
    # A file that grew tracks through what lies before its own last fifth, one that ends before the
    # half widths were made has those.
    grown = dataclasses.replace(model, cfg=dataclasses.replace(
        model.cfg, tracked_to=series.stamps[150:151].texts()[0]))  # fmt: skip
    late = forecast.predict(grown, until(series, 192))
    assert (late.high - late.low != wide[0]).any()
    new, old = (forecast.evaluate(m, series)["intervals"] for m in (grown, model))
    assert new["fixed"] == old["fixed"] and new["tracked"] != old["tracked"]
    part = until(series, 191)
    early = forecast.evaluate(model, part)["intervals"]
    assert early["tracked"] == early["fixed"]
    # A file without the rows in between says what was left out.
    part = dataclasses.replace(until(series, 240), values=series.values[200:],
                               times=series.times[200:])  # fmt: skip
    (note,) = forecast.predict(model, part, where="new.csv").notes
    assert (
        "adapted to the last 24 rows alone; to adapt them to all rows after 2024-02-28 23:45"
        in note
    )
    # What was filled in moves nothing.
    filled = np.zeros((240, 3), bool)
    filled[192:] = True
    found = forecast.predict(model, dataclasses.replace(series, filled=filled))
    np.testing.assert_allclose(found.high - found.low, 2 * model.half_width, rtol=1e-6)


def test_a_forecaster_of_before_keeps_its_widths_and_says_so(trained, capsys):
    model, series = forecaster.load(trained / "model"), forecast.read_csv(trained / "load.csv")
    old = with_step(model, rate=0.0, tracked_to="")
    found = forecast.predict(old, series)
    np.testing.assert_allclose(found.high - found.low, 2 * model.half_width, rtol=1e-6)
    assert "trained by a version that did not adapt them" in found.notes[0]
    scores = forecast.evaluate(old, series)
    assert scores["coverage"] == scores["intervals"]["fixed"]["coverage"]


def test_seeds_forecast_together_what_they_do_on_average(trained):
    model = forecaster.load(trained / "model")
    series = forecast.read_csv(trained / "load.csv")
    alone = (dataclasses.replace(model, params=[params]) for params in model.params)
    one, other = (forecast.predict(one, series).values for one in alone)
    assert (one[:, :2] != other[:, :2]).all()
    np.testing.assert_allclose(forecast.predict(model, series).values, (one + other) / 2, rtol=1e-5)


def test_longer_forecasts_are_fed_back(trained):
    model = forecaster.load(trained / "model")
    series = forecast.read_csv(trained / "load.csv")
    ten = forecast.predict(model, series, steps=10).values
    four = forecast.predict(model, series).values
    np.testing.assert_allclose(ten[:4], four, rtol=1e-6)
    longer = dataclasses.replace(
        series,
        values=np.concatenate([series.values, four]),
        times=np.concatenate([series.times, series.step.after(series.times[-1], 4)]),
    )
    np.testing.assert_allclose(ten[4:8], forecast.predict(model, longer).values, rtol=1e-4)


@pytest.mark.parametrize(
    ("step", "first", "following"),
    [
        (TimeStep(3600), None, ["2024-03-01T00:00", "2024-03-01T01:00"]),
        (TimeStep(86400), None, ["2024-03-01T00:00", "2024-03-02T00:00"]),
        (TimeStep(1, "month", True), "2023-12-31", ["2024-02-29", "2024-03-31"]),
    ],
)
def test_future_times_follow_the_step(trained, tmp_path, step, first, following):
    model = forecaster.load(trained / "model")
    cfg = dataclasses.replace(
        model.cfg, step_count=step.count, step_unit=step.unit, month_end=step.month_end
    )
    if step.unit == "month":
        months = np.datetime64("2024-02") - np.arange(40)[::-1] * np.timedelta64(1, "M")
        times = months.astype("datetime64[D]") - np.timedelta64(1, "D")
    else:
        last = np.datetime64(following[0], "s") - np.timedelta64(step.count, "s")
        times = last - np.arange(40)[::-1] * np.timedelta64(step.count, "s")
    path = write(tmp_path / "x.csv", times, {k: v[:40] for k, v in waves().items()})
    found = forecast.predict(dataclasses.replace(model, cfg=cfg), forecast.read_csv(path), steps=2)
    assert found.times.tolist() == np.array(following, "datetime64[s]").tolist()


def rows_of(model, path, times):
    columns = {k: v[: len(times)] for k, v in waves().items()}
    return forecast.predict(model, forecast.read_csv(write(path, times, columns)), steps=2)


def with_step(model, **fields):
    return dataclasses.replace(model, cfg=dataclasses.replace(model.cfg, **fields))


def test_a_short_file_of_the_same_step_is_known_by_the_model(trained, tmp_path):
    model = forecaster.load(trained / "model")
    # Two years of months on the 30th, of which only every second is long enough to tell.
    thirtieth = with_step(model, step_count=2, step_unit="month", month_day=30)
    months = np.datetime64("2024-04", "M") + np.arange(2, 18) * np.timedelta64(2, "M")
    ends = (months + np.timedelta64(1, "M")).astype("datetime64[D]") - np.timedelta64(1, "D")
    days = np.minimum(months.astype("datetime64[D]") + np.timedelta64(29, "D"), ends)
    found = rows_of(thirtieth, tmp_path / "a.csv", days[:16])
    assert [str(t)[8:10] for t in found.times] == ["30", "30"]
    # An old folder says no day: the series does.
    old = with_step(model, step_count=2, step_unit="month")
    assert rows_of(old, tmp_path / "a.csv", days).times.tolist() == found.times.tolist()
    # Weekdays, of which none is left out in sixteen rows but the weekends.
    weekdays = np.arange("2024-05-01", "2024-06-15", dtype="datetime64[D]")
    weekdays = weekdays[np.is_busday(weekdays)][:18]
    known = with_step(model, step_count=1, step_unit="weekday")
    found = rows_of(known, tmp_path / "b.csv", weekdays)
    assert [str(t)[:10] for t in found.times] == ["2024-05-27", "2024-05-28"]
    with pytest.raises(InputError, match="every 1 weekday, the model was trained on one "
                       "every 1 d"):  # fmt: skip
        rows_of(with_step(model, step_count=1, step_unit="day"), tmp_path / "b.csv", weekdays)


def test_forecasts_are_written_with_the_offset_that_the_file_has(trained, tmp_path, capsys):
    local = stamps("2024-03-30T20:00", 900, 24)
    after = local[-1] + np.arange(1, 9) * np.timedelta64(900, "s") + np.timedelta64(1, "h")
    times = [*(f"{t}+01:00" for t in local), *(f"{t}+02:00" for t in after)]
    path = write(tmp_path / "x.csv", times, {k: v[:32] for k, v in waves().items()})
    files = ["--csv", path, "--model", trained / "model", "--out", tmp_path / "o.csv"]
    for zone in ((), ("--zone", "Europe/Berlin")):
        assert call("predict", *files, "--plot", tmp_path / "p.svg", *zone) == 0
        out, err = capsys.readouterr()
        assert out.endswith("4 steps from 2024-03-31 05:00:00+02:00 to 2024-03-31 05:45:00+02:00\n")
        assert ("the forecasts keep its last offset, +02:00" in err) == (not zone)
        assert "note: the intervals were adapted to the last 16 rows alone" in err
        assert "\n2024-03-31 05:15:00+02:00," in (tmp_path / "o.csv").read_text()
        assert "UTC+02:00" in (tmp_path / "p.svg").read_text()


def test_what_was_filled_in_is_not_measured(trained, tmp_path, capsys):
    table = [line.split(",") for line in (trained / "load.csv").read_text().splitlines()]
    arguments = ["--model", trained / "model", "--repair", "--json"]
    assert call("evaluate", "--csv", trained / "load.csv", *arguments) == 0
    plain = json.loads(capsys.readouterr().out)
    for row in (200, 210, 211):
        table[row + 1][-2] = ""  # of "oil"
    (tmp_path / "x.csv").write_text("\n".join(map(",".join, table)) + "\n")
    assert call("evaluate", "--csv", tmp_path / "x.csv", *arguments) == 0
    found = json.loads(capsys.readouterr().out)
    assert (plain["filled"], found["filled"]) == (0, 3)
    # The same by hand.
    model = forecaster.load(trained / "model")
    series = forecast.read_csv(tmp_path / "x.csv", forecast.CsvFormat(repair=True))
    left = []
    for end in range(192, 237):
        part = dataclasses.replace(
            series, values=series.values[end - 16 : end], times=series.times[end - 16 : end],
            filled=None,
        )  # fmt: skip
        left.append(forecast.predict(model, part).values - series.values[end : end + 4])
    left, rows = np.abs(left), np.arange(192, 237)[:, None] + np.arange(4)
    there = np.ones(left.shape, bool)
    there[..., 1] = ~np.isin(rows, (200, 210, 211))
    assert found["mae_of"]["oil"] == pytest.approx(left[..., 1][there[..., 1]].mean(), rel=1e-3)
    inside = (left <= model.half_width)[there]
    assert found["intervals"]["fixed"]["coverage"] == pytest.approx(inside.mean(), abs=1e-6)
    assert found["mae_of"]["load, MW"] == pytest.approx(plain["mae_of"]["load, MW"], rel=0.1)
    gone = dataclasses.replace(series, filled=np.ones(series.values.shape, bool))
    with pytest.raises(InputError, match="test part: all values of 'load, MW' were filled"):
        forecast.evaluate(model, gone, where="x.csv")


def test_the_command_that_train_names_works(trained, tmp_path, capsys, monkeypatch):
    model = forecaster.load(trained / "model")
    monkeypatch.setattr(forecast, "fit", lambda *a, **k: model)
    path, out = tmp_path / "my load.csv", tmp_path / "the model"
    times = [f"{str(t)[8:10]}.{str(t)[5:7]}.{str(t)[:4]} {str(t)[11:16]}"
             for t in stamps("2024-02-27", 900, 240)]  # fmt: skip
    path.write_text("when\tof\tis\n" + "".join(
        f"{t}\t{name}\t{v[i]}\n" for name, v in waves().items() for i, t in enumerate(times)
    ))  # fmt: skip
    layout = ["--id", "of", "--value", "is", "--repair", "--time", "when", "--delimiter", r"\t"]
    layout += ["--time-format", "%d.%m.%Y %H:%M", "--zone", "UTC"]
    assert call("train", "--csv", path, "--horizon", 4, "--out", out, *SIZES, *layout) == 0
    command = shlex.split(capsys.readouterr().out.strip().splitlines()[-1].split("try: ")[1])
    assert command[:3] == ["pangu-jax", "forecast", "predict"]
    monkeypatch.chdir(tmp_path)
    assert call(*command[2:]) == 0
    assert (
        (tmp_path / "forecast.csv").read_text().splitlines()[1].startswith("2024-02-29 12:00:00+")
    )


def test_what_is_wrong_is_said_in_one_sentence(trained, tmp_path, capsys):
    good, model = trained / "load.csv", trained / "model"
    times, columns = stamps("2024-02-27T00:00", 900, 40), {k: v[:40] for k, v in waves().items()}
    strange = {"load, MW": columns["oil"], "wind": columns["oil"]}
    other = write(tmp_path / "other.csv", times, strange)
    short = write(tmp_path / "short.csv", times[:10], {k: v[:10] for k, v in columns.items()})
    hourly = write(tmp_path / "hourly.csv", stamps("2024-02-27", 3600, 40), columns)
    hole = write(tmp_path / "hole.csv", np.delete(times, 5), {k: v[1:] for k, v in columns.items()})
    empty = tmp_path / "empty.csv"
    empty.write_text("")
    predict = ["predict", "--model", model, "--out", tmp_path / "out.csv", "--csv"]
    train = ["train", "--out", tmp_path / "model", *SIZES]
    for arguments, message in (
        ([*predict, other], "lacks oil, fixed and has wind, which the model does not know"),
        ([*predict, short], "has 10 rows, the model looks back on 16"),
        ([*predict, hourly], "a row every 1 h, the model was trained on one every 15 min"),
        ([*predict, hole], "1 rows of step 15 min are missing"),
        ([*predict, empty], "is empty"),
        ([*predict, good, "--steps", 0], "steps must be at least 1"),
        ([*predict, good, "--plot", tmp_path / "x.bmp"], "ends in none of .png, .svg, .pdf"),
        ([*predict[:2], tmp_path / "none", *predict[3:], good], "there is no folder"),
        ([*predict[:2], tmp_path, *predict[3:], good], "holds no forecaster"),
        ([*train, "--csv", good, "--horizon", 0], "horizon must be at least 1"),
        ([*train, "--csv", good, "--horizon", 200], "part has"),
        ([*train, "--csv", short, "--horizon", 4], "too few for a look-back"),
        ([*train, "--csv", good, "--horizon", 4, "--channels", 20], "multiple of 16"),
        ([*train, "--csv", good, "--horizon", 4, "--seeds", 0], "seeds must be at least 1"),
        ([*train, "--csv", good, "--horizon", 4, "--coverage", 90], "between 0 and 1"),
    ):
        assert call(*arguments) == 2, arguments
        error = capsys.readouterr().err.strip().splitlines()[-1]
        assert error.startswith("pangu-jax: ")
        assert message in error
    assert not (tmp_path / "out.csv").exists()
    assert not (tmp_path / "model").exists()


def test_the_command_that_training_suggests_works_and_keeps_the_clock(tmp_path, capsys):
    times = np.datetime64("2024-05-01T00:00", "s") + np.arange(240) * np.timedelta64(1, "h")
    rows = [
        (f"{t}+02:00".replace("T", " "), name, f"{column[i]:.4f}")
        for i, t in enumerate(times)
        for name, column in waves().items()
        if i != 230 and not (i == 200 and name == "oil")
    ]
    path = tmp_path / "with space.csv"
    with open(path, "w", newline="") as file:
        csv.writer(file).writerows([("ds", "unique_id", "y"), *rows])
    layout = ["--id", "unique_id", "--value", "y", "--repair"]
    model = ["--horizon", 4, "--out", tmp_path / "model", "--epochs", 1, *SIZES]
    assert call("train", "--csv", path, *layout, *model) == 0
    said, notes = capsys.readouterr()
    assert "1 missing rows were filled in" in notes and "1 missing values" in notes
    assert "filled in, not measured      4 values" in said
    command = shlex.split(said.splitlines()[-1].split("try: ")[1])
    assert command[:3] == ["pangu-jax", "forecast", "predict"]
    assert call(*command[2:], "--out", tmp_path / "out.csv") == 0
    with open(tmp_path / "out.csv", newline="") as file:
        _, first, *_ = csv.reader(file)
    assert first[0] == "2024-05-11 00:00:00+02:00"
