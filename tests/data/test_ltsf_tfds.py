"""Benchmarks prepared by tfds and read back, without TensorFlow."""

import subprocess
import sys

import numpy as np
import pytest

from pangu_jax.core.errors import InputError
from pangu_jax.data import ltsf, ltsf_tfds
from pangu_jax.data.pipeline import batches
from pangu_jax.data.windows import WindowSource

CODE = """
import sys
from pangu_jax.data import ltsf_tfds
ltsf_tfds.prepare("Exchange", sys.argv[1], files=sys.argv[2])
assert "tensorflow" not in sys.modules
"""


def test_a_prepared_benchmark_is_the_file(data_dir, tmp_path):
    pytest.importorskip("tensorflow_datasets")
    folder = data_dir / "ltsf"
    command = [sys.executable, "-c", CODE, str(tmp_path), str(folder)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    values = ltsf_tfds.read("Exchange", tmp_path)
    np.testing.assert_array_equal(values, ltsf.load("Exchange", folder))
    # And through grain, as windows.
    source = WindowSource(values, np.arange(100), look_back=5, horizon=2)
    first = next(batches(source, batch=4, shuffle=False))
    assert first["x"].shape == (4, 5, 8)
    np.testing.assert_array_equal(first["y"][3], values[8:10])


def test_what_cannot_be_prepared_is_refused(tmp_path):
    pytest.importorskip("tensorflow_datasets")
    with pytest.raises(InputError, match="Weather has no public address"):
        ltsf_tfds.prepare("Weather", tmp_path)
    with pytest.raises(InputError, match="holds no prepared ETTh1"):
        ltsf_tfds.read("ETTh1", tmp_path)
    with pytest.raises(InputError, match=r"holds neither exchange_rate.txt"):
        ltsf_tfds.prepare("Exchange", tmp_path, files=tmp_path)
    with pytest.raises(InputError, match="no data set 'ETTx'"):
        ltsf_tfds.builder_class("ETTx")
