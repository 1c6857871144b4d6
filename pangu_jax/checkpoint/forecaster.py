"""A trained forecaster as a folder: a JSON file and a file of arrays, all that predicting needs.

The file of arrays is named by its SHA-256, which the JSON file holds. So another forecaster takes
the place of the one that is there when the JSON file is replaced, in one step: whatever is killed
before or after, and whoever else writes there, the two files belong together.
"""

import contextlib
import dataclasses
import hashlib
import json
import math
import re
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np
import safetensors.numpy
from safetensors import SafetensorError

from pangu_jax.core.claim import Claim
from pangu_jax.core.config import from_json, read_json, to_json
from pangu_jax.core.digest import seal
from pangu_jax.core.errors import InputError
from pangu_jax.core.files import atomic_write
from pangu_jax.core.spec import check
from pangu_jax.core.tree import check_finite, flatten, map_named
from pangu_jax.models import timepro
from pangu_jax.models.timepro import TimeProConfig

DESCRIPTION = "forecaster.json"
ARRAYS = "forecaster.safetensors"  # of folders that were written before there were digests
# What this module ever wrote, whole or cut short; all but the present two files may go.
_OURS = r"forecaster(-\w+)?\.safetensors|\.forecaster(-\w+)?\.(safetensors|json)\.[0-9a-f]{8}"


@dataclasses.dataclass(frozen=True)
class ForecasterConfig:
    """Everything about a forecaster that is not an array.

    Attributes:
      model: the model.
      names: the columns, in the order that the model scans them.
      mean: of each column's training rows.
      deviation: the same; what a scaled value of 1 stands for.
      step_count: how many units lie between two rows.
      step_unit: "s" or "month".
      month_end: whether stamps are the last days of their months.
      seeds: one set of parameters each; their forecasts are averaged.
      coverage: what the intervals were made for.
      measured_coverage: the share of the test part that they covered.
      trained_on: the file's name.
    """

    model: TimeProConfig
    names: tuple[str, ...]
    mean: tuple[float, ...]
    deviation: tuple[float, ...]
    step_count: int
    step_unit: Literal["s", "month"]
    month_end: bool
    seeds: tuple[int, ...]
    coverage: float
    measured_coverage: float
    trained_on: str

    def __post_init__(self):
        if not len(self.names) == len(self.mean) == len(self.deviation) > 0:
            raise InputError("names, mean and deviation must be of one length, at least 1")
        if not self.seeds:
            raise InputError("seeds must name at least one set of parameters")
        for name, mean, deviation in zip(self.names, self.mean, self.deviation, strict=True):
            if not math.isfinite(mean):
                raise InputError(f"the mean of {name} must be finite, got {mean}")
            if not (math.isfinite(deviation) and deviation > 0):
                raise InputError(f"the deviation of {name} must be above 0, got {deviation}")
        if not 0 < self.coverage < 1:
            raise InputError(f"coverage must be between 0 and 1, got {self.coverage}")
        if not 0 <= self.measured_coverage <= 1:
            raise InputError(f"measured_coverage must be from 0 to 1, got {self.measured_coverage}")


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
    """Writes the folder; a forecaster that is there is replaced in one step.

    Another process that saves there is waited for; the last one to come stays.

    Raises:
      InputError: it cannot be written.
    """
    arrays = {"half_width": np.ascontiguousarray(model.half_width, np.float64)}
    for i, params in enumerate(model.params):
        leaves = flatten(jax.device_get(params))
        arrays |= {f"{i}/{name}": np.ascontiguousarray(leaf) for name, leaf in leaves.items()}
    raw = safetensors.numpy.save(arrays)
    values = {**to_json(model.cfg), "arrays": hashlib.sha256(raw).hexdigest()}
    folder = Path(folder)
    path = _arrays(folder, values["arrays"])
    with Claim(folder, wait=True):
        with atomic_write(path, "wb") as file:
            file.write(raw)
        with atomic_write(folder / DESCRIPTION) as file:
            json.dump({**values, "seal": seal(values)}, file, indent=1)
            file.write("\n")
        _tidy(folder, path)


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
    cfg, path, raw = _read(folder)
    try:
        arrays = safetensors.numpy.load(raw)
    except SafetensorError as error:
        raise InputError(f"cannot read {path}: {error}") from error
    for name, array in arrays.items():
        check_finite(f"{path}: {name}", array)
    half_width = arrays.pop("half_width", None)
    shape = (cfg.model.horizon, len(cfg.names))
    if half_width is None or half_width.shape != shape:
        raise InputError(f"{path} lacks half_width of shape {shape}")
    wanted = timepro.spec(cfg.model)
    params = [_tree(arrays, i, wanted, str(path)) for i in range(len(cfg.seeds))]
    return Forecaster(cfg, params, half_width)


def _read(folder: Path) -> tuple[ForecasterConfig, Path, bytes]:
    """The description, and the file of arrays that it names, and what that holds."""
    cfg, digest = _describe(folder)
    while True:
        path = _arrays(folder, digest)
        try:
            raw = path.read_bytes()
        except OSError as error:
            before, (cfg, digest) = digest, _describe(folder)
            if digest != before:  # replaced in between, by one who saves there
                continue
            raise InputError(f"cannot read {path}: {error.strerror}") from error
        if digest is not None and hashlib.sha256(raw).hexdigest() != digest:
            raise InputError(f"cannot read {path}: it is damaged, not the file that was saved")
        return cfg, path, raw


def _describe(folder: Path) -> tuple[ForecasterConfig, str | None]:
    """The description, and the digest of the arrays; None before there were digests."""
    path = folder / DESCRIPTION
    values = read_json(path)
    digest = None
    if isinstance(values, dict) and values.keys() & {"arrays", "seal"}:
        if values.pop("seal", None) != seal(values):
            raise InputError(f"{path} was changed after it was saved: its seal does not fit")
        digest = values.pop("arrays", None)
        if not isinstance(digest, str) or not re.fullmatch("[0-9a-f]{64}", digest):
            raise InputError(f"{path}.arrays must be a SHA-256, got {digest!r:.60}")
    return from_json(ForecasterConfig, values, str(path)), digest


def _arrays(folder: Path, digest: str | None) -> Path:
    return folder / (ARRAYS if digest is None else f"forecaster-{digest[:16]}.safetensors")


def _tidy(folder: Path, arrays: Path) -> None:
    """Removes what belongs to the forecaster that was replaced, or was never finished."""
    for path in folder.iterdir():
        if path != arrays and re.fullmatch(_OURS, path.name):
            with contextlib.suppress(OSError):
                path.unlink()


def _tree(arrays: dict[str, np.ndarray], seed: int, wanted: Any, where: str) -> Any:
    def leaf(name: str, _: Any) -> np.ndarray:
        if f"{seed}/{name}" not in arrays:
            raise InputError(f"{where} lacks {seed}/{name}")
        return arrays[f"{seed}/{name}"]

    return check(wanted, map_named(leaf, wanted), where)
