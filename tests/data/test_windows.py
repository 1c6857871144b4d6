"""Parts, scaling and windows, counted one by one."""

import numpy as np
import pytest

from pangu_jax.core.errors import InputError
from pangu_jax.data import ltsf
from pangu_jax.data.windows import Scaler, SplitRows, WindowSource, parts, split_rows, starts


@pytest.mark.parametrize(
    ("name", "total"), [("ETTh1", 2881), ("ETTm1", 11521), ("Weather", 10540), ("Exchange", 1518)]
)
def test_test_windows_are_as_many_as_the_tables_count(name, total):
    kind = ltsf.benchmark(name)
    for horizon in (96, 192, 336, 720):
        split = split_rows(kind.rows, kind.rule)
        at = parts(split, look_back=96, horizon=horizon)
        assert len(at.test) == total - horizon
        # The first step forecast is the first row of the part; the last one its last.
        assert at.test[0] + 96 == split.test[0]
        assert at.test[-1] + 96 + horizon == split.test[1]
        assert at.validation[0] + 96 == split.validation[0]
        assert at.train[0] == 0
        assert at.train[-1] + 96 + horizon == split.train[1]


def test_splits_are_the_published_ones():
    assert split_rows(17420, "hourly") == SplitRows((0, 8640), (8640, 11520), (11520, 14400))
    assert split_rows(69680, "quarter").test == (46080, 57600)
    assert split_rows(7588) == SplitRows((0, 5311), (5311, 6071), (6071, 7588))
    with pytest.raises(InputError, match="load has 3 rows, too few"):
        split_rows(3, where="load")
    assert split_rows(14400, "hourly").test == (11520, 14400)
    with pytest.raises(InputError, match="needs 14400"):
        split_rows(14399, "hourly")


def test_which_files_have_no_times():
    undated = {name for name, benchmark in ltsf.BENCHMARKS.items() if not benchmark.dated}
    assert undated == {"Exchange", "Solar"}


def test_windows_stay_in_their_part():
    assert starts((10, 20), look_back=4, horizon=3, reach=False).tolist() == [10, 11, 12, 13]
    assert starts((10, 20), look_back=4, horizon=3, reach=True).tolist() == [*range(6, 14)]
    assert starts((10, 12), look_back=4, horizon=3, reach=True).size == 0
    # Nothing is before row 0: a negative row would be one of the series' end.
    assert starts((2, 12), look_back=4, horizon=3, reach=True).tolist() == [*range(6)]
    late = parts(SplitRows((5, 20), (20, 30), (30, 40)), look_back=4, horizon=3)
    assert (late.train[0], late.validation[0], late.test[0]) == (5, 16, 26)
    with pytest.raises(InputError, match="the validation part has 10 rows, too few for a look"):
        parts(split_rows(100), look_back=20, horizon=11)
    values = np.arange(40.0).reshape(20, 2)
    source = WindowSource(values, np.array([3, 5]), look_back=4, horizon=2)
    assert len(source) == 2
    np.testing.assert_array_equal(source[1]["x"], values[5:9])
    np.testing.assert_array_equal(source[1]["y"], values[9:11])


def test_scaling_and_back():
    rng = np.random.default_rng(0)
    values = np.column_stack([rng.normal(3, 5, 50), np.full(50, 0.1)])
    scaler = Scaler.fit(values)
    scaled = scaler.scale(values)
    assert scaled.dtype == np.float32
    np.testing.assert_allclose(scaled[:, 0].mean(), 0, atol=1e-6)
    np.testing.assert_allclose(scaled[:, 0].std(), 1, atol=1e-6)
    assert scaler.std[1] == 1.0
    np.testing.assert_allclose(scaled[:, 1], 0, atol=1e-7)
    np.testing.assert_allclose(scaler.unscale(scaled), values, atol=1e-5)


def test_benchmark_files_are_checked(data_dir, tmp_path):
    values = ltsf.load("Exchange", data_dir)  # found one folder below
    assert values.shape == (7588, 8)
    assert values[0, :3].tolist() == [0.7855, 1.611, 0.861698]
    path = tmp_path / "exchange_rate.txt"
    path.write_text("1,2\n")
    with pytest.raises(InputError, match="is not Exchange: its SHA-256"):
        ltsf.load("Exchange", tmp_path)
    (tmp_path / "solar_AL.txt").write_text("1,2\n3,4\n")
    with pytest.raises(InputError, match=r"solar_AL.txt is not Solar"):
        ltsf.load("Solar", tmp_path)
    rows = "\n".join(",".join(["1"] * 137) for _ in range(9))
    (tmp_path / "solar_AL.txt").write_text(rows)
    with pytest.raises(InputError, match="has 9 rows of 137 values, Solar has 52560 of 137"):
        ltsf.load("Solar", tmp_path)
    with pytest.raises(InputError, match=r"holds neither electricity.csv nor"):
        ltsf.load("ECL", tmp_path)
    with pytest.raises(InputError, match="no data set 'ETTh3'"):
        ltsf.load("ETTh3", tmp_path)
    (tmp_path / "ETTh1.csv.gz").write_bytes(b"no gzip")
    with pytest.raises(InputError, match="cannot read"):
        ltsf.load("ETTh1", tmp_path)
