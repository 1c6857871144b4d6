"""Cells of a run: computed once, saved at once, found again; other settings are refused."""

import dataclasses
import json

import pytest

from pangu_jax.core.cells import compute, open_results, save_results
from pangu_jax.core.errors import InputError
from pangu_jax.core.run_folder import Claim


@dataclasses.dataclass(frozen=True)
class Config:
    sizes: tuple[int, ...] = (1, 2)


SETTINGS = {"model": Config(), "data": None, "rates": (0.5, 1)}


def test_a_new_folder_holds_the_settings_and_no_results(tmp_path):
    assert open_results(tmp_path / "a" / "b", SETTINGS) == {}
    written = json.loads((tmp_path / "a" / "b" / "config.json").read_text())
    assert written == {"model": {"sizes": [1, 2]}, "data": None, "rates": [0.5, 1]}
    assert open_results(tmp_path / "a" / "b", SETTINGS) == {}


def test_a_cell_is_computed_once_and_saved_at_once(tmp_path):
    results = open_results(tmp_path, SETTINGS)
    assert compute(tmp_path, results, "one", lambda: {"x": 1})
    assert json.loads((tmp_path / "results.json").read_text()) == results == {"one": {"x": 1}}
    assert not compute(tmp_path, results, "one", lambda: pytest.fail("is there"))

    def stop():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        compute(tmp_path, results, "two", stop)
    again = open_results(tmp_path, SETTINGS)
    assert again == {"one": {"x": 1}}
    assert compute(tmp_path, again, "two", lambda: {"x": 2}, timed=True)
    assert list(again["two"]) == ["x", "seconds"] and 0 <= again["two"]["seconds"] < 1


def test_anything_else_is_kept_beside_the_cells(tmp_path):
    results = open_results(tmp_path, SETTINGS)
    results["seconds"] = 3.5
    save_results(tmp_path, results)
    assert open_results(tmp_path, SETTINGS) == {"seconds": 3.5}


def test_other_settings_are_refused_by_name(tmp_path):
    open_results(tmp_path, SETTINGS)
    for changed in ({"model": Config((1,))}, {"data": "text"}, {"more": 1}):
        with pytest.raises(InputError, match=f"holds a run with another {next(iter(changed))}"):
            open_results(tmp_path, {**SETTINGS, **changed})
    with pytest.raises(InputError, match="'rates', which is none of this command's"):
        open_results(tmp_path, {"model": Config(), "data": None})
    (tmp_path / "results.json").write_text("{")
    with pytest.raises(InputError, match=r"results\.json is not JSON"):
        open_results(tmp_path, SETTINGS)


def test_another_process_does_not_compute_in_the_same_folder(tmp_path):
    with Claim(tmp_path), pytest.raises(InputError, match="another process is computing in"):
        open_results(tmp_path, SETTINGS)
    assert not any(tmp_path.iterdir())
    open_results(tmp_path, SETTINGS)
    with pytest.raises(InputError, match="another process is"):
        Claim(tmp_path)
    tmp_path.rename(tmp_path.with_name("moved"))  # the claim was of that folder
    assert open_results(tmp_path, SETTINGS) == {}
