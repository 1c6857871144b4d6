"""A trained forecaster as a folder: a JSON file and a file of arrays, all that predicting needs."""

import dataclasses
import json
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np
import safetensors.numpy
from safetensors import SafetensorError

from pangu_jax.core.config import load_config, to_json
from pangu_jax.core.errors import InputError
from pangu_jax.core.files import atomic_write
from pangu_jax.core.spec import check
from pangu_jax.core.tree import flatten, map_named
from pangu_jax.models import timepro
from pangu_jax.models.timepro import TimeProConfig

DESCRIPTION = "forecaster.json"
ARRAYS = "forecaster.safetensors"


@dataclasses.dataclass(frozen=True)
class ForecasterConfig:
    """Everything about a forecaster that is not an array.

    Attributes:
      model: the model.
      names: the columns, in the order that the model scans them.
      mean: of each column's training rows.
      deviation: the same; what a scaled value of 1 stands for.
      step_count: how many units lie between two rows.
      step_unit: "us" or "s" (of instants), "day", "weekday" or "month" (of local dates).
      month_end: whether stamps are the last days of their months.
      seeds: one set of parameters each; their forecasts are averaged.
      coverage: what the intervals were made for.
      measured_coverage: the share of the test part that they covered.
      trained_on: the file's name.
      month_day: the day that monthly stamps lie on where the month has it, 29 or 30; else 0.
    """

    model: TimeProConfig
    names: tuple[str, ...]
    mean: tuple[float, ...]
    deviation: tuple[float, ...]
    step_count: int
    step_unit: Literal["us", "s", "day", "weekday", "month"]
    month_end: bool
    seeds: tuple[int, ...]
    coverage: float
    measured_coverage: float
    trained_on: str
    month_day: int = 0

    def __post_init__(self):
        if not len(self.names) == len(self.mean) == len(self.deviation) > 0:
            raise InputError("names, mean and deviation must be of one length, at least 1")
        if not self.seeds:
            raise InputError("seeds must name at least one set of parameters")


@dataclasses.dataclass(frozen=True)
class Forecaster:
    """A trained forecaster.

    Attributes:
      cfg: its description.
      params: one tree a seed.
      half_width: float64 [H, V], of the intervals, in the units of the data.
    """

    cfg: ForecasterConfig
    params: list[Any]
    half_width: np.ndarray


def save(model: Forecaster, folder: str | Path) -> None:
    """Writes the folder; the description comes last, so that a broken save is none.

    Raises:
      InputError: it cannot be written.
    """
    arrays = {"half_width": np.ascontiguousarray(model.half_width, np.float64)}
    for i, params in enumerate(model.params):
        leaves = flatten(jax.device_get(params))
        arrays |= {f"{i}/{name}": np.ascontiguousarray(leaf) for name, leaf in leaves.items()}
    folder = Path(folder)
    with atomic_write(folder / ARRAYS, "wb") as file:
        file.write(safetensors.numpy.save(arrays))
    with atomic_write(folder / DESCRIPTION) as file:
        json.dump(to_json(model.cfg), file, indent=1)
        file.write("\n")


def load(folder: str | Path) -> Forecaster:
    """Reads a folder that `save` wrote.

    Raises:
      InputError: it is none, or damaged; says what is wrong.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise InputError(f"there is no folder {folder}")
    if not (folder / DESCRIPTION).is_file():
        raise InputError(f"{folder} holds no forecaster: it has no {DESCRIPTION}")
    cfg = load_config(ForecasterConfig, folder / DESCRIPTION)
    path = folder / ARRAYS
    try:
        arrays = safetensors.numpy.load(path.read_bytes())
    except (OSError, SafetensorError) as error:
        raise InputError(f"cannot read {path}: {error}") from error
    half_width = arrays.pop("half_width", None)
    shape = (cfg.model.horizon, len(cfg.names))
    if half_width is None or half_width.shape != shape:
        raise InputError(f"{path} lacks half_width of shape {shape}")
    wanted = timepro.spec(cfg.model)
    params = [_tree(arrays, i, wanted, str(path)) for i in range(len(cfg.seeds))]
    return Forecaster(cfg, params, half_width)


def _tree(arrays: dict[str, np.ndarray], seed: int, wanted: Any, where: str) -> Any:
    def leaf(name: str, _: Any) -> np.ndarray:
        if f"{seed}/{name}" not in arrays:
            raise InputError(f"{where} lacks {seed}/{name}")
        return arrays[f"{seed}/{name}"]

    return check(wanted, map_named(leaf, wanted), where)
