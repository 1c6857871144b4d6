"""`pangu-jax latent train` and `eval`: a run that goes on, measures itself, and stays a decoder."""

import dataclasses
import json
import shutil
import warnings

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import pangu_jax as pj
from pangu_jax.checkpoint import store
from pangu_jax.checkpoint.store import restore_params
from pangu_jax.cli import latent_eval, latent_train
from pangu_jax.cli.main import main
from pangu_jax.cli.options.latent_problems import Problems
from pangu_jax.cli.options.latent_train import Options
from pangu_jax.core.config import save_config
from pangu_jax.core.spec import abstract
from pangu_jax.data.multiplication import draw_multiplications
from pangu_jax.data.tokenizer import load_tokenizer
from pangu_jax.models import decoder, presets
from pangu_jax.reasoning.latent.config import MethodConfig
from pangu_jax.reasoning.latent.curriculum import ALL, CurriculumConfig, Phase
from pangu_jax.reasoning.latent.held_out import load_hashes
from pangu_jax.reasoning.latent.registry import METHODS
from pangu_jax.reasoning.latent.score import Score
from pangu_jax.reasoning.latent.task import TEST_SEED, Task
from pangu_jax.train.stop_signal import Stopped

TRAIN = latent_train.latent.train
SMALL = (
    *("--task", "mult1x1", "--problems", 60, "--tests", 4, "--batch", 4),
    *("--steps", 8, "--stage-steps", 2, "--stages", 2, "--checkpoint-every", 3),
    *("--evaluate-every", 8),
)


def call(*arguments):
    with pytest.raises(SystemExit) as end:
        main(["latent", *map(str, arguments)])
    return end.value.code


@pytest.fixture(scope="module")
def run(tiny_run, tmp_path_factory):
    """A byte model that was trained a little; not to be changed."""
    folder = tmp_path_factory.mktemp("latent") / "run"
    assert call("train", "--method", "coconut", "--init", tiny_run, "--out", folder, *SMALL) == 0
    return folder


