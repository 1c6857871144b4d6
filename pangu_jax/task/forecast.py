"""Time-series forecasters: train on a CSV file or a table, evaluate, forecast."""

import dataclasses
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pangu_jax.checkpoint.forecaster import Forecaster, ForecasterConfig, save
from pangu_jax.core.errors import InputError
from pangu_jax.data.series import CsvFormat, Series, read_csv
from pangu_jax.data.windows import Scaler, parts, split_rows
from pangu_jax.eval.forecast import fit_linear, repeat_last, score_function
from pangu_jax.eval.intervals import Coverage, choose_rate, conformal, measure_coverage
from pangu_jax.eval.predict import (
    arrange,
    half_widths,
    measured,
    predict,
    present,
    residuals,
    scaler_of,
    to_host,
    tracked_from,
)
from pangu_jax.models.timepro_config import TimeProConfig
from pangu_jax.task.model import Model, as_forecaster, from_forecaster
from pangu_jax.train.fit_config import FitConfig
from pangu_jax.train.forecast import fit as train_seeds


def fit(
    data: str | Path | Series,
    *,
    horizon: int,
    out: str | Path | None = None,
    seeds: int = 1,
    coverage: float = 0.9,
    look_back: int = TimeProConfig.look_back,
    layers: int = TimeProConfig.layers,
    channels: int = TimeProConfig.channels,
    patch: int = TimeProConfig.patch,
    stride: int = TimeProConfig.stride,
    batch: int = FitConfig.batch,
    learning_rate: float = FitConfig.learning_rate,
    epochs: int = FitConfig.epochs,
    patience: int = FitConfig.patience,
    layout: CsvFormat = CsvFormat(),
) -> Model:
    """Trains a forecaster, as `pangu-jax forecast train` does.

        >>> m = pj.fit("load.csv", horizon=96, out="forecaster")
        >>> pj.forecast(m, "load.csv")["values"].shape
        (96, 7)

    Args:
      data: a CSV file, or a series that was read.
      horizon: H, steps to forecast.
      out: the folder to keep it in, for `load`; None keeps it in memory.
      seeds: how many models are trained; their forecasts are averaged.
      coverage: the share of observations the intervals should cover.
      look_back: input steps of a forecast.
      layers: blocks of the model.
      channels: of each patch, a multiple of 16.
      patch: steps per patch.
      stride: steps between patches.
      batch: windows per step.
      learning_rate: of Adam; halves with every epoch from the third on.
      epochs: at most.
      patience: epochs without a better validation error before it stops.
      layout: how the file is laid out.

    Raises:
      InputError: unusable data, too few rows, or sizes out of range.
    """
    check_training(seeds, coverage)
    found = fit_series(
        read(data, layout),
        horizon=horizon,
        model=TimeProConfig(look_back, horizon, layers, channels, patch, stride),
        training=FitConfig(batch, learning_rate, epochs, patience),
        seeds=range(seeds),
        coverage=coverage,
    )
    if not isinstance(data, Series):
        cfg = dataclasses.replace(found.cfg, trained_on=Path(data).name)
        found = dataclasses.replace(found, cfg=cfg)
    if out is not None:
        save(found, out)
    return from_forecaster(found, "" if out is None else out)


def evaluate_series(
    model: Model, data: str | Path | Series, *, layout: CsvFormat = CsvFormat()
) -> dict[str, Any]:
    """Errors of a forecaster over the last fifth of a series; see `evaluate`."""
    where = "the series" if isinstance(data, Series) else str(data)
    return score_series(as_forecaster(model), read(data, layout), where=where)


