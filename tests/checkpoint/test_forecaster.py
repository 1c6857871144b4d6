"""A forecaster's folder: one forecaster as a whole, or refused."""

import dataclasses
import json
import math
import threading

import numpy as np
import pytest

from pangu_jax.checkpoint import forecaster
from pangu_jax.core import files
from pangu_jax.core.digest import json_digest
from pangu_jax.core.errors import InputError
from pangu_jax.core.tree import map_named
from pangu_jax.models import timepro

MODEL = timepro.TimeProConfig(16, 4, 1, 16, 8, 8)


def make(number):
    cfg = forecaster.ForecasterConfig(
        model=MODEL, names=("a", "b"), mean=(float(number), 2.0), std=(1.0, 3.0),
        step_count=3600, step_unit="s", month_end=False, seeds=(0,), coverage=0.9,
        measured_coverage=0.9, trained_on="load.csv",
    )  # fmt: skip
    params = map_named(lambda _, s: np.full(s.shape, number, np.float32), timepro.spec(MODEL))
    return forecaster.Forecaster(cfg, [params], np.full((4, 2), float(number)))


def number_of(folder):
    found = forecaster.load(folder)
    (value,) = {found.cfg.mean[0], *np.unique(found.half_width)}
    return value


class Killed(BaseException):
    pass


@pytest.mark.parametrize("at", range(4))
def test_a_save_that_dies_leaves_the_old_or_the_new_one(at, tmp_path, monkeypatch):
    forecaster.save(make(1), tmp_path)
    steps = iter(range(10))
    for owner, name in ((files.os, "replace"), (forecaster.Path, "unlink")):
        real = getattr(owner, name)

        def dies(*arguments, real=real, **options):
            if next(steps) == at:
                raise Killed
            return real(*arguments, **options)

        monkeypatch.setattr(owner, name, dies)
    with pytest.raises(Killed):
        forecaster.save(make(2), tmp_path)
    monkeypatch.undo()
    assert number_of(tmp_path) in (1, 2)
    forecaster.save(make(3), tmp_path)
    assert number_of(tmp_path) == 3
    assert len(list(tmp_path.iterdir())) == 2


def test_writers_at_once_leave_one_whole_forecaster_and_readers_see_only_such(tmp_path):
    forecaster.save(make(0), tmp_path)
    saves = [
        threading.Thread(target=forecaster.save, args=(make(n), tmp_path)) for n in range(1, 9)
    ]
    for thread in saves:
        thread.start()
    while any(thread.is_alive() for thread in saves):
        assert number_of(tmp_path) in range(9)
    assert number_of(tmp_path) in range(1, 9)
    assert len(list(tmp_path.iterdir())) == 2


def test_another_file_of_the_user_stays(tmp_path):
    (tmp_path / "forecaster.png").write_text("mine")
    forecaster.save(make(1), tmp_path)
    forecaster.save(make(2), tmp_path)
    assert (tmp_path / "forecaster.png").read_text() == "mine"
    assert number_of(tmp_path) == 2


def described(folder):
    return json.loads((folder / forecaster.DESCRIPTION).read_text())


def describe(folder, values, *, sealed=True):
    values = {k: v for k, v in values.items() if k != "seal"}
    if sealed:
        values["seal"] = json_digest(values)
    (folder / forecaster.DESCRIPTION).write_text(json.dumps(values))


def test_what_was_changed_is_refused(tmp_path):
    forecaster.save(make(1), tmp_path)
    good = described(tmp_path)
    arrays = tmp_path / good["arrays"]
    raw = arrays.read_bytes()
    arrays.write_bytes(raw[:-3] + bytes([raw[-3] ^ 1]) + raw[-2:])
    with pytest.raises(InputError, match=r"safetensors is damaged: it is not the file"):
        forecaster.load(tmp_path)
    arrays.unlink()
    with pytest.raises(InputError, match=r"cannot read .*safetensors"):
        forecaster.load(tmp_path)
    arrays.write_bytes(raw)
    for values, sealed, said in (
        ({**good, "mean": [0.0, 2.0]}, False, "its seal does not fit"),
        ({**good, "arrays": "../x"}, True, "its seal does not fit"),
        ({k: v for k, v in good.items() if k != "model"}, True, "lacks the field 'model'"),
        ([], False, "must hold an object"),
    ):
        if isinstance(values, list):
            (tmp_path / forecaster.DESCRIPTION).write_text("[]")
        else:
            describe(tmp_path, values, sealed=sealed)
        with pytest.raises(InputError, match=said):
            forecaster.load(tmp_path)


def test_one_of_an_older_version_is_read(tmp_path):
    forecaster.save(make(1), tmp_path)
    values = described(tmp_path)
    (tmp_path / values.pop("arrays")).rename(tmp_path / forecaster.ARRAYS)
    del values["sha256"], values["month_day"], values["rate"], values["tracked_to"]
    values["deviation"] = values.pop("std")
    describe(tmp_path, values, sealed=False)
    assert number_of(tmp_path) == 1
    assert forecaster.load(tmp_path).cfg.rate == 0  # its intervals stay as they are
    forecaster.save(make(2), tmp_path)
    assert number_of(tmp_path) == 2 and len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"rate": 1.0, "tracked_to": "2024-01-01"}, "rate must be at least 0 and below 1, got 1.0"),
        ({"rate": math.nan}, "rate must be at least 0 and below 1, got nan"),
        ({"rate": 0.1}, "tracked_to must be a time stamp, got ''"),
        ({"rate": 0.1, "tracked_to": "May"}, "tracked_to must be a time stamp, got 'May'"),
    ],
)
def test_tracking_has_a_rate_and_a_time_to_go_on_from(fields, said):
    with pytest.raises(InputError, match=said):
        dataclasses.replace(make(1).cfg, **fields)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_values_that_are_not_finite_are_named(value, tmp_path):
    cfg = make(1).cfg
    with pytest.raises(InputError, match=r"the mean .* of 'a' must be finite"):
        dataclasses.replace(cfg, mean=(value, 1.0))
    for std in (value, 0.0, -1.0):
        with pytest.raises(InputError, match="of 'b' must be finite, and the std above 0"):
            dataclasses.replace(cfg, std=(1.0, std))
    model = make(1)
    model.half_width[1, 1] = value
    forecaster.save(model, tmp_path)
    with pytest.raises(InputError, match="half_width holds NaN or infinity"):
        forecaster.load(tmp_path)
