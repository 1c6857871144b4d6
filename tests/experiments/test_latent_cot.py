"""The experiment on latent chains of thought, on a tiny model: cells, controls and report."""

import dataclasses
import json
import shutil
import signal
import threading
from types import SimpleNamespace

import jax.numpy as jnp
import numpy as np
import pytest

from experiments.latent_cot import budget, config, report, run
from experiments.latent_cot.start import begin_with
from pangu_jax.checkpoint.store import restore_params
from pangu_jax.core.errors import InputError
from pangu_jax.data.word_tokenizer import word_files
from pangu_jax.models import presets
from pangu_jax.reasoning.latent.curriculum import ALL, CurriculumConfig, Phase
from pangu_jax.reasoning.latent.registry import METHODS
from pangu_jax.reasoning.latent.score import Score
from pangu_jax.reasoning.latent.slots import NAMES, Encoded, Markers
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
    plain = PLAN.optimizer("cot")
    assert (plain.schedule, plain.learning_rate) == ("constant", PLAN.learning_rate)
    falling = dataclasses.replace(PLAN, learning_rate=1e-4, warmup=0.1, decay=0.4).optimizer("cot")
    rate = schedule(falling, 100)
    rates = [rate(n) for n in (5, 10, 60, 80, 100)]
    wanted = [0.5e-4, 1e-4, 1e-4, 0.525e-4, 0.05e-4]  # to a twentieth, in 40 of 100 steps
    np.testing.assert_allclose(rates, wanted, rtol=1e-5)


def test_a_cell_is_trained_and_asked_as_its_plan_and_seed_say(tmp_path, monkeypatch):
    plan = dataclasses.replace(
        PLAN, model="dense-tiny", steps=40, stage_steps=9, learning_rate=3e-3
    )
    found, given = Score(3, 0, 0.5, 0.2, 0.8, 1.0, 3.0, 1.0, 2.0), []
    figures = {"": found, "zeros": dataclasses.replace(found, accuracy=0.25)}
    trained = SimpleNamespace(params={"trained": 1})
    monkeypatch.setattr(run.latent, "train", lambda *x, **more: given.append((*x, more)) or trained)
    monkeypatch.setattr(run, "scores", lambda *x, **more: given.append((*x, more)) or figures)
    cfg = config.Experiment((plan,), seeds=(0, 5), timed=0, dtype="bfloat16")
    begun = begin_with(plan, 5, None, None, 0)
    asked = SimpleNamespace(only=None, data=None, model=None)
    monkeypatch.setattr(config.Plan, "optimizer", lambda self, method: ("rates of", method))
    cell = run._cells(cfg, asked)["mult1x1-coconut-seed5"](tmp_path, None)
    (problems, phases, training), (params, tests, asking) = given
    assert (problems, tests) == (begun.ids.training, begun.ids.testing)
    assert phases == METHODS["coconut"].phases(plan.curriculum("coconut"), 0) and len(phases) == 3
    assert (training["loop"].seed, training["loop"].steps, training["batch"]) == (5, 40, 2)
    assert training["optimizer"] == ("rates of", "coconut")
    assert training["how"].dtype == "bfloat16"
    assert params == trained.params and asking["phase"] == phases[-1]
    assert asking["max_new_tokens"] == begun.longest + 8
    assert (cell["accuracy"], cell["ablations"], cell["steps"]) == (0.5, {"zeros": 0.25}, 40)