def forecast(
    model: Model,
    data: str | Path | Series,
    *,
    steps: int | None = None,
    layout: CsvFormat = CsvFormat(),
) -> dict[str, Any]:
    """Forecasts what follows the last row, as `pangu-jax forecast predict` does.

        >>> found = pj.forecast(pj.load("forecaster"), "load.csv")
        >>> pandas.DataFrame(found["values"], found["times"], found["names"])

    Args:
      model: a forecaster.
      data: a CSV file with the columns that it was trained on, or such a series that was read.
      steps: how far ahead; None is the trained horizon, beyond which there are no intervals.
      layout: how the file is laid out.

    Returns:
      {"times": a list of texts, "names": of the columns, "values", "low", "high": float64
      [steps, V] in the units of the data, "notes": what is not certain, a sentence each}.

    Raises:
      InputError: another kind of model, other columns, another step, or too few rows.
    """
    where = "the series" if isinstance(data, Series) else str(data)
    found = predict(as_forecaster(model), read(data, layout), steps=steps, where=where)
    return {
        "times": found.stamps.texts(),
        "names": list(found.names),
        "values": found.values,
        "low": found.low,
        "high": found.high,
        "notes": list(found.notes),
    }


def read(data: str | Path | Series, layout: CsvFormat = CsvFormat()) -> Series:
    """A series, read from a CSV file if it is not one yet; what the reader notes is logged.

    Raises:
      InputError: the file cannot be read as one.
    """
    if isinstance(data, Series):
        return data
    series = read_csv(data, layout)
    for note in series.notes:
        logging.getLogger(__name__).warning("%s: %s", data, note)
    return series


def check_training(seeds: int, coverage: float) -> None:
    """Checks the arguments of a training.

    Raises:
      InputError: no seed, or a coverage that is no share.
    """
    if seeds < 1:
        raise InputError(f"seeds must be at least 1, got {seeds}")
    if not 0 < coverage < 1:
        raise InputError(f"coverage must be between 0 and 1, got {coverage}")


def fit_series(
    data: str | Path | Series,
    *,
    horizon: int,
    model: TimeProConfig | None = None,
    training: FitConfig = FitConfig(),
    seeds: Sequence[int] = (0,),
    coverage: float = 0.9,
    progress: Callable[[int, int, str], None] | None = None,
    folder: str | Path | None = None,
) -> Forecaster:
    """`fit` on a series, with the library's own configurations.

    Args:
      data: a CSV file or a series that was read.
      horizon: H, steps to forecast.
      model: its other sizes; None takes the published ones for hourly data.
      training: batches and rates.
      seeds: one model each; their forecasts are averaged.
      coverage: the share of observations the intervals should cover; they are calibrated on the
        validation part, tracked through the test part, and what they cover of it is measured.
      progress: called with steps done, steps at most, and a line of text.
      folder: where metrics and checkpoints go, to resume from; None keeps nothing.

    Raises:
      InputError: unusable data, too few rows, sizes out of range, another run in the folder.
      Stopped: a signal came while there was a folder; the training is saved.
    """
    where = "the series" if isinstance(data, Series) else str(data)
    series = data if isinstance(data, Series) else read_csv(data)
    cfg = dataclasses.replace(model or TimeProConfig(), horizon=horizon)
    split = split_rows(len(series.values), where=where)
    at = parts(split, look_back=cfg.look_back, horizon=horizon, where=where)
    there = {
        part: measured(series.filled, getattr(at, part), cfg, series.names, f"{where}, {part} part")
        for part in ("validation", "test")
    }
    scaler = Scaler.fit(series.values[slice(*split.train)])
    fitted = train_seeds(
        scaler.scale(series.values),
        at.train,
        at.validation,
        model=cfg,
        cfg=training,
        seeds=seeds,
        progress=progress,
        folder=folder,
    )
    description = ForecasterConfig(
        cfg, series.names, scaler.mean, scaler.std, series.step.count, series.step.unit,
        series.step.month_end, tuple(seeds), coverage, 0.0, Path(where).name, series.step.day,
    )  # fmt: skip
    zero = np.zeros((horizon, len(series.names)))
    found = Forecaster(description, to_host(fitted.params), zero)
    left = residuals(found, series.values, at.validation)
    width = conformal(left, coverage, there["validation"]).astype(np.float64)
    description = dataclasses.replace(
        description,
        rate=choose_rate(left, coverage, there["validation"]),
        tracked_to=series.stamps[split.test[0] - 1 : split.test[0]].texts()[0],
    )
    found = Forecaster(description, found.params, width)
    left = residuals(found, series.values, at.test)
    tracked = half_widths(found, left, there["test"])[:-1]
    covered = measure_coverage(left, tracked, there["test"]).share
    return dataclasses.replace(
        found, cfg=dataclasses.replace(description, measured_coverage=covered)
    )


