"""The long-term forecasting benchmarks: finding their files, and verifying them.

Files are looked for by their usual names, with or without .gz, in a folder and one level below it.
Contents are checked against the SHA-256 of the unpacked file if it is known, and always against
the shape.
"""

import dataclasses
import gzip
import hashlib
import io
import zlib
from pathlib import Path

import numpy as np

from pangu_jax.core.config import check_choices
from pangu_jax.core.errors import InputError
from pangu_jax.data.windows import Rule


@dataclasses.dataclass(frozen=True)
class Benchmark:
    """One dataset.

    Attributes:
      file: the usual name of its file.
      rows: time steps.
      variates: series.
      step: time between two rows.
      rule: rule of its split.
      sha256: of the unpacked file; empty if unknown.
      dated: whether the file has a header and a first column of dates.
      url: of the original; empty if it must be supplied.
    """

    file: str
    rows: int
    variates: int
    step: str
    rule: Rule = "ratio"
    sha256: str = ""
    dated: bool = True
    url: str = ""

    def __post_init__(self):
        check_choices(self, "a benchmark's")


_ETT = "https://raw.githubusercontent.com/zhouhaoyi/ETDataset/main/ETT-small/"
_LSTNET = "https://github.com/laiguokun/multivariate-time-series-data/raw/master/"

BENCHMARKS: dict[str, Benchmark] = {
    "ETTh1": Benchmark(
        "ETTh1.csv", 17420, 7, "1 h", "hourly",
        "f18de3ad269cef59bb07b5438d79bb3042d3be49bdeecf01c1cd6d29695ee066", url=_ETT + "ETTh1.csv",
    ),
    "ETTh2": Benchmark(
        "ETTh2.csv", 17420, 7, "1 h", "hourly",
        "a3dc2c597b9218c7ce1cd55eb77b283fd459a1d09d753063f944967dd6b9218b", url=_ETT + "ETTh2.csv",
    ),
    "ETTm1": Benchmark(
        "ETTm1.csv", 69680, 7, "15 min", "quarter",
        "6ce1759b1a18e3328421d5d75fadcb316c449fcd7cec32820c8dafda71986c9e", url=_ETT + "ETTm1.csv",
    ),
    "ETTm2": Benchmark(
        "ETTm2.csv", 69680, 7, "15 min", "quarter",
        "db973ca252c6410a30d0469b13d696cf919648d0f3fd588c60f03fdbdbadd1fd", url=_ETT + "ETTm2.csv",
    ),
    "Weather": Benchmark(
        "weather.csv", 52696, 21, "10 min",
        sha256="34ee981d07313e51da2a50bb600072c8ae4a69cb4b0651f4cb93a069d7a2ba63",
    ),
    "Exchange": Benchmark(
        "exchange_rate.txt", 7588, 8, "1 day",
        sha256="0127465b51e3cd3c360f8eb2be30cfd294689a2a55903eb8245aafc396626c7f", dated=False,
        url=_LSTNET + "exchange_rate/exchange_rate.txt.gz",
    ),
    "ECL": Benchmark("electricity.csv", 26304, 321, "1 h"),
    "Solar": Benchmark(
        "solar_AL.txt", 52560, 137, "10 min", dated=False,
        url=_LSTNET + "solar-energy/solar_AL.txt.gz",
    ),
}  # fmt: skip


def benchmark(name: str) -> Benchmark:
    """The dataset of that name.

    Raises:
      InputError: there is none.
    """
    if name not in BENCHMARKS:
        raise InputError(f"there is no data set {name!r}; known: {', '.join(BENCHMARKS)}")
    return BENCHMARKS[name]


def find(name: str, folder: str | Path) -> Path:
    """The file of a data set.

    Raises:
      InputError: an unknown name, or no such file.
    """
    file, folder = benchmark(name).file, Path(folder)
    for place in (folder, *sorted(x for x in folder.glob("*") if x.is_dir())):
        for ending in ("", ".gz"):
            if (place / (file + ending)).is_file():
                return place / (file + ending)
    raise InputError(f"{folder} holds neither {file} nor {file}.gz, which {name} needs")


def load(name: str, folder: str | Path) -> np.ndarray:
    """The values of a data set, float64 [rows, variates], columns in the file's order.

    Args:
      name: one of `BENCHMARKS`.
      folder: folder of its file.

    Raises:
      InputError: the file is missing, damaged, or not the published one.
    """
    path = find(name, folder)
    try:
        content = path.read_bytes()
        content = gzip.decompress(content) if path.suffix == ".gz" else content
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"cannot read {path}: {error}") from error
    return parse(name, content, str(path))


def parse(name: str, content: bytes, where: str) -> np.ndarray:
    """Parses the unpacked file of a data set: float64 [rows, variates], as from `load`.

    Raises:
      InputError: the content is not the data set's; `where` names the file.
    """
    kind = benchmark(name)
    found = hashlib.sha256(content).hexdigest()
    if kind.sha256 and found != kind.sha256:
        raise InputError(f"{where} is not {name}: its SHA-256 is {found}, not {kind.sha256}")
    # Unit signs in the header of Weather are not UTF-8; no byte is wrong in latin-1.
    text = io.StringIO(content.decode("latin-1"))
    first = int(kind.dated)
    try:
        columns = range(first, first + kind.variates)
        values = np.loadtxt(text, delimiter=",", skiprows=first, usecols=columns, ndmin=2)
    except ValueError as error:
        raise InputError(f"{where} is not {name}: {error}") from error
    if values.shape != (kind.rows, kind.variates):
        raise InputError(
            f"{where} has {values.shape[0]} rows of {values.shape[1]} values, "
            f"{name} has {kind.rows} of {kind.variates}"
        )
    return values
