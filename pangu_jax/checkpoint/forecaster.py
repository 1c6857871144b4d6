"""A trained forecaster as a folder: a JSON file and an array file, all that inference needs."""

import dataclasses
import datetime as dt
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

from pangu_jax.core.config import check_choices, from_json, parse_json, to_json
from pangu_jax.core.digest import json_digest
from pangu_jax.core.errors import InputError
from pangu_jax.core.files import atomic_write, regular
from pangu_jax.core.run_folder import Claim
from pangu_jax.core.spec import check
from pangu_jax.core.tree import check_all_finite, flatten, map_named
from pangu_jax.models import timepro
from pangu_jax.models.timepro_config import TimeProConfig

DESCRIPTION = "forecaster.json"
ARRAYS = "forecaster.safetensors"  # of a forecaster whose description names no file
# Files of arrays, and files of ours that were not finished.
_OURS = r"forecaster(-[0-9a-f]{16})?\.safetensors|\.forecaster.*\.[0-9a-f]{8}"


@dataclasses.dataclass(frozen=True)
class ForecasterConfig:
    """The description of a forecaster: everything but its arrays.

    Attributes:
      model: the model.
      names: the columns, in the order that the model scans them.
      mean: of each column's training rows.
      std: the same; what a scaled value of 1 stands for.
      step_count: how many units lie between two rows.
      step_unit: "us" or "s" (of instants), "day", "weekday" or "month" (of local dates).
      month_end: whether stamps are the last days of their months.
      seeds: one set of parameters each; their forecasts are averaged.
      coverage: what the intervals were made for.
      measured_coverage: the share of the test part that they covered, tracked at that rate.
      trained_on: the file's name.
      month_day: the day that monthly stamps lie on where the month has it, 29 or 30; else 0.
      rate: of the tracking of half widths (`eval.intervals.track`); 0 keeps them fixed, as those of
        older forecasters are.
      tracked_to: the stamp of the last row that the stored half widths know of; empty if rate is 0.
    """

    model: TimeProConfig
    names: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    step_count: int
    step_unit: Literal["us", "s", "day", "weekday", "month"]
    month_end: bool
    seeds: tuple[int, ...]
    coverage: float
    measured_coverage: float
    trained_on: str
    month_day: int = 0
    rate: float = 0.0
    tracked_to: str = ""

    def __post_init__(self):
        check_choices(self)
        if not len(self.names) == len(self.mean) == len(self.std) > 0:
            raise InputError("names, mean and std must be of one length, at least 1")
        if not self.seeds:
            raise InputError("seeds must name at least one set of parameters")
        for name, mean, std in zip(self.names, self.mean, self.std, strict=True):
            if not math.isfinite(mean) or not 0 < std < math.inf:
                raise InputError(
                    f"the mean {mean} and std {std} of {name!r} must be finite, and the std above 0"
                )
        if not 0 < self.coverage < 1 or not 0 <= self.measured_coverage <= 1:
            raise InputError(
                f"coverage {self.coverage} must be between 0 and 1, measured_coverage "
                f"{self.measured_coverage} from 0 to 1"
            )
        if not 0 <= self.rate < 1:
            raise InputError(f"rate must be at least 0 and below 1, got {self.rate}")
        if self.rate and not _is_time(self.tracked_to):
            raise InputError(f"tracked_to must be a time stamp, got {self.tracked_to!r:.60}")


def _is_time(text: str) -> bool:
    try:
        dt.datetime.fromisoformat(text)
    except ValueError:
        return False
    return True


@dataclasses.dataclass(frozen=True)
class Forecaster:
    """A trained forecaster.

    Attributes:
      cfg: its description.
      params: one tree per seed.
      half_width: float64 [H, V], of the intervals, in the units of the data: those for a forecast
        that is made at `cfg.tracked_to`.
    """

    cfg: ForecasterConfig
    params: list[Any]
    half_width: np.ndarray


