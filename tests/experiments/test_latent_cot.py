"""The experiment on latent chains of thought, on a tiny model: cells, controls and report."""

import json
from types import SimpleNamespace

import pytest

from experiments.latent_cot import config, run
from pangu_jax.models import presets
from pangu_jax.train.stop_signal import Stopped

PLAN = config.Plan(
    "mult1x1", "tiny", 1, 0, 1, 0, problems=60, tests=3, batch=2, methods=("no-cot", "coconut")
)


def test_cells_are_computed_once_and_stand_in_one_table(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(presets.PRESETS, "tiny", lambda: presets.byte_model(8, 1, 1, 1, 8, 8, 64))
    monkeypatch.setitem(config.PRESETS, "smoke", config.Experiment((PLAN,), timed=1))
    out = tmp_path / "run"
    for only in (["mult1x1/no-cot"], ["mult1x1"], ["mult1x1"]):
        monkeypatch.setattr("sys.argv", ["run.py", "--out", str(out), "--only", *only])
        run.main()
    found = json.loads((out / "results.json").read_text())
    assert list(found) == ["mult1x1/no-cot/seed0", "mult1x1/coconut/seed0"]
    ours = found["mult1x1/coconut/seed0"]
    assert set(ours["ablations"]) == {"zeros", "noise", "other", "pause"}
    assert ours["thoughts"] == 1 and ours["flops"] > 0 and ours["seconds_per_answer"] > 0
    assert found["mult1x1/no-cot/seed0"]["ablations"] == {}
    report = (out / "report.md").read_text()
    assert (
        "never reads" in report and "| coconut | 1 |" in report and "By chance nearly 0" in report
    )
    assert capsys.readouterr().err.count("mult1x1/no-cot/seed0:") == 1


def test_training_is_timed_over_its_stops_and_not_at_all_after_a_kill(tmp_path, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(run.time, "monotonic", lambda: now[0])

    def train(seconds, step, stops=False):
        now[0] += seconds
        (tmp_path / "checkpoints" / str(step)).mkdir(parents=True)
        if stops:
            raise Stopped(step)
        return SimpleNamespace(step=step)

    for seconds, step in ((3.0, 10), (4.0, 20)):
        with pytest.raises(Stopped):
            run.timed(lambda s=seconds, n=step: train(s, n, stops=True), tmp_path)
    assert run.timed(lambda: train(5.0, 30), tmp_path)[1] == 12.0
    assert run.timed(lambda: train(0.5, 31), tmp_path)[1] == 12.5  # killed after its end
    (tmp_path / "checkpoints" / "40").mkdir()
    assert run.timed(lambda: train(1.0, 50), tmp_path)[1] is None
    assert run.timed(lambda: train(1.0, 60), tmp_path)[1] is None
