"""The experiment on latent chains of thought, on a tiny model: cells, controls and report."""

import dataclasses
import json
import signal
import threading

import numpy as np
import pytest

from experiments.latent_cot import budget, config, report, run
from pangu_jax.core.errors import InputError
from pangu_jax.models import presets
from pangu_jax.reasoning.latent.task import encode_task, located, read_task
from pangu_jax.train.optimizer import schedule

PLAN = config.Plan(
    "mult1x1", "tiny", 1, 0, 1, 0, problems=60, tests=3, batch=2, methods=("no-cot", "coconut")
)


@pytest.mark.long
def test_cells_are_computed_once_and_stand_in_one_table(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(presets.PRESETS, "tiny", lambda: presets.byte_model(8, 1, 1, 1, 8, 8, 64))
    monkeypatch.setitem(config.PRESETS, "smoke", config.Experiment((PLAN,), timed=1))
    out = tmp_path / "run"
    for only in (["mult1x1/no-cot"], ["mult1x1"], ["mult1x1"]):
        monkeypatch.setattr("sys.argv", ["run.py", "--out", str(out), "--only", *only])
        run.main()
    found = json.loads((out / "results.json").read_text())
    assert set(found) == {"mult1x1-no-cot-seed0", "mult1x1-coconut-seed0"}
    ours = found["mult1x1-coconut-seed0"]
    assert set(ours["ablations"]) == {"zeros", "noise", "other", "pause"}
    assert ours["thoughts"] == 1 and ours["flops"] > 0 and ours["seconds_per_answer"] > 0
    assert found["mult1x1-no-cot-seed0"]["ablations"] == {}
    report = (out / "report.md").read_text()
    assert (
        "never reads" in report and "| coconut | 1 |" in report and "By chance nearly 0" in report
    )
    assert capsys.readouterr().err.count("mult1x1-no-cot-seed0 is done") == 1


def test_a_rate_falls_at_the_end_of_a_stage_where_a_plan_says_so():
    plain = PLAN.optimizer
    assert (plain.schedule, plain.learning_rate) == ("constant", PLAN.learning_rate)
    falling = dataclasses.replace(PLAN, learning_rate=1e-4, warmup=0.1, decay=0.4).optimizer
    rate = schedule(falling, 100)
    rates = [rate(n) for n in (5, 10, 60, 80, 100)]
    wanted = [0.5e-4, 1e-4, 1e-4, 0.525e-4, 0.05e-4]  # to a twentieth, in 40 of 100 steps
    np.testing.assert_allclose(rates, wanted, rtol=1e-5)


BUDGET = config.Plan(
    *("gsm8k", "", 0, None, 1, None),
    problems=0,
    tests=9,
    batch=2,
    methods=("cot", "pause", "icot", "coconut", "codi"),
    longest=(30, 30),
    most_removed=2,
)


@pytest.fixture
def school(tmp_path):
    """A folder of data, with one question that is too long to be trained on."""
    rows = [
        {"question": f"{a} and {b}?", "answer": f"<<{a}+{b}={a + b}>>{a + b}\n#### {a + b}"}
        for a in range(4)
        for b in range(3)
    ]
    rows.append({"question": "long " * 9, "answer": "#### 1"})
    for name, part in (("train", rows[2:]), ("test", rows[:2])):
        lines = "".join(json.dumps(row) + "\n" for row in part)
        (tmp_path / f"gsm8k_{name}.jsonl").write_text(lines)
    return tmp_path


@pytest.mark.long
def test_methods_read_as_many_tokens_and_stand_beside_their_intervals(
    tmp_path, tiny_run, school, monkeypatch
):
    plan = dataclasses.replace(BUDGET, stage_steps=0)
    tiny = config.Experiment((plan,), timed=0, tokens=600)
    monkeypatch.setitem(config.PRESETS, "smollm2", tiny)
    out = str(tmp_path / "run")
    given = ["--preset", "smollm2", "--model", str(tiny_run), "--data", str(school), "--out", out]
    monkeypatch.setattr("sys.argv", ["run.py", *given, "--only", "gsm8k/coconut"])
    run.main()
    found = json.loads((tmp_path / "run" / "results.json").read_text())["gsm8k-coconut-seed0"]
    assert 500 <= found["read_in_training"] <= 700 and found["problems"] == 2
    assert found["low"] <= found["accuracy"] <= found["high"]
    assert set(found["ablations"]) == {"zeros", "noise", "other", "pause"}
    report = (tmp_path / "run" / "report.md").read_text()
    assert "at most 30 and 30 tokens" in report and "| coconut | 0 |" in report
    assert f"| {found['read_in_training']} |" in report


def test_phases_of_a_budget_keep_their_shares_and_read_what_is_asked(school):
    task = located("gsm8k", None, school)
    ids = encode_task(read_task(task[0], test=task[1], problems=0, tests=9), {})
    problems = budget.kept(ids.training, (30, 30))
    assert len(problems) == len(ids.training) - 1
    for method in BUDGET.methods:
        phases = budget.phases_for(20_000, BUDGET, method, problems, ids.markers)
        read = budget.read_in_training(BUDGET, method, phases, problems, ids.markers, 0)
        assert abs(read - 20_000) < 600
        steps = sum(phase.steps for phase in phases)
        if len(phases) > 1:
            assert abs(phases[-1].steps / steps - 0.3) < 0.02
    # By hand: every row of a chain written out has boundary, question, chain, answer and two marks.
    phases = budget.phases_for(20_000, BUDGET, "cot", problems, ids.markers)
    rows = [len(x.question) + sum(map(len, x.steps)) + len(x.answer) + 3 for x in problems]
    assert abs(phases[0].steps - 20_000 / (2 * sum(rows) / len(rows))) <= 1
    with pytest.raises(InputError, match="less than a step of cot"):
        budget.phases_for(10, BUDGET, "cot", problems, ids.markers)
    with pytest.raises(InputError, match="no problem has at most 1 and 30"):
        budget.kept(ids.training, (1, 30))


def test_a_checkpoint_is_named_where_it_is_used_and_seconds_end_a_run(
    tmp_path, school, monkeypatch
):
    for arguments, why in (
        (["--preset", "smollm2"], "needs --model"),
        (["--preset", "smoke", "--model", "x"], "others take none"),
        (["--preset", "smoke", "--tokens", "5"], "counts steps"),
    ):
        monkeypatch.setattr("sys.argv", ["run.py", "--out", str(tmp_path / "no"), *arguments])
        with pytest.raises(InputError, match=why):
            run.main()
    assert not (tmp_path / "no").exists()
    asked = threading.Event()
    before = signal.signal(signal.SIGTERM, lambda *_: asked.set())
    try:
        run._stop_after(0.01)
        assert asked.wait(10)
    finally:
        signal.signal(signal.SIGTERM, before)


def cell_of(accuracy, **more):
    """A cell of 200 questions."""
    found = {"problems": 200, "accuracy": accuracy, "low": accuracy - 0.07, "high": accuracy + 0.06}
    costs = {"thoughts": 2.0, "layers": 2.0, "tokens": 3.0, "flops": 1e9, "parameters": 1000}
    times = {"seconds_per_answer": 0.01, "train_seconds": 1.0, "read_in_training": 9, "steps": 2}
    return {**found, **costs, **times, "ablations": {}, "larger": None, **more}


@pytest.mark.parametrize("tokens", [0, 600])
def test_the_plot_has_the_numbers_of_the_table(tmp_path, drawn, tokens):
    shares = {"no-cot": (0.5, 0.55), "coconut": (0.91, 0.82)}
    plan = dataclasses.replace(PLAN, task="prosqa-symbols", longest=None)
    other = dataclasses.replace(plan, task="mult1x1")
    cfg = config.Experiment((plan, other), seeds=(0, 1), timed=0, tokens=tokens)
    results = {
        f"prosqa-symbols-{method}-seed{seed}": cell_of(share, larger=0.735)
        for method, found in shares.items()
        for seed, share in enumerate(found)
    }
    results["mult1x1-coconut-seed1"] = cell_of(0.25)
    text = report.write_report(tmp_path, cfg, results).read_text()
    points, beside = drawn["prosqa-symbols"]
    assert points == {
        method: [(x, round(x - 0.07, 6), round(x + 0.06, 6)) for x in found]
        for method, found in shares.items()
    }
    assert beside == {"chance": 0.5, "the larger of the two numbers": 0.735}
    assert drawn["mult1x1"] == ({"coconut": [(0.25, 0.18, 0.31)]}, {})
    shown = ["| 91.0% | 84.0% to 97.0% |"] if tokens else ["86.5 ± 6.4 %", "numbers 73.5%"]
    assert all(word in text for word in shown)
    for task in ("prosqa-symbols", "mult1x1"):
        assert f"(plots/accuracy-{task}.png)" in text
        assert (tmp_path / "plots" / f"accuracy-{task}.png").read_bytes()[:4] == b"\x89PNG"
