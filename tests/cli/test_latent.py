"""`pangu-jax latent train` and `eval`: a run that goes on, measures itself, and stays a decoder."""

import json
import shutil

import numpy as np
import pytest

from pangu_jax.checkpoint.store import restore_params
from pangu_jax.cli import latent_train
from pangu_jax.cli.main import main
from pangu_jax.data.tokenizer import load_tokenizer
from pangu_jax.train.stop_signal import Stopped

SMALL = (
    *("--task", "mult1x1", "--problems", 60, "--tests", 4, "--batch", 4),
    *("--steps", 8, "--stage-steps", 2, "--stages", 2, "--checkpoint-every", 3),
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


def test_eval_measures_a_run_and_its_ablations(run, capsys):
    assert call("eval", run, "--tests", 3, "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["method"] == "coconut" and found["task"] == "mult1x1"
    assert found["problems"] == 3 and found["thoughts"] == 2 and found["chance"] is None
    assert set(found["ablations"]) == {"zeros", "noise", "other", "pause"}
    assert call("eval", run, "--tests", 3, "--no-ablations") == 0
    assert capsys.readouterr().out.startswith("coconut    accuracy")


def test_a_run_that_was_stopped_ends_in_the_same_bits(run, tiny_run, tmp_path, capsys, monkeypatch):
    folder = tmp_path / "again"
    arguments = ("train", "--method", "coconut", "--init", tiny_run, "--out", folder, *SMALL)
    shutil.copytree(run, folder)
    for step in ("8",):  # as if it had been killed after the checkpoint before
        shutil.rmtree(folder / "checkpoints" / step)
    assert call(*arguments) == 0
    whole, again = (restore_params(path)[0] for path in (run, folder))
    np.testing.assert_array_equal(whole["embed"]["table"], again["embed"]["table"])
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [line["stage"] for line in lines if "stage" in line][-8:][-2:] == [4, 4]
    assert call(*arguments, "--remat", "full") == 2
    assert "remat" in capsys.readouterr().err

    def stopped(*_, **__):
        raise Stopped(3, 143, None)

    monkeypatch.setattr(latent_train.latent, "train", stopped)
    assert call(*arguments) == 143


def test_a_preset_has_a_token_for_each_word_and_stays_a_decoder(tmp_path, capsys):
    rows = [
        {"question": f"{a} * {b}", "cot": f"{a} {b}", "answer": f"{b}"}
        for a in range(3)
        for b in range(3)
    ]
    path = tmp_path / "products.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    folder = tmp_path / "run"
    task = ("--task", path, "--tests", 2, "--steps", 1, "--batch", 2)
    assert call("train", "--method", "no-cot", "--out", folder, *task) == 0
    assert "accuracy" in capsys.readouterr().out
    tokenizer = load_tokenizer(folder)
    assert len(tokenizer.encode("1 * 2")) == 3 and tokenizer.token_to_id("<|pause|>") is not None
    assert call("eval", folder, "--tests", 2, "--json") == 0
    assert json.loads(capsys.readouterr().out)["ablations"] == {}
    with pytest.raises(SystemExit) as end:
        main(["generate", str(folder), "--prompt", "1 * 2", "--max-new-tokens", "2"])
    assert end.value.code == 0


def test_bad_input_is_refused_before_a_folder_is_made(tmp_path, tiny_run, capsys):
    out = tmp_path / "run"
    for arguments, why in (
        (("--task", "nowhere"), "there is no task 'nowhere'"),
        (("--task", "mult2x3"), "the same number of digits"),
        (("--task", "mult1x1", "--steps", 3, "--stage-steps", 1), "need more than 3 steps"),
        (("--task", "mult1x1", "--batch", 3, "--accumulate", 2), "must divide the batch"),
        (("--task", "mult1x1", "--preset", "moge-tiny"), "has experts"),
    ):
        more = ("--problems", 30, "--tests", 2)
        assert call("train", "--method", "coconut", "--out", out, *more, *arguments) == 2
        assert why in capsys.readouterr().err and not out.exists()
    assert call("eval", tiny_run) == 2
    assert "was not made by `pangu-jax latent train`" in capsys.readouterr().err


def test_probe_looks_for_steps_and_answers_in_every_thought(run, tmp_path, capsys):
    assert call("probe", run, "--task", "mult2x2", "--tests", 40, "--json") == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert {(line["thought"], line["reads"]) for line in lines} == {
        (thought, what) for thought in (1, 2) for what in ("answer", "step 1", "step 2")
    }
    for line in lines:
        assert line["examples"] == 40 and line["classes"] > 1 and 0 <= line["lens"] < 264
        assert line["selectivity"] == line["accuracy"] - line["control"]
    assert call("probe", run, "--tests", 40) == 0
    assert "1  answer" in capsys.readouterr().out
    assert call("probe", run, "--tests", 5) == 2
    assert "20 problems" in capsys.readouterr().err
    other = tmp_path / "run"
    shutil.copytree(run, other)
    kept = json.loads((other / "latent.json").read_text())
    (other / "latent.json").write_text(json.dumps({**kept, "method": "pause"}))
    assert call("probe", other) == 2
    assert "pause, which has no thoughts" in capsys.readouterr().err
