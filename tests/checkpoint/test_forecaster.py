"""A forecaster's folder: its two files belong together whatever is killed, and nothing is off."""

import contextlib
import dataclasses
import json
import os
import threading

import jax
import numpy as np
import pytest

from pangu_jax.checkpoint import forecaster
from pangu_jax.checkpoint.forecaster import Forecaster, ForecasterConfig, load, save
from pangu_jax.core import files
from pangu_jax.core.digest import seal
from pangu_jax.core.errors import InputError
from pangu_jax.core.spec import is_spec
from pangu_jax.core.tree import flatten
from pangu_jax.models import timepro
from pangu_jax.models.timepro import TimeProConfig

MODEL = TimeProConfig(look_back=24, horizon=8, layers=1, channels=16)
CFG = ForecasterConfig(
    MODEL, ("a", "b"), (0.5, 2.0), (1.0, 3.0), 3600, "s", False, (0,), 0.9, 0.8, "t.csv"
)


def made(number):
    """A forecaster all of whose numbers, of the description and of the arrays, are this one."""
    params = jax.tree.map(
        lambda s: np.full(s.shape, number, np.float32), timepro.spec(MODEL), is_leaf=is_spec
    )
    cfg = dataclasses.replace(CFG, mean=(float(number),) * 2)
    return Forecaster(cfg, [params], np.full((8, 2), float(number)))


def number(folder):
    """The number of the forecaster there; fails on a mix."""
    found = load(folder)
    leaves = [found.half_width, *flatten(found.params).values(), np.array(found.cfg.mean)]
    (one,) = {float(x) for leaf in leaves for x in np.unique(leaf)}
    return one


def arrays(folder):
    return next(folder.glob("forecaster-*.safetensors"))


class Killed(BaseException):
    pass


@contextlib.contextmanager
def killed_at(monkeypatch, step):
    """Ends the process before its n-th replacing or removing of a file; nothing is put right."""
    left = [step]

    def counted(function):
        def call(*arguments, **options):
            if left[0] == 0:
                raise Killed
            left[0] -= 1
            return function(*arguments, **options)

        return call

    with monkeypatch.context() as patch:
        patch.setattr(files.os, "replace", counted(os.replace))
        patch.setattr(forecaster.Path, "unlink", counted(forecaster.Path.unlink))
        with contextlib.suppress(Killed):
            yield
    left[0] = 100


@pytest.mark.parametrize("old_form", [False, True])
def test_a_kill_at_any_moment_leaves_the_old_or_the_new_one(tmp_path, monkeypatch, old_form):
    seen = []
    for step in range(8):
        folder = tmp_path / str(step)
        save(made(1), folder)
        if old_form:
            as_before_digests(folder)
        with killed_at(monkeypatch, step):
            save(made(2), folder)
        seen.append(number(folder))
        save(made(3), folder)
        assert number(folder) == 3
        assert {p.name for p in folder.iterdir()} == {"forecaster.json", arrays(folder).name}
    assert seen[0] == 1 and seen[-1] == 2 and seen == sorted(seen)


def as_before_digests(folder):
    path = folder / forecaster.DESCRIPTION
    values = json.loads(path.read_text())
    del values["arrays"], values["seal"]
    path.write_text(json.dumps(values))
    arrays(folder).rename(folder / forecaster.ARRAYS)


def test_a_folder_without_digests_loads(tmp_path):
    save(made(1), tmp_path)
    as_before_digests(tmp_path)
    assert number(tmp_path) == 1


def test_writers_at_once_leave_one_whole_forecaster_and_readers_see_only_such(tmp_path):
    save(made(0), tmp_path)
    writers = [threading.Thread(target=save, args=(made(n), tmp_path)) for n in range(1, 9)]
    for thread in writers:
        thread.start()
    while any(thread.is_alive() for thread in writers):
        assert number(tmp_path) in range(9)
    assert number(tmp_path) in range(1, 9)
    assert len(list(tmp_path.iterdir())) == 2


def test_a_flipped_bit_is_refused_by_the_file(tmp_path):
    save(made(1), tmp_path)
    raw = arrays(tmp_path).read_bytes()
    for place in (20, len(raw) // 2, len(raw) - 1):
        flipped = bytearray(raw)
        flipped[place] ^= 1
        arrays(tmp_path).write_bytes(flipped)
        with pytest.raises(InputError, match=r"safetensors: it is damaged"):
            load(tmp_path)
    arrays(tmp_path).write_bytes(raw)
    path = tmp_path / forecaster.DESCRIPTION
    path.write_text(path.read_text().replace("3.0", "3.5"))
    with pytest.raises(InputError, match=r"forecaster\.json was changed after it was saved"):
        load(tmp_path)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"mean": (np.nan, 0.0)}, "the mean of a must be finite, got nan"),
        ({"deviation": (1.0, 0.0)}, "the deviation of b must be above 0, got 0.0"),
        ({"deviation": (1.0, np.inf)}, "the deviation of b must be above 0, got inf"),
        ({"coverage": np.nan}, "coverage must be between 0 and 1, got nan"),
        ({"measured_coverage": 1.5}, "measured_coverage must be from 0 to 1"),
    ],
)
def test_numbers_that_nothing_can_be_computed_with_are_refused(tmp_path, changed, message):
    with pytest.raises(InputError, match=message):
        dataclasses.replace(CFG, **changed)
    save(made(1), tmp_path)
    as_before_digests(tmp_path)
    path = tmp_path / forecaster.DESCRIPTION
    path.write_text(json.dumps({**json.loads(path.read_text()), **changed}))
    with pytest.raises(InputError, match=message):
        load(tmp_path)


def test_arrays_that_are_not_finite_are_refused_by_name(tmp_path):
    bad = made(1)
    name = next(iter(flatten(bad.params[0])))
    flatten(bad.params[0])[name][...] = np.nan
    save(bad, tmp_path)
    with pytest.raises(InputError, match=f"safetensors: 0/{name} holds NaN"):
        load(tmp_path)


@pytest.mark.parametrize("digest", ["../../x", 7, None, "0" * 63])
def test_a_digest_that_is_none_is_refused(tmp_path, digest):
    save(made(1), tmp_path)
    path = tmp_path / forecaster.DESCRIPTION
    values = {**json.loads(path.read_text()), "arrays": digest}
    del values["seal"]
    path.write_text(json.dumps({**values, "seal": seal(values)}))
    with pytest.raises(InputError, match=r"forecaster\.json\.arrays must be a SHA-256"):
        load(tmp_path)
