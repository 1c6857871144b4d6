"""Forecasts many series at once: trains on a CSV file, evaluates, predicts.

While it trains, OUT/training holds the run; the same command resumes a stopped run.

From Python it is `pangu_jax.fit`, `evaluate` and `forecast`.
"""

from dataclasses import dataclass

from pangu_jax.data.table import CsvFormat
from pangu_jax.models.timepro_config import TimeProConfig
from pangu_jax.train.fit_config import FitConfig


@dataclass(frozen=True)
class Train:
    """Trains a forecaster: 70 % of the rows are fitted, 10 % stop the training, 20 % measure it."""

    csv: str
    """A CSV file: a time column and number columns (or a long layout, see --id)."""
    horizon: int
    """Steps to forecast."""
    out: str
    """The forecaster's folder, which is all that predict needs."""
    look_back: int = TimeProConfig.look_back
    """Input steps of a forecast."""
    layers: int = TimeProConfig.layers
    """Blocks of the model."""
    channels: int = TimeProConfig.channels
    """Channels per patch, a multiple of 16."""
    patch: int = TimeProConfig.patch
    """Steps per patch."""
    stride: int = TimeProConfig.stride
    """Steps between patches."""
    seeds: int = 1
    """How many models are trained; their forecasts are averaged."""
    batch: int = FitConfig.batch
    """Windows per step."""
    learning_rate: float = FitConfig.learning_rate
    """Learning rate of Adam; halves every epoch from the third on."""
    epochs: int = FitConfig.epochs
    """Maximum number of epochs."""
    patience: int = FitConfig.patience
    """Epochs without a better validation error before it stops."""
    coverage: float = 0.9
    """Share of observations that the intervals should cover."""
    layout: CsvFormat = CsvFormat()


@dataclass(frozen=True)
class Evaluate:
    """Measures a forecaster on the last fifth of a file, over every window, beside baselines."""

    csv: str
    """A CSV file with the columns that it was trained on."""
    model: str
    """The forecaster's folder."""
    json: bool = False
    """Print one line of JSON instead of text."""
    layout: CsvFormat = CsvFormat()


@dataclass(frozen=True)
class Predict:
    """Forecasts what follows the last row of a file."""

    csv: str
    """A CSV file with the columns that it was trained on. Rows after those that the intervals were
    calibrated on adapt the intervals: the more of them, the better."""
    model: str
    """The forecaster's folder."""
    out: str = "forecast.csv"
    """The file to write: times, forecasts, and the ends of their intervals."""
    steps: int | None = None
    """How far ahead; beyond the trained horizon, forecasts are fed back, without intervals."""
    plot: str | None = None
    """A plot to write: .png, .svg or .pdf."""
    layout: CsvFormat = CsvFormat()


Options = Train | Evaluate | Predict