def test_a_plan_s_curriculum_is_the_method_s():
    plan = dataclasses.replace(PLAN, steps=90, stages=3, stage_steps=8, token_steps=7)
    plan = dataclasses.replace(plan, slots_per_stage=2, most_removed=5, first_steps=9)
    plan = dataclasses.replace(plan, mixed=0.2, unmarked=True, keep_position=True)
    more = {"stages": 3, "slots_per_stage": 2, "most_removed": 5, "mixed": 0.2}
    more |= {"unmarked": True, "keep_position": True}
    staged = CurriculumConfig(90, stage_steps=8, first_steps=9, **more)
    assert plan.curriculum("coconut") == plan.curriculum("pause") == staged
    assert plan.curriculum("icot", 80) == CurriculumConfig(80, stage_steps=7, **more)
    plan = dataclasses.replace(plan, learning_rate=1e-3, token_rate=2e-3)
    assert [plan.optimizer(name).learning_rate for name in ("icot", "pause")] == [2e-3, 1e-3]
    assert dataclasses.replace(plan, token_rate=None).optimizer("icot") == plan.optimizer("pause")


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
    """A folder of data, with a question and a chain that are too long to be trained on."""
    rows = [
        {"question": f"{a} and {b}?", "answer": f"<<{a}+{b}={a + b}>>{a + b}\n#### {a + b}"}
        for a in range(4)
        for b in range(3)
    ]
    rows.append({"question": "long " * 9, "answer": "#### 1"})
    rows.append({"question": "1 and 1, 9 times?", "answer": "<<1+1=2>>" * 9 + "\n#### 2"})
    test = [*rows[:2], {"question": "longer " * 9, "answer": "#### 1"}]
    for name, part in (("train", rows[2:]), ("test", test)):
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
    assert 500 <= found["read_in_training"] <= 700 and found["problems"] == 3
    assert found["low"] <= found["accuracy"] <= found["high"]
    assert set(found["ablations"]) == {"zeros", "noise", "other", "pause"}
    report = (tmp_path / "run" / "report.md").read_text()
    assert "at most 30 and 30 tokens" in report and "| coconut | 0 |" in report
    assert f"| {found['read_in_training']} |" in report


def test_phases_of_a_budget_keep_their_shares_and_read_what_is_asked(school):
    task = located("gsm8k", None, school)
    ids = encode_task(read_task(task[0], test=task[1], problems=0, tests=9), {})
    problems = budget.kept(ids.training, (30, 30))
    assert len(problems) == len(ids.training) - 2
    unmarked = dataclasses.replace(BUDGET, unmarked=True)
    plans = [(BUDGET, name) for name in BUDGET.methods]
    for plan, method in (*plans, (unmarked, "coconut"), (unmarked, "pause")):
        phases = budget.phases_for(20_000, plan, method, problems, ids.markers)
        read = budget.read_in_training(plan, method, phases, problems, ids.markers, 0)
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


def test_problems_of_at_most_so_many_tokens_are_kept():
    one, two = Encoded((1, 2, 3), ((4, 5), (6,)), (7,)), Encoded((1,), ((2,), (3,), (4,)), (5,))
    assert budget.kept([one, two], None) == budget.kept([one, two], (3, 3)) == [one, two]
    assert budget.kept([one, two], (2, 3)) == [two]
    # Each step begins with a planning token: one's then have one more, two's none.
    assert budget.kept([one, two], (3, 0), planned=True) == [two]
    assert budget.kept([one, two], (3, 1), planned=True) == [one, two]
    with pytest.raises(InputError, match="no problem"):
        budget.kept([one, two], (3, 2))


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize(
    "method, unmarked, around",
    [("coconut", False, 3), ("coconut", True, 1), ("pause", False, 3), ("pause", True, 1)],
)
def test_an_answers_operations_are_those_of_all_slots_and_the_layers_that_ran(
    tied, method, unmarked, around
):
    cfg = presets.byte_model(8, 2, 1, 1, 8, 8, 64, tied=tied)
    problems = [Encoded((1,) * n, (), (1,)) for n in (3, 5)]
    found = Score(2, 0, 0.5, 0.2, 0.8, 1.0, tokens=7.0, thoughts=2.0, layers=1.5)
    # By hand: four kernels of 8 x 8 in attention, three in the MLP, and two norms.
    layer, norm, head = 7 * 64 + 2 * 8, 8, cfg.vocab * 8
    slots = 4 + around + 2 + 6  # question, boundary and marks, thoughts, tokens but the last
    wanted = 2 * slots * (head + 1.5 / 2 * (2 * layer + norm))
    phase, markers = Phase(1, 2, ALL, unmarked=unmarked), Markers(*range(20, 26))
    asked = METHODS[method], phase, markers, problems
    assert run._flops(cfg, *asked, found) == pytest.approx(wanted)