def score_series(model: Forecaster, series: Series, *, where: str = "the series") -> dict:
    """Errors over every window of the last fifth of a series, beside plain baselines.

    Args:
      model: a trained forecaster.
      series: with the columns and the step that it was trained on.
      where: how errors name the series.

    Returns:
      {"windows", "filled" (values of that fifth that were filled in, and so are not measured),
      "mse", "mae" (of scaled values), "mae_of" {column: in its unit}, "coverage", "intervals",
      "linear" and "repeat" {"mse", "mae"}}; the linear map is fitted to the first 70 %.
      "coverage" is that of the intervals that `predict` would have given at each window, tracked
      through the rows before it; "intervals" has "tracked" and "fixed" (the stored widths) with
      {"coverage", "coverage_of" {column}, "coverage_of_step" (a list), "width_of" {column: mean
      width, in its unit}}.

    Raises:
      InputError: other columns, another step, too few rows.
    """
    cfg, scaler = model.cfg.model, scaler_of(model)
    values, filled = arrange(model, series, where)
    at = parts(split_rows(len(values), where=where), look_back=cfg.look_back, horizon=cfg.horizon,
               where=where)  # fmt: skip
    count = measured(filled, at.test, cfg, model.cfg.names, f"{where}, test part")
    left, widths = _with_widths(model, series, values, filled, at.test)
    tracked = measure_coverage(left, widths, count)
    fixed = measure_coverage(left, model.half_width, count)
    scaled = (left / np.array(scaler.std))[count]
    sizes = {"look_back": cfg.look_back, "horizon": cfg.horizon}
    table = scaler.scale(values)
    fitted = fit_linear(table, at.train, **sizes)
    linear = score_function(fitted, table, at.test, **sizes, filled=filled)
    repeat = score_function(repeat_last(cfg.horizon), table, at.test, **sizes, filled=filled)
    per_column = np.abs(left).mean((0, 1), where=count).tolist()
    test = slice(int(at.test[0]) + cfg.look_back, None)
    return {
        "windows": len(at.test),
        "filled": 0 if filled is None else int(filled[test].sum()),
        "mse": float(np.square(scaled).mean()),
        "mae": float(np.abs(scaled).mean()),
        "mae_of": dict(zip(model.cfg.names, per_column, strict=True)),
        "coverage": tracked.share,
        "intervals": {"tracked": _as_json(model, tracked), "fixed": _as_json(model, fixed)},
        "linear": {"mse": linear.mse, "mae": linear.mae},
        "repeat": {"mse": repeat.mse, "mae": repeat.mae},
    }


def _with_widths(model, series, values, filled, test) -> tuple[np.ndarray, np.ndarray]:
    """Residuals of the test windows, and the half widths that each was given, [n, H, V]."""
    cfg = model.cfg.model
    newer = tracked_from(model, series.stamps)
    first = min(newer, int(test[0]))
    starts = np.arange(first, test[-1] + 1)
    left = residuals(model, values, starts)
    there = present(filled, starts, cfg, values.shape[1])
    widths = half_widths(model, left, there, min(newer - first, len(starts)))
    rows = slice(int(test[0]) - first, len(starts))
    return left[rows], widths[rows]


def _as_json(model: Forecaster, found: Coverage) -> dict:
    names = model.cfg.names
    return {
        "coverage": found.share,
        "coverage_of": dict(zip(names, found.of_series.tolist(), strict=True)),
        "coverage_of_step": [None if np.isnan(x) else x for x in found.of_step.tolist()],
        "width_of": dict(zip(names, found.width.tolist(), strict=True)),
    }
