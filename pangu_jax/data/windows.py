"""Train, validation and test splits of a series, its scaling, and the windows in them."""

import dataclasses
import typing
from typing import Literal

import numpy as np

from pangu_jax.core.config import check_choice
from pangu_jax.core.errors import InputError

Rule = Literal["hourly", "quarter", "ratio"]
MONTH = 30 * 24  # rows of the ETT benchmark's month of hours


@dataclasses.dataclass(frozen=True)
class SplitRows:
    """Rows of each split: from the first number up to, not including, the second.

    Validation and test windows look back across their border, so that the first step that is
    forecast is the first row of the part.

    Attributes:
      train: rows for training, and for the scaling.
      validation: rows for early stopping.
      test: rows for the final measurement.
    """

    train: tuple[int, int]
    validation: tuple[int, int]
    test: tuple[int, int]


def split_rows(rows: int, rule: Rule = "ratio", *, where: str = "the series") -> SplitRows:
    """The splits that the published tables use.

    Args:
      rows: of the series.
      rule: "hourly" is ETTh (12, 4 and 4 months of hours, the rest unused), "quarter" ETTm (the
        same of quarter hours), "ratio" all others: the first 70 %, the last 20 %, and what lies
        between for validation.
      where: the series' name in errors.

    Raises:
      InputError: too few rows, or no such rule.
    """
    check_choice("the rule of the split", rule, typing.get_args(Rule))
    if rule == "ratio":
        train, test = int(rows * 0.7), int(rows * 0.2)
        if train < 1 or test < 1:
            raise InputError(f"{where} has {rows} rows, too few to split")
        return SplitRows((0, train), (train, rows - test), (rows - test, rows))
    month = MONTH * (4 if rule == "quarter" else 1)
    if rows < 20 * month:
        raise InputError(f"{where} has {rows} rows, the {rule} rule needs {20 * month}")
    return SplitRows((0, 12 * month), (12 * month, 16 * month), (16 * month, 20 * month))


def starts(part: tuple[int, int], *, look_back: int, horizon: int, reach: bool) -> np.ndarray:
    """The first row of every window whose forecast lies in a part, one per row.

    Args:
      part: rows of the part.
      look_back: T.
      horizon: H.
      reach: whether a window may look back across the beginning of the part; the training part
        has nothing before it.

    Returns:
      int32 [n]; empty when there is no window.
    """
    first = max(part[0] - look_back, 0) if reach else part[0]
    return np.arange(first, part[1] - look_back - horizon + 1, dtype=np.int32)


@dataclasses.dataclass(frozen=True)
class Parts:
    """First rows of the windows of the three parts, int32 arrays."""

    train: np.ndarray
    validation: np.ndarray
    test: np.ndarray


def parts(split: SplitRows, *, look_back: int, horizon: int, where: str = "the series") -> Parts:
    """All windows of all parts.

    Raises:
      InputError: a part has no window.
    """
    found = {}
    for name in ("train", "validation", "test"):
        part = getattr(split, name)
        at = starts(part, look_back=look_back, horizon=horizon, reach=name != "train")
        if not len(at):
            raise InputError(
                f"{where}: the {name} part has {part[1] - part[0]} rows, too few for a look-back "
                f"of {look_back} and a horizon of {horizon}"
            )
        found[name] = at
    return Parts(**found)


@dataclasses.dataclass(frozen=True)
class Scaler:
    """Mean and standard deviation of each variate.

    Attributes:
      mean: one number per variate.
      std: the same; 1 for a constant variate.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]

    @classmethod
    def fit(cls, values: np.ndarray) -> "Scaler":
        """Fits rows of training data [rows, V], in float64, with the population's std."""
        mean, std = values.mean(0), values.std(0)
        # Rounding may leave the std of a column of equal numbers slightly above 0.
        still = np.ptp(values, axis=0) == 0
        return cls(tuple(mean.tolist()), tuple(np.where(still, 1.0, std).tolist()))

    def scale(self, values: np.ndarray) -> np.ndarray:
        """Values [..., V] less the mean, divided by the std, as float32."""
        return ((values - np.array(self.mean)) / np.array(self.std)).astype(np.float32)

    def unscale(self, values: np.ndarray) -> np.ndarray:
        """The inverse of `scale`: [..., V], as float64."""
        return values.astype(np.float64) * np.array(self.std) + np.array(self.mean)


class WindowSource:
    """Windows one by one: `source[i]` is {"x": [T, V], "y": [H, V]}."""

    def __init__(self, values: np.ndarray, at: np.ndarray, *, look_back: int, horizon: int):
        """The windows of a series [rows, V] that begin at the rows `at`."""
        self._values, self._at = values, at
        self._look_back, self._length = look_back, look_back + horizon

    def __len__(self) -> int:
        """Number of windows."""
        return len(self._at)

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        """The window of that number, views of the series."""
        row = int(self._at[index])
        both = self._values[row : row + self._length]
        return {"x": both[: self._look_back], "y": both[self._look_back :]}