def test_markers_that_a_checkpoint_has_keep_their_rows(tiny_run, school, tmp_path):
    was = restore_params(tiny_run)[0]["embed"]["table"]
    files = [path.read_text() for path in school.glob("*.jsonl")]
    for names in ((), NAMES):
        folder = tmp_path / f"with-{len(names)}"
        shutil.copytree(tiny_run, folder)
        for name, content in word_files(files, names).items():
            (folder / name).write_bytes(content)
        begun = begin_with(
            dataclasses.replace(BUDGET, longest=None), 0, str(school), str(folder), 0
        )
        rows = [getattr(begun.ids.markers, name) for name in ("begin", "end", "pause", "answer")]
        wanted = was[jnp.asarray(rows)] if names else np.tile(was.mean(0), (4, 1))
        np.testing.assert_allclose(begun.params["embed"]["table"][rows], wanted, rtol=1e-5)


def test_what_is_too_long_to_be_trained_on_is_measured_on(tiny_run, school):
    begun = begin_with(BUDGET, 0, str(school), str(tiny_run), 0)
    assert len(begun.ids.training) == 10 and len(begun.ids.testing) == 3
    assert max(len(x.question) for x in begun.ids.testing) > 30
    assert begun.longest == 9 * len("<<1+1=2>>\n") + 3  # the answer and two marks
    assert begun.larger is None and begun.params is not None


def test_seeds_draw_problems_and_the_larger_number_is_that_of_the_tests():
    plan = dataclasses.replace(PLAN, model="dense-tiny")
    one, two = (begin_with(plan, seed, None, None, 0).ids for seed in (0, 1))
    assert one.testing == two.testing and one.training != two.training
    plan = dataclasses.replace(plan, task="prosqa-symbols", problems=9, tests=7)
    tests = read_task(plan.task, test=None, problems=9, tests=7).testing
    share = sum(max(x.question.split()[-4:-2], key=int) == x.answer for x in tests) / 7
    assert begin_with(plan, 0, None, None, 0).larger == pytest.approx(share)


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
    costs = {"thoughts": 2.0, "layers": 4.0, "tokens": 3.0, "flops": 1e9, "parameters": 1000}
    times = {"seconds_per_answer": 0.01, "train_seconds": 7.0, "read_in_training": 9, "steps": 5}
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
    results["mult1x1-coconut-seed1"] = cell_of(
        0.25, ablations={"zeros": 0.11, "noise": 0.12, "other": 0.13, "pause": 0.14}
    )
    results["prosqa-symbols-no-cot-seed0"]["train_seconds"] = None  # it was killed
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
    rows = (
        (
            "| coconut | 1 | 25.0% | 18.0% to 31.0% | 200 | 11.0% | 12.0% | 13.0% | 14.0% "
            "| 2 | 3.0 | 1.00 | 9 | 5 | 7 |",
            "| no-cot | 0 | 50.0% | 43.0% to 56.0% | 200 |  |  |  |  | 2 | 3.0 | 1.00 | 9 | 5 |  |",
        )
        if tokens
        else (
            "| coconut | 1 | 25.0 % | 11.0 % | 12.0 % | 13.0 % | 14.0 % | 2 | 4.0 | 3.0 | 1.00 "
            "| 10.0 | 7 |",
            "| no-cot | 2 | 52.5 ± 3.5 % |  |  |  |  | 2 | 4.0 | 3.0 | 1.00 | 10.0 |  |",
        )
    )
    assert all(row in text for row in rows)
    for task in ("prosqa-symbols", "mult1x1"):
        assert f"(plots/accuracy-{task}.png)" in text
        assert (tmp_path / "plots" / f"accuracy-{task}.png").read_bytes()[:4] == b"\x89PNG"