@pytest.mark.long
def test_eval_measures_a_run_and_its_ablations(run, capsys):
    assert json.loads((run / "latent.json").read_text())["longest_question"] == len("3 * 4\n")
    assert call("eval", run, "--tests", 3, "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["method"] == "coconut" and found["task"] == "mult1x1"
    assert found["problems"] == 3 and found["thoughts"] == 2 and found["chance"] is None
    assert found["step"] == found["steps"] == 8
    assert set(found["ablations"]) == {"zeros", "noise", "other", "pause"}
    assert call("eval", run, "--max-new-tokens", 0) == 2
    assert "max_new_tokens must be at least 1" in capsys.readouterr().err
    assert call("eval", run, "--tests", 3, "--no-ablations") == 0
    told = capsys.readouterr()
    assert told.out.startswith("coconut    accuracy") and "--method pause" in told.out
    assert "stopped" not in told.err and "left out" not in told.err


@pytest.mark.long
def test_a_run_that_was_stopped_ends_in_the_same_bits(run, tiny_run, tmp_path, capsys, monkeypatch):
    folder = tmp_path / "again"
    arguments = ("train", "--method", "coconut", "--init", tiny_run, "--out", folder, *SMALL)
    shutil.copytree(run, folder)
    for step in ("8",):  # as if it had been killed after the checkpoint before
        shutil.rmtree(folder / "checkpoints" / step)
    assert call("eval", folder, "--no-ablations") == 0
    assert "stopped at step 6 of 8" in capsys.readouterr().err
    assert call(*arguments) == 0
    told = capsys.readouterr().out
    assert all(f"\n{kind}" in told for kind in ("zeros", "noise", "other", "pause"))
    assert "--method pause" in told  # the control
    whole, again = (restore_params(path)[0] for path in (run, folder))
    np.testing.assert_array_equal(whole["embed"]["table"], again["embed"]["table"])
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [line["stage"] for line in lines if "stage" in line][-8:][-2:] == [4, 4]
    assert {"eval_accuracy", "eval_accuracy_zeros", "eval_accuracy_other"} <= set(lines[-1])
    assert call(*arguments, "--remat", "full") == 2
    assert "remat" in capsys.readouterr().err

    def stopped(*_, **__):
        raise Stopped(3, 143, None)

    monkeypatch.setattr(latent_train.latent, "train", stopped)
    assert call(*arguments) == 143


@pytest.mark.long
@pytest.mark.parametrize(
    ("method", "more"),
    [
        ("codi", ("--align", 0.5)),
        pytest.param("adaptive", ("--turns", 2), marks=pytest.mark.slow),
        pytest.param("planning", ("--plans", 2), marks=pytest.mark.slow),
    ],
)
def test_methods_of_their_own_go_on_in_the_same_bits(tiny_run, tmp_path, capsys, method, more):
    short = ("--problems", 30, "--tests", 2, "--batch", 2, "--steps", 2, "--stages", 1)
    short = ("--task", "mult1x1", *short, "--checkpoint-every", 1, *more)
    folder = tmp_path / "run"
    arguments = ("train", "--method", method, "--init", tiny_run, "--out", folder, *short)
    assert call(*arguments) == 0
    first, cfg = restore_params(folder)
    assert [name for name in ("thought", "depth") if name in first] == {
        "codi": ["thought"],
        "adaptive": ["depth"],
    }.get(method, [])
    shutil.rmtree(folder / "checkpoints" / "2")
    assert call(*arguments) == 0
    again, _ = restore_params(folder)
    chex.assert_trees_all_equal(first, again)
    capsys.readouterr()
    assert call("eval", folder, "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["method"] == method and found["problems"] == 2
    assert len(found["ablations"]) == (4 if method == "codi" else 0)
    if method != "planning":
        with pytest.raises(SystemExit):
            main(["generate", str(folder), "--prompt", "1"])
        assert "holds a thinker" in capsys.readouterr().err
        assert cfg.turns == (2 if method == "adaptive" else 1)


@pytest.fixture
def begun(monkeypatch):
    """Parameters that training was to begin with; nothing is trained."""
    found = []

    def train(*_, params, **__):
        found.append(params)
        raise Stopped(0, 143, None)

    monkeypatch.setattr(latent_train.latent, "train", train)
    return found


@pytest.mark.long
def test_markers_keep_what_a_run_trained_them_to(run, tiny_run, tmp_path, begun):
    for number, start in enumerate((run, tiny_run)):
        out = ("--out", tmp_path / str(number), "--init", start)
        assert call("train", "--method", "pause", *out, *SMALL, "--seed", 3) == 143
    # What the run had been trained on stays known, whatever it is trained on next.
    known, others = (set(load_hashes(tmp_path / name).tolist()) for name in "01")
    assert known == others | set(load_hashes(run).tolist()) != others
    trained, _ = restore_params(run)
    untrained, _ = restore_params(tiny_run)
    for name, axis in (("embed", 0), ("head", 1)):
        was, mean = (
            np.moveaxis(np.asarray(next(iter(tree[name].values()))), axis, 0)
            for tree in (trained, untrained)
        )
        kept, drawn = (
            np.moveaxis(np.asarray(next(iter(tree[name].values()))), axis, 0) for tree in begun
        )
        assert len(np.unique(was[257:261], axis=0)) > 1
        np.testing.assert_array_equal(kept, was)
        np.testing.assert_allclose(drawn[257:261], [mean.mean(0)] * 4, rtol=1e-4, atol=1e-6)


@pytest.mark.long
def test_a_preset_has_a_token_for_each_word_and_stays_a_decoder(
    tmp_path, capsys, begun, monkeypatch
):
    rows = [
        {"question": f"{a} * {b}", "cot": f"{a} {b}", "answer": f"{b}"}
        for a in range(3)
        for b in range(3)
    ]
    path = tmp_path / "gsm8k_train.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    test = tmp_path / "gsm8k_test.jsonl"
    test.write_text(json.dumps(rows[0]) + "\n" + json.dumps(rows[4]) + "\n")
    folder = tmp_path / "run"
    task = ("--task", "gsm8k", "--data", tmp_path, "--steps", 1, "--batch", 2)
    with monkeypatch.context() as trains:
        trains.setattr(latent_train.latent, "train", TRAIN)
        assert call("train", "--method", "no-cot", "--out", folder, *task) == 0
    assert "accuracy" in capsys.readouterr().out
    tokenizer = load_tokenizer(folder)
    assert len(tokenizer.encode("1 * 2")) == 3 and tokenizer.token_to_id("<|pause|>") is not None
    # By itself `eval` measures on the run's own test file, and never on what was trained on.
    assert call("eval", folder, "--json") == 0
    told = capsys.readouterr()
    found = json.loads(told.out)
    assert found["ablations"] == {} and found["problems"] == 2 and "left out" not in told.err
    assert call("eval", folder, "--task", path, "--tests", 9) == 0
    told = capsys.readouterr()
    assert "7 of 9 problems left out" in told.err and " of 2; " in told.out
    assert call("eval", folder, "--task", path, "--tests", 3) == 2
    assert "was trained on all of the 3 problems" in capsys.readouterr().err
    capsys.readouterr()
    assert call("eval", folder, "--task", "gsm8k", "--data", tmp_path, "--no-ablations") == 0
    assert " of 2; " in capsys.readouterr().out
    assert call("eval", folder, "--task", "mult1x1") == 2
    assert "has no token for" in capsys.readouterr().err
    # Nor does a run that begins with this one.
    again = ("train", "--method", "cot", "--init", folder, "--out", tmp_path / "again")
    assert call(*again, "--task", path, "--tests", 3) == 2
    assert "trained on all of the 3 problems" in capsys.readouterr().err
    assert call(*again, "--task", test, "--test", path) == 2
    assert call(*again, *task) == 143
    (trained, _), pause = restore_params(folder), tokenizer.token_to_id("<|pause|>")
    np.testing.assert_array_equal(begun[0]["embed"]["table"], trained["embed"]["table"])
    assert pause < len(trained["embed"]["table"])
    with pytest.raises(SystemExit) as end:
        main(["generate", str(folder), "--prompt", "1 * 2", "--max-new-tokens", "2"])
    assert end.value.code == 0


def test_a_newer_option_is_among_the_settings_once_it_is_set():
    task = Task([], [], None)
    options = Options("icot", "mult1x1", "out")
    older = {"steps", "stage_steps", "stages", "slots_per_stage", "smoothing", "most_removed"}
    settings = latent_train._settings(options, task)
    assert set(settings["curriculum"]) == older and "own" not in settings
    newer = {"mixed": 0.1, "first_steps": 9, "unmarked": True, "keep_position": True}
    for name, value in newer.items():
        one = dataclasses.replace(options, curriculum=CurriculumConfig(**{name: value}))
        assert set(latent_train._settings(one, task)["curriculum"]) == older | {name}


def test_what_a_method_does_not_read_and_problems_without_steps_are_told(
    tiny_run, tmp_path, capsys, begun
):
    rows = [{"question": str(i), "answer": f"So it is.\n#### {i}"} for i in range(9)]
    rows[0]["answer"] = "<<0=0>>0\n#### 0"  # a mark, which is a step
    rows[1]["question"] = "1" * 400
    path = tmp_path / "own.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    task = ("--task", path, "--tests", 2, "--init", tiny_run, "--steps", 8)
    unread = ("--unmarked", "--turns", 3, "--stages", 2)
    for method, more, told in (
        ("cot", unread, ("cot does not read stages, unmarked, turns", "6 of 7 problems")),
        ("looped", unread, ("looped does not read stages, unmarked\n",)),
        ("pause", unread, ("pause does not read turns\n", "have no steps")),
        ("no-cot", (), ()),
    ):
        told = (*told, "tokens, the model was made for 400")
        out = ("--out", tmp_path / method)
        assert call("train", "--method", method, *task, *out, *more) == 143
        found = capsys.readouterr().err
        assert all(words in found for words in told)
        assert found.count("note:") == len(told)


def test_commands_say_that_they_leave_thoughts_out(tiny_run, tmp_path, capsys):
    folder = tmp_path / "run"
    shutil.copytree(tiny_run, folder)
    for slots, room in ((0, 0), (2, 0), (0, 3)):
        phase = Phase(1, slots, ALL, chain_room=room)
        trained = latent_train.latent.Trained("coconut", phase, "mult1x1", None, 4, 1, 9)
        save_config(trained, folder / latent_train.latent.RUN)
        with pytest.raises(SystemExit) as end:
            main(["convert", str(folder), str(tmp_path / f"converted-{slots}-{room}")])
        assert end.value.code == 0
        told = capsys.readouterr().err
        assert ("after 2 thoughts or pauses, which are left out here" in told) == bool(slots)
        assert ("after 3 positions that stay free, which are left out" in told) == bool(room)
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            pj.generate(pj.load(folder), ["1 * 1"], max_new_tokens=1)
        assert len(told) == bool(slots or room)


def test_a_damaged_description_of_a_run_is_refused(tiny_run, tmp_path, capsys):
    phase = {"steps": 1, "slots": 2}
    good = {"method": "pause", "phase": phase, "task": "mult1x1", "test": None}
    good |= {"tests": 4, "steps": 1, "max_new_tokens": 9}
    for damage, why in (
        ({"phase": {**phase, "slots": -1}}, "slots must be at least 0, got -1"),
        ({"phase": {**phase, "slots": 10**12}}, "slots must be at most"),
        ({"phase": {**phase, "smoothing": -1.0}}, "smoothing must be 0 or more"),
        ({"tests": 0}, "tests must be at least 1, got 0"),
        ({"max_new_tokens": -3}, "max_new_tokens must be at least 1, got -3"),
        ({"method": "thought"}, "method must be one of cot"),
    ):
        (tmp_path / latent_train.latent.RUN).write_text(json.dumps(good | damage))
        shutil.copytree(tiny_run, tmp_path, dirs_exist_ok=True)
        assert call("eval", tmp_path) == 2
        assert why in capsys.readouterr().err


def test_a_run_without_its_tokenizer_is_refused(tmp_path, capsys, monkeypatch):
    """Without tokenizer.json it seems to be one of bytes, whose ids are outside its vocabulary."""
    cfg = presets.byte_model(8, 1, 1, 1, 8, 8, 64)
    small = dataclasses.replace(cfg, vocab=24)
    monkeypatch.setattr(latent_eval, "open_checkpoint", lambda *_, **__: (None, small, "bytes"))
    trained = latent_train.latent.Trained("coconut", Phase(1, 2, ALL), "mult1x1", None, 4, 1, 9)
    save_config(trained, tmp_path / latent_train.latent.RUN)
    assert call("eval", tmp_path) == 2
    assert "the model's vocabulary ends at 23" in capsys.readouterr().err


def test_a_run_is_not_read_with_bytes_or_another_tokenizer_than_its_own(
    tmp_path, capsys, monkeypatch
):
    """Bytes, and the markers after them, are ids of a vocabulary of 300 words, too."""
    rows = [{"question": f"w{i} v{i}", "cot": "", "answer": f"v{i}"} for i in range(200)]
    (tmp_path / "own.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    folder, tokens = tmp_path / "run", tmp_path / "run" / "tokenizer.json"

    def untrained(*_, model, folder, **__):
        params = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), abstract(decoder.spec(model)))
        with store.Store(folder) as checkpoints:
            checkpoints.save(1, params, {"step": jnp.int32(1)})
        raise Stopped(1, 143, None)

    monkeypatch.setattr(latent_train.latent, "train", untrained)
    train = ("train", "--method", "cot", "--task", tmp_path / "own.jsonl", "--tests", 2)
    assert call(*train, "--out", folder) == 143
    run = Problems(str(folder))
    assert latent_eval.opened(run)[3].tokenizer == load_tokenizer(folder).digest
    content = tokens.read_bytes()
    tokens.write_bytes(content.replace(b"w17", b"w00"))
    assert call("eval", folder) == 2
    assert (
        f"{tokens} is not the tokenizer that {folder} was trained with" in capsys.readouterr().err
    )
    tokens.unlink()
    commands = [["generate", folder, "--prompt", "w1"], ["latent", "eval", folder]]
    commands += [["latent", *train, "--init", folder, "--out", tmp_path / "other"]]
    for arguments in commands:
        with pytest.raises(SystemExit) as end:
            main([*map(str, arguments)])
        assert end.value.code == 2
        assert f"there is no tokenizer.json at {folder}" in capsys.readouterr().err
    assert call(*train, "--out", folder) == 143  # which puts it back
    assert tokens.read_bytes() == content
    said = json.loads((folder / "latent.json").read_text())
    (folder / "latent.json").write_text(json.dumps(said | {"tokenizer": "1a2b"}))
    capsys.readouterr()
    assert call(*train, "--out", folder) == 2
    assert "these words is not the tokenizer that" in capsys.readouterr().err
    del said["tokenizer"]  # as older runs are
    (folder / "latent.json").write_text(json.dumps(said))
    assert latent_eval.opened(run)[3].tokenizer is None
    assert call(*train, "--out", folder) == 143


def test_bad_input_is_refused_before_a_folder_is_made(tmp_path, tiny_run, capsys):
    out = tmp_path / "run"
    for arguments, why in (
        (("--task", "nowhere"), "there is no task 'nowhere'"),
        (("--task", "mult2x3"), "the same number of digits"),
        (("--task", "gsm8k"), "gsm8k needs --data"),
        (("--task", "mult1x1", "--data", tmp_path), "--data is the folder of --task gsm8k"),
        (("--task", "mult1x1", "--steps", 3, "--stage-steps", 1), "need more than 3 steps"),
        (("--task", "mult1x1", "--batch", 3, "--accumulate", 2), "must divide the batch"),
        (("--task", "mult1x1", "--accumulate", 0), "accumulate must be at least 1"),
        (("--task", "mult1x1", "--seed", -1), "seed must be at least 0"),
        (("--task", "mult1x1", "--checkpoint-every", 0), "checkpoint_every must be at least 1"),
        (("--task", "mult1x1", "--tests", 1), "another problem, which needs at least two"),
        (("--task", "mult1x1", "--preset", "moge-tiny"), "has experts"),
    ):
        more = ("--problems", 30, "--tests", 2)
        assert call("train", "--method", "coconut", "--out", out, *more, *arguments) == 2
        assert why in capsys.readouterr().err and not out.exists()
    params, cfg = restore_params(tiny_run)
    layers = [
        dataclasses.replace(x, attention=dataclasses.replace(x.attention, window=4))
        for x in cfg.layers
    ]
    store.save_model(dataclasses.replace(cfg, layers=tuple(layers)), tmp_path / "windowed")
    with store.Store(tmp_path / "windowed") as checkpoints:
        checkpoints.save(1, params, {"step": jnp.int32(1)})
    start = ("--init", tmp_path / "windowed", "--method", "icot", "--keep-position")
    assert call("train", *start, "--task", "mult1x1", *more, "--out", out) == 2
    assert "for models without windows" in capsys.readouterr().err and not out.exists()
    assert call("probe", tiny_run, "--seed", -1) == 2
    assert "seed must be at least 0" in capsys.readouterr().err
    assert call("eval", tiny_run) == 2
    assert "was not made by `pangu-jax latent train`" in capsys.readouterr().err


@pytest.mark.long
def test_probe_looks_for_steps_and_answers_in_every_thought(run, tmp_path, capsys):
    assert call("probe", run, "--task", "mult2x2", "--tests", 40, "--json") == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert {(line["thought"], line["reads"]) for line in lines} == {
        (thought, what) for thought in (1, 2) for what in ("answer", "step 1", "step 2")
    }
    for line in lines:
        assert line["examples"] == 40 and line["classes"] > 1 and 1 <= line["lens"] <= 264
        assert 0 <= line["shuffled"] <= 1
        assert line["above_shuffled"] == line["accuracy"] - line["shuffled"]
    picture = tmp_path / "thoughts.png"
    asked = ("--task", "mult2x2", "--tests", 40, "--plot")
    assert call("probe", run, *asked, picture, "--json") == 0
    more = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert picture.read_bytes()[:4] == b"\x89PNG"
    assert set(more["lens"]) == set(more["tuned_lens"]) == {"step 1", "step 2", "answer"}
    lens = np.array(more["lens"]["answer"])
    assert lens.shape == (1, 2)  # layers and thoughts; nothing is tuned of the last layer
    assert lens.tolist() == more["tuned_lens"]["answer"] and lens.min() >= 1
    assert set(more["spreads"]) == {"step 1", "step 2", "answer"}
    assert set(more["scores"]) == {"", "zeros", "noise", "other", "pause"}
    assert call("probe", run, "--plot", tmp_path / "a.txt") == 2
    assert "a.txt ends in none of .png" in capsys.readouterr().err
    drawn = [dataclasses.asdict(x) for x in draw_multiplications(39, 2, seed=TEST_SEED)]
    drawn = "".join(json.dumps(row) + "\n" for row in (*drawn, drawn[0]))
    (tmp_path / "drawn.jsonl").write_text(drawn)
    assert call("probe", run, "--task", tmp_path / "drawn.jsonl", "--tests", 40) == 0
    told = capsys.readouterr()
    assert "1  answer" in told.out and "note: 1 of the 40 questions occur earlier" in told.err
    assert call("probe", run, "--tests", 40) == 2  # most of which it was trained on
    assert "of 40 problems left out" in capsys.readouterr().err
    assert call("probe", run) == 2  # as many as it measured on
    assert "20 problems" in capsys.readouterr().err
    other = tmp_path / "run"
    shutil.copytree(run, other)
    kept = json.loads((other / "latent.json").read_text())
    (other / "latent.json").write_text(json.dumps({**kept, "method": "pause"}))
    assert call("probe", other) == 2
    assert "pause, which has no thoughts" in capsys.readouterr().err


@pytest.mark.long
@pytest.mark.onnx
def test_export_thinks_as_the_last_stage_did(run, tmp_path, capsys):
    options = ("--target", "ascend", "--soc", "Ascend310P3", "--profiles", "16", "--cache", "24")
    for more in ((), ("--no-thoughts",)):
        out = tmp_path / "-".join(("out", *more))
        with pytest.raises(SystemExit) as end:
            main(["export", str(run), *options, "--out", str(out), *more])
        assert end.value.code == 0
        told = capsys.readouterr().out
        facts = json.loads((out / "artifact.json").read_text())["facts"]
        if more:
            assert "filled" not in facts and "a question" not in told
            continue
        assert "a question, 2 thoughts, and what coconut learned to write then" in told
        assert (facts["filled"], facts["ending"], facts["mark"]) == (3, "\n", 260)
        assert (facts["begin"], facts["suffix"]) == ([256], [257])
        assert (out / "operators.txt").is_file()
    with pytest.raises(SystemExit) as end:
        main(["run", str(tmp_path / "out"), "--check"])
    assert end.value.code == 0


def test_repeated_questions_are_told():
    once = Score(6, 0, 0.5, 0.2, 0.8, 1.0, 3.0, 2.0, 4.0)
    found = {"": dataclasses.replace(once, repeated=2), "zeros": once}
    told = latent_eval.described(found, "coconut", None)
    assert "\n2 of the 6 questions occur earlier among them; each counts" in told
    assert "occur earlier" not in latent_eval.described({"": once}, "coconut", None)


def test_what_a_method_does_not_read_is_told_by_known_names():
    kinds = (CurriculumConfig, MethodConfig)
    assert set(latent_train.READ_BY) <= {x.name for kind in kinds for x in dataclasses.fields(kind)}
    assert {name for names in latent_train.READ_BY.values() for name in names} <= set(METHODS)
