"""The forecasting benchmarks as tensorflow-datasets builders, without TensorFlow.

    prepare("ETTh1", "datasets", files="folder/with/ETTh1.csv")
    values = read("ETTh1", "datasets")

A data set is stored once, as array_record files of blocks of rows. Preparing needs the extra
`data`; reading goes through `records` and does without tensorflow-datasets.
"""

import gzip
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from pangu_jax.core.errors import InputError
from pangu_jax.core.extras import check_extra
from pangu_jax.data import ltsf, records

BLOCK = 1024  # rows of one example
VERSION = "1.0.0"


def builder_class(name: str, files: str | Path | None = None) -> type:
    """The tfds builder of a benchmark: one example is {"first_row", "values": [rows, V]}.

    Args:
      name: one of `ltsf.BENCHMARKS`.
      files: as in `prepare`.

    Raises:
      InputError: an unknown name, or tensorflow-datasets is not installed.
    """
    tfds, kind, benchmark = _tfds(), ltsf.benchmark(name), name

    folder = _folder(name)

    class BenchmarkBlocks(  # pyright: ignore[reportGeneralTypeIssues]
        tfds.core.GeneratorBasedBuilder, skip_registration=True
    ):
        name = folder
        VERSION = tfds.core.Version("1.0.0")

        def _info(self):
            features = tfds.features.FeaturesDict(
                {
                    "first_row": np.int64,
                    # As bytes: unencoded, float64 would be stored as float32.
                    "values": tfds.features.Tensor(
                        shape=(None, kind.variates), dtype=np.float64, encoding="bytes"
                    ),
                }
            )
            text = f"{kind.rows} rows of {kind.variates} series, one every {kind.step}."
            return self.dataset_info_from_configs(features=features, description=text)

        def _split_generators(self, dl_manager):
            if files is not None:
                values = ltsf.load(benchmark, files)
            else:
                values = ltsf.parse(benchmark, *_download(dl_manager, benchmark))
            return {"rows": self._generate_examples(values)}

        def _generate_examples(self, values) -> Iterator[tuple[int, dict[str, Any]]]:
            for first in range(0, len(values), BLOCK):
                yield first, {"first_row": first, "values": values[first : first + BLOCK]}

    return BenchmarkBlocks


def prepare(name: str, data_dir: str | Path, *, files: str | Path | None = None) -> Path:
    """Writes a benchmark's array_record files unless they exist.

    Args:
      name: one of `ltsf.BENCHMARKS`.
      data_dir: where tfds keeps its data sets.
      files: a folder that holds the benchmark's file; None downloads it, if it has a URL.

    Returns:
      The prepared folder; `read` takes `data_dir`.

    Raises:
      InputError: the file is missing, cannot be fetched, or is not the published one; or nothing
        can be written.
    """
    builder = builder_class(name, files)
    if files is None and not ltsf.benchmark(name).url and not _place(name, data_dir).exists():
        raise InputError(
            f"{name} has no public address to fetch it from: say which folder holds "
            f"{ltsf.benchmark(name).file}"
        )
    return records.write(builder, data_dir)


def read(name: str, data_dir: str | Path) -> np.ndarray:
    """The values of a prepared benchmark, float64 [rows, V].

    Raises:
      InputError: it was not prepared there, or is damaged.
    """
    kind, place = ltsf.benchmark(name), _place(name, data_dir)
    if not place.is_dir():
        raise InputError(f"{data_dir} holds no prepared {name}; `prepare` makes it")
    source = records.Records(place, "rows")
    values = np.full((kind.rows, kind.variates), np.nan)
    for example in (source[i] for i in range(len(source))):
        block = np.frombuffer(example["values"]).reshape(-1, kind.variates)
        first = int(example["first_row"])
        values[first : first + len(block)] = block
    if np.isnan(values).any():
        raise InputError(f"{place} is incomplete; delete it and prepare {name} again")
    return values


def _download(dl_manager, name: str) -> tuple[bytes, str]:
    url = ltsf.benchmark(name).url
    try:
        content = Path(dl_manager.download(url)).read_bytes()
    except Exception as error:  # the network, a proxy, a full disk: tfds raises many kinds
        raise InputError(
            f"cannot fetch {url} ({type(error).__name__}); download it by other means and say "
            "which folder holds it"
        ) from error
    return gzip.decompress(content) if content[:2] == b"\x1f\x8b" else content, url


def _folder(name: str) -> str:
    return f"ltsf_{name.lower()}"


def _place(name: str, data_dir: str | Path) -> Path:
    return Path(data_dir) / _folder(name) / VERSION


def _tfds() -> Any:
    check_extra("data", "tensorflow_datasets", by="preparing")
    import tensorflow_datasets as tfds

    return tfds
