"""A folder that one process at a time may fill."""

import json
import os
import subprocess
import sys
import threading

import pytest

from pangu_jax.core.errors import InputError
from pangu_jax.core.run_folder import Claim, has_run, open_run


def test_a_claimed_folder_is_refused_to_others_until_it_is_given_up(tmp_path):
    with Claim(tmp_path / "a" / "b", "training in") as claim:
        assert claim.holds()
        with pytest.raises(InputError, match=r"another process is training in .*a/b"):
            Claim(tmp_path / "a" / "b", "training in")
        Claim(tmp_path / "a").close()  # another folder
        (tmp_path / "a" / "b" / "kept").touch()
    Claim(tmp_path / "a" / "b").close()
    assert (tmp_path / "a" / "b" / "kept").exists()


def test_a_claim_ends_with_its_process(tmp_path):
    code = "import os, sys, pangu_jax.core.run_folder as r; r.Claim(sys.argv[1]); os._exit(1)"
    subprocess.run([sys.executable, "-c", code, tmp_path / "run"], env={**os.environ}, check=False)
    Claim(tmp_path / "run").close()
    assert (tmp_path / "run").is_dir()


def test_a_folder_made_for_a_claim_does_not_stay_empty(tmp_path):
    Claim(tmp_path / "run").close()
    assert not (tmp_path / "run").exists()
    (tmp_path / "mine").mkdir()
    Claim(tmp_path / "mine").close()
    assert (tmp_path / "mine").exists()


def test_one_waits_for_the_other(tmp_path):
    first = Claim(tmp_path / "run")
    closing = threading.Timer(0.1, first.close)
    closing.start()
    with Claim(tmp_path / "run", wait=True) as second:
        closing.join()  # the lock is given up before closing has come to its end
        assert first is not second and second.holds() and not first.holds()


def test_a_folder_that_took_the_place_of_the_claimed_one_can_be_claimed(tmp_path):
    first = Claim(tmp_path / "run")
    (tmp_path / "run").rename(tmp_path / "moved")
    assert not first.holds()
    with Claim(tmp_path / "run") as second:
        assert second.holds()
    first.close()


def test_a_folder_that_cannot_be_made_is_said(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=r"cannot make the folder .*file/run: Not a directory"):
        Claim(tmp_path / "file" / "run")


def test_a_run_of_other_settings_is_refused_by_name(tmp_path):
    assert not has_run(tmp_path, {"a": 1})
    (tmp_path / "config.json").write_text('{"a": 1, "b": [2]}')
    assert has_run(tmp_path, {"a": 1, "b": [2]})
    assert has_run(tmp_path, {"a": 2, "b": [2]}, free=("a",))
    assert has_run(tmp_path, {"b": [2]}, free=("a",))
    with pytest.raises(InputError, match=r"with another b: \[2\], not \[3\]"):
        has_run(tmp_path, {"a": 1, "b": [3]})
    assert has_run(tmp_path, {"a": 1, "b": [2], "c": None})  # it began before there was a c
    with pytest.raises(InputError, match=r"setting 'b', which is none of .* or a newer version"):
        has_run(tmp_path, {"a": 1})
    (tmp_path / "config.json").write_text('{"a": {"b": {"c": 1, "d": 2}, "e": 3}}')
    with pytest.raises(InputError, match=r"with another a\.b\.d: 2, not 5; choose"):
        has_run(tmp_path, {"a": {"b": {"c": 1, "d": 5}, "e": 4}})
    with pytest.raises(InputError, match=r"with another a\.f: null, not null"):
        has_run(tmp_path, {"a": {"b": {"c": 1, "d": 2}, "e": 3, "f": None}})
    (tmp_path / "config.json").write_text('{"a": [{"b": 1}, {"b": 2}]}')
    with pytest.raises(InputError, match=r"with another a\.1\.b: 2, not 3"):
        has_run(tmp_path, {"a": [{"b": 1}, {"b": 3}]})
    with pytest.raises(InputError, match=r"with another a: \[{.*, not \[{\"b\": 1}\]"):
        has_run(tmp_path, {"a": [{"b": 1}]})
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(InputError, match="holds no JSON object"):
        has_run(tmp_path, {"a": 1})


def test_a_run_is_begun_gone_on_with_or_refused_by_the_same_rules(tmp_path):
    with open_run(tmp_path / "run", {"sizes": (1, 2)}) as claim:
        assert claim.holds()
        assert json.loads((tmp_path / "run" / "config.json").read_text()) == {"sizes": [1, 2]}
        with pytest.raises(InputError, match="another process is computing in"):
            open_run(tmp_path / "run", {"sizes": (1, 2)})
    with pytest.raises(InputError, match="with another sizes"):
        open_run(tmp_path / "run", {"sizes": (1,)})
    with open_run(tmp_path / "run", {"sizes": (1, 2)}):  # a refusal gives the folder up
        pass


def test_a_folder_of_something_else_is_let_be(tmp_path):
    for left in ("metrics.jsonl", ".config.json.0a1b2c3d"):
        (tmp_path / left).touch()
    assert not has_run(tmp_path, {"a": 1})  # of a run that has ended, or was killed at its start
    (tmp_path / "model.json").touch()
    with pytest.raises(InputError, match=r"holds model\.json but no run, .* choose another folder"):
        open_run(tmp_path, {"a": 1})
    assert not (tmp_path / "config.json").exists()


def test_a_run_of_an_older_spelling_goes_on(tmp_path):
    open_run(tmp_path, {"model": {"normalise": True}}).close()
    assert has_run(tmp_path, {"model": {"normalize": True}})
    with pytest.raises(InputError, match=r"model\.normalize"):
        has_run(tmp_path, {"model": {"normalize": False}})
