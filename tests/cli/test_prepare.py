"""`pangu-jax prepare` on the forecasting benchmarks; tests/data/test_records.py prepares text."""

import subprocess
import sys
import typing

import numpy as np
import pytest

from pangu_jax.cli.main import main
from pangu_jax.cli.prepare import Options
from pangu_jax.data import ltsf, ltsf_tfds


def test_every_benchmark_has_a_name_there():
    choices = typing.get_args(typing.get_type_hints(Options)["name"])
    assert list(choices) == ["wikitext2", *(name.lower() for name in ltsf.BENCHMARKS)]


def test_a_benchmark_is_prepared_and_read_without_tensorflow_datasets(
    tmp_path, monkeypatch, capsys
):
    pytest.importorskip("tensorflow_datasets")
    kind = ltsf.Benchmark("ETTm1.csv", 2500, 2, "15 min", "quarter")
    monkeypatch.setitem(ltsf.BENCHMARKS, "ETTm1", kind)
    values = np.random.default_rng(0).normal(size=(2500, 2))
    rows = "".join(f"day,{a!r},{b!r}\n" for a, b in values.tolist())
    (tmp_path / "ETTm1.csv").write_text("date,a,b\n" + rows)
    out = tmp_path / "out"
    with pytest.raises(SystemExit) as end:
        main(["prepare", "ettm1", "--source", str(tmp_path), "--out", str(out)])
    assert end.value.code == 0
    said = capsys.readouterr().out
    assert str(out / "ltsf_ettm1" / "1.0.0") in said and "read('ETTm1'" in said
    np.testing.assert_array_equal(ltsf_tfds.read("ETTm1", out), values)
    code = (
        "import sys; sys.modules['tensorflow_datasets'] = None\n"
        "from pangu_jax.data import ltsf, ltsf_tfds\n"
        "ltsf.BENCHMARKS['ETTm1'] = ltsf.Benchmark('ETTm1.csv', 2500, 2, '15 min')\n"
        f"assert ltsf_tfds.read('ETTm1', {str(out)!r}).shape == (2500, 2)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_folder_without_the_file_is_one_sentence(tmp_path, capsys):
    pytest.importorskip("tensorflow_datasets")
    with pytest.raises(SystemExit) as end:
        main(["prepare", "solar", "--source", str(tmp_path), "--out", str(tmp_path / "out")])
    assert end.value.code == 2
    assert "holds neither solar_AL.txt nor solar_AL.txt.gz" in capsys.readouterr().err