def save(model: Forecaster, folder: str | Path) -> None:
    """Writes the folder, over an older forecaster if one is there.

    The arrays go into a file named by its SHA-256, and then the description, which names that file,
    takes the older one's place: whenever the process dies, and however many write at once, the
    folder holds one forecaster as a whole.

    Raises:
      InputError: it cannot be written.
    """
    arrays = {"half_width": np.ascontiguousarray(model.half_width, np.float64)}
    for i, params in enumerate(model.params):
        leaves = flatten(jax.device_get(params))
        arrays |= {f"{i}/{name}": np.ascontiguousarray(leaf) for name, leaf in leaves.items()}
    data = safetensors.numpy.save(arrays)
    digest, folder = hashlib.sha256(data).hexdigest(), Path(folder)
    values = {**to_json(model.cfg), "arrays": f"forecaster-{digest[:16]}.safetensors",
              "sha256": digest}  # fmt: skip
    with Claim(folder, wait=True):
        with atomic_write(folder / values["arrays"], "wb") as file:
            file.write(data)
        with atomic_write(folder / DESCRIPTION) as file:
            json.dump({**values, "seal": json_digest(values)}, file, indent=1)
            file.write("\n")
        for path in folder.glob("*forecaster*"):  # older arrays, and what killed writers left
            if re.fullmatch(_OURS, path.name) and path.name != values["arrays"]:
                path.unlink(missing_ok=True)


def load(folder: str | Path) -> Forecaster:
    """Reads a folder that `save` wrote.

    Raises:
      InputError: it is none, or damaged, or holds values that are not finite; says what is wrong.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise InputError(f"there is no folder {folder}")
    if not (folder / DESCRIPTION).is_file():
        raise InputError(f"{folder} holds no forecaster: it has no {DESCRIPTION}")
    values, path, data = _read(folder)
    cfg = from_json(ForecasterConfig, values, str(folder / DESCRIPTION))
    try:
        arrays = safetensors.numpy.load(data)
    except SafetensorError as error:
        raise InputError(f"cannot read {path}: {error}") from error
    check_all_finite(arrays, str(path))
    half_width = arrays.pop("half_width", None)
    shape = (cfg.model.horizon, len(cfg.names))
    if half_width is None or half_width.shape != shape or (half_width < 0).any():
        raise InputError(f"{path} lacks half_width of shape {shape}, at least 0")
    wanted = timepro.spec(cfg.model)
    params = [_tree(arrays, i, wanted, str(path)) for i in range(len(cfg.seeds))]
    return Forecaster(cfg, params, half_width)


def _read(folder: Path) -> tuple[dict[str, Any], Path, bytes]:
    """The description's values, the file of arrays and its bytes; retried if another is saved."""
    text = None
    while True:
        before, text = text, (folder / DESCRIPTION).read_bytes()
        values = _description(parse_json(text, str(folder / DESCRIPTION)), folder / DESCRIPTION)
        path = folder / values.pop("arrays", ARRAYS)
        digest = values.pop("sha256", None)
        try:
            data = regular(path).read_bytes()
        except (InputError, OSError) as error:
            if text == before:
                raise InputError(f"cannot read {path}: {error}") from error
            continue  # replaced between the two reads
        if digest not in (None, hashlib.sha256(data).hexdigest()):
            raise InputError(f"{path} is damaged: it is not the file that was saved")
        return values, path, data


def _description(values: Any, path: Path) -> dict[str, Any]:
    """What the file says without its seal; older forecasters have none."""
    if not isinstance(values, dict):
        raise InputError(f"{path} must hold an object (ForecasterConfig)")
    found = values.pop("seal", None)
    if found is None and not {"arrays", "sha256"} & values.keys():
        return values
    if found != json_digest(values) or not re.fullmatch(_OURS, str(values.get("arrays"))):
        raise InputError(f"{path} was changed after the training: its seal does not fit")
    return values


def _tree(arrays: dict[str, np.ndarray], seed: int, wanted: Any, where: str) -> Any:
    def leaf(name: str, _: Any) -> np.ndarray:
        if f"{seed}/{name}" not in arrays:
            raise InputError(f"{where} lacks {seed}/{name}")
        return arrays[f"{seed}/{name}"]

    return check(wanted, map_named(leaf, wanted), where)
