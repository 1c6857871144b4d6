"""Runs `pangu-jax forecast`; its options are in `cli/options/forecast.py`."""

import dataclasses
import json
import shlex
import sys
from pathlib import Path

import numpy as np

from pangu_jax.checkpoint import store
from pangu_jax.checkpoint.forecaster import Forecaster, load, save
from pangu_jax.cli.options.forecast import Evaluate, Options, Predict, Train
from pangu_jax.cli.progress import progress
from pangu_jax.cli.stopping import stoppable
from pangu_jax.data.series import CsvFormat, Series, read_csv, write_csv
from pangu_jax.eval.predict import predict
from pangu_jax.models.timepro_config import TimeProConfig
from pangu_jax.task.forecast import check_training
from pangu_jax.task.forecast import fit_series as fit
from pangu_jax.task.forecast import score_series as evaluate
from pangu_jax.train.fit_config import FitConfig

__all__ = ["CsvFormat", "Forecaster", "evaluate", "fit", "load", "predict", "read_csv", "save"]

TRAINING = "training"


def main(options: Options) -> None:
    """Trains, evaluates or predicts."""
    if isinstance(options, Train):
        _train(options)
    elif isinstance(options, Evaluate):
        _evaluate(options)
    else:
        _predict(options)


def _train(options: Train) -> None:
    check_training(options.seeds, options.coverage)
    model = TimeProConfig(
        options.look_back,
        options.horizon,
        options.layers,
        options.channels,
        options.patch,
        options.stride,
    )
    training = FitConfig(options.batch, options.learning_rate, options.epochs, options.patience)
    series = _read(options.csv, options.layout)
    for name, column in zip(series.names, series.values[: len(series.values) * 7 // 10].T,
                            strict=True):  # fmt: skip
        if np.ptp(column) == 0:
            _say(f"note: {name} does not change in the training rows; it is kept, unscaled")
    run = Path(options.out) / TRAINING
    with stoppable(), progress() as show:
        found = fit(
            series,
            horizon=options.horizon,
            model=model,
            training=training,
            seeds=range(options.seeds),
            coverage=options.coverage,
            progress=lambda done, total, text: show("training, step", done, total, text),
            folder=run,
        )
    found = dataclasses.replace(
        found, cfg=dataclasses.replace(found.cfg, trained_on=Path(options.csv).name)
    )
    save(found, options.out)
    store.discard(run)
    _print_scores(found, evaluate(found, series, where=options.csv))
    command = ["pangu-jax", "forecast", "predict", "--model", options.out, "--csv", options.csv]
    print(f"{options.out} holds the forecaster; try: "
          f"{shlex.join([*command, *_flags(options.layout)])}")  # fmt: skip


def _flags(layout: CsvFormat) -> list[str]:
    """The flags that describe this layout of a file."""
    found = []
    for field in dataclasses.fields(layout):
        value = getattr(layout, field.name)
        if value != field.default:
            flag = f"--{field.name.replace('_', '-')}"
            found += [flag] if value is True else [flag, value]
    return found


def _evaluate(options: Evaluate) -> None:
    model = load(options.model)
    scores = evaluate(model, _read(options.csv, options.layout), where=options.csv)
    if options.json:
        print(json.dumps(scores))
    else:
        _print_scores(model, scores)


def _predict(options: Predict) -> None:
    model = load(options.model)
    series = _read(options.csv, options.layout)
    with progress() as show:
        found = predict(
            model,
            series,
            steps=options.steps,
            where=options.csv,
            progress=lambda done, total: show("adapting the intervals, window", done, total),
        )
    if options.plot:
        from pangu_jax.eval.forecast_plot import plot

        plot(options.plot, series, found, coverage=model.cfg.coverage)
        print(f"{options.plot} shows it")
    names, columns = [], []
    for i, name in enumerate(found.names):
        names += [name, f"{name} low", f"{name} high"]
        columns += [found.values[:, i], found.low[:, i], found.high[:, i]]
    write_csv(options.out, names, found.stamps, np.stack(columns, 1))
    for note in found.notes:
        _say(f"note: {note}")
    texts = found.stamps.texts()
    print(f"{options.out} holds {len(texts)} steps from {texts[0]} to {texts[-1]}")


def _read(path: str, layout: CsvFormat) -> Series:
    series = read_csv(path, layout)
    for note in series.notes:
        _say(f"note: {path}: {note}")
    _say(f"{path}: {len(series.values)} rows of {len(series.names)} series, one every "
         f"{series.step}")  # fmt: skip
    return series


def _print_scores(model: Forecaster, scores: dict) -> None:
    print(f"test windows                 {scores['windows']:,}")
    if scores["filled"]:
        print(f"filled in, not measured      {scores['filled']:,} values")
    print("errors of scaled values      MSE     MAE")
    for name, part in (("this model", scores), ("linear map", scores["linear"]),
                       ("repeating the last value", scores["repeat"])):  # fmt: skip
        print(f"  {name:25} {part['mse']:7.4f} {part['mae']:7.4f}")
    _print_intervals(model, scores["intervals"])
    for name, value in scores["mae_of"].items():
        print(f"mean absolute error of {name}: {value:.6g}")


def _print_intervals(model: Forecaster, found: dict) -> None:
    """Prints the coverage of intervals: overall, by series, and by quarter of the horizon."""
    fixed, tracked = found["fixed"], found["tracked"]
    made_for = f"intervals made for {model.cfg.coverage:.0%}"
    if not model.cfg.rate:
        print(f"{made_for} cover {fixed['coverage']:.1%} of the test part")
        return
    print(f"{made_for} cover {tracked['coverage']:.1%} of the test part, adapting to each new row; "
          f"{fixed['coverage']:.1%} with the calibrated widths alone")  # fmt: skip
    print("share covered             adapted   fixed   width / fixed")
    for name in model.cfg.names:
        new, old = tracked["width_of"][name], fixed["width_of"][name]
        ratio = f"{new / old:.2f}" if old else "-"
        print(f"  {name:22} {tracked['coverage_of'][name]:8.1%}{fixed['coverage_of'][name]:8.1%}"
              f"{ratio:>16}")  # fmt: skip
    columns = [np.array(part["coverage_of_step"], float) for part in (tracked, fixed)]
    for steps in filter(len, np.array_split(np.arange(model.cfg.model.horizon), 4)):
        there = steps[~np.isnan(columns[0][steps])]
        if len(there):
            shares = "".join(f"{column[there].mean():8.1%}" for column in columns)
            one = steps[0] == steps[-1]
            name = f"step {steps[0] + 1}" if one else f"steps {steps[0] + 1} to {steps[-1] + 1}"
            print(f"  {name:22} {shares}")
    low, high = np.nanmin(columns[0]), np.nanmax(columns[0])
    print(f"  {'single steps':22} {low:8.1%} to {high:.1%}")


def _say(text: str) -> None:
    print(text, file=sys.stderr)
