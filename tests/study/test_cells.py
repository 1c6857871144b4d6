"""Cells go on where a run was stopped, in one process and shared between several."""

import argparse
import dataclasses
import json
import sys
from functools import partial

import pytest

from pangu_jax.core.errors import InputError
from pangu_jax.study import workers
from pangu_jax.study.cells import begin, cell, in_time


@dataclasses.dataclass(frozen=True)
class Experiment:
    steps: int = 5


def test_a_cell_is_computed_once_and_said_once(tmp_path, capsys):
    run = begin(tmp_path, Experiment(), checkpoint=None)
    assert json.loads((tmp_path / "config.json").read_text()) == {"steps": 5, "checkpoint": None}
    found = cell(run, "one", lambda: {"x": 1.25}, shown=lambda found: f"{found['x']:.1f}")
    assert found["x"] == 1.25 and found["seconds"] >= 0
    assert capsys.readouterr().err == "one: 1.2 (0 s)\n"
    again = begin(tmp_path, Experiment(), checkpoint=None)
    assert cell(again, "one", lambda: pytest.fail("is there"), shown=str) == found
    assert capsys.readouterr().err == ""
    with pytest.raises(InputError, match="another steps: 5, not 6"):
        begin(tmp_path, Experiment(6), checkpoint=None)
    more = begin(tmp_path, Experiment(6), free=("steps",), checkpoint=None)
    assert cell(more, "one", lambda: pytest.fail("is there")) == found
    with pytest.raises(InputError, match="another checkpoint: null, not"):
        begin(tmp_path, Experiment(6), free=("steps",), checkpoint="other")


def test_no_missing_cell_begins_after_the_time_is_over(tmp_path, capsys):
    run = begin(tmp_path, Experiment())
    run.results["a"] = {}
    makes = [(name, dict) for name in "abc"]
    assert list(in_time(run, makes, None)) == list(in_time(run, makes, 1.0)) == makes
    assert capsys.readouterr().err == ""
    assert list(in_time(run, makes, -1.0)) == makes[:1]
    assert capsys.readouterr().err == "the time is over before b; the same command goes on\n"


def shown(found):
    return f"x {found['x']}"


def test_a_cell_is_left_to_who_took_it_and_a_cut_one_is_made_again(tmp_path, capsys):
    workers.begin(tmp_path, {"steps": 5})
    made = []

    def make(name, **more):
        def one(training, stop):
            made.append((name, stop()))
            (training / "checkpoints").mkdir(parents=True, exist_ok=True)
            return {"x": name, "seconds": 0.0, **more}

        return one

    cells = {"a": make("a"), "b": make("b", cut=True), "c": make("c")}
    (tmp_path / "cells" / "c.claim").touch()
    workers.work(tmp_path, cells, shown=shown)
    assert made == [("a", False), ("b", False)]
    # What is done keeps no training; what was cut goes on from it.
    assert [path.parent.name for path in (tmp_path / "training").glob("*/*")] == ["b"]
    assert "a is done: x a, 0 s" in capsys.readouterr().err
    workers.begin(tmp_path, {"steps": 5})
    workers.work(tmp_path, {**cells, "b": make("b")}, shown=shown)
    assert [name for name, _ in made[2:]] == ["b", "c"]
    assert sorted(workers.collect(tmp_path)) == ["a", "b", "c"]
    assert workers.is_done(tmp_path, "b") and not list((tmp_path / "cells").glob("*.claim"))


def test_nothing_begins_without_time_to_measure_it(tmp_path):
    workers.begin(tmp_path, {})
    workers.work(tmp_path, {"a": lambda *_: pytest.fail("too late")}, shown=shown, seconds=1)
    assert not list((tmp_path / "cells").iterdir())


def test_no_cell_that_would_be_lost_begins_in_less_time_than_the_last_one_took(
    tmp_path, monkeypatch
):
    now, made = [0.0], []
    monkeypatch.setattr(workers.time, "monotonic", lambda: now[0])

    def make(name, takes):
        def one(training, stop):
            made.append(name)
            now[0] += takes
            return {"x": 1}

        return one

    cells = {"a": make("a", 60), "b": make("b", 30), "c": make("c", 60), "d": make("d", 1)}
    workers.begin(tmp_path, {})
    # 120 s are left for b, then 90 for c, which took 60, then 30 for d.
    workers.work(tmp_path, cells, shown=shown, seconds=180, whole=True)
    assert made == ["a", "b", "c"] and not (tmp_path / "cells" / "d.claim").exists()
    # What goes on later begins while there is time to measure it.
    workers.work(tmp_path, {"e": make("e", 60), "d": make("d", 1)}, shown=shown, seconds=90)
    assert made == ["a", "b", "c", "e", "d"]


def test_time_begins_before_what_cells_need_is_loaded(tmp_path, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(workers.time, "monotonic", lambda: now[0])
    given = argparse.Namespace(worker=False, workers=1, gpus=1, seconds=100)

    def cells():
        now[0] += 80
        return {"a": lambda *_: pytest.fail("20 s are left")}

    assert workers.run(tmp_path, {}, "json.tool", given, cells, shown=shown) == {}


def test_workers_are_spread_over_gpus_and_share_their_memory(monkeypatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert workers._environment(3, 4, 1) == {"XLA_PYTHON_CLIENT_MEM_FRACTION": "0.225"}
    places = [workers._environment(i, 5, 2) for i in range(5)]
    assert [place["CUDA_VISIBLE_DEVICES"] for place in places] == ["0", "1", "0", "1", "0"]
    assert {place["XLA_PYTHON_CLIENT_MEM_FRACTION"] for place in places} == {"0.300"}
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,6")
    assert workers._environment(1, 2, 2)["CUDA_VISIBLE_DEVICES"] == "6"
    with pytest.raises(InputError, match="names 2 GPUs, --gpus asks for 3"):
        workers._environment(0, 3, 3)


def test_a_run_is_computed_here_or_by_workers(tmp_path, capfd, monkeypatch):
    given = argparse.Namespace(worker=False, workers=1, gpus=1, seconds=None)
    cells = {"a": lambda training, stop: {"x": 1}}
    found = workers.run(tmp_path, {"steps": 5}, "json.tool", given, lambda: cells, shown=shown)
    assert found is not None and found["a"]["x"] == 1 and found["a"]["seconds"] >= 0
    given.workers = 2
    monkeypatch.setattr(sys, "argv", ["run", "--nothing"])
    make = partial(pytest.fail, "workers make them")
    assert workers.run(tmp_path, {"steps": 5}, "json.tool", given, make, shown=shown) == found
    assert "2 of 2 workers failed" in capfd.readouterr().err
    given.worker = True
    assert workers.run(tmp_path, {}, "json.tool", given, lambda: cells, shown=shown) is None


def test_workers_run_the_same_command_and_failures_are_said(tmp_path, capfd, monkeypatch):
    workers.begin(tmp_path, {})
    monkeypatch.setattr(sys, "argv", ["run", "--nothing"])
    workers.share(tmp_path, "json.tool", 1)  # which knows no --worker
    said = capfd.readouterr().err
    assert "--nothing" in said and "1 of 1 workers failed" in said
