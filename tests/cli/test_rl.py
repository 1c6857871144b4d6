"""`pangu-jax rl`: learns from questions, goes on after a stop in the same bits, writes a model."""

import json
import sys

import numpy as np
import pytest
from safetensors.numpy import load_file

from pangu_jax.checkpoint.open import open_checkpoint
from pangu_jax.cli import rl
from pangu_jax.cli.main import main
from pangu_jax.core.errors import InputError
from pangu_jax.reasoning import reward_sources
from pangu_jax.reasoning.reward import Score

SMALL = (
    *(
        "--mode",
        "plain",
        "--updates",
        4,
        "--batch",
        2,
        "--group",
        2,
        "--slots",
        3,
        "--max-new-tokens",
        6,
    ),
    *("--save-every", 2, "--learning-rate", 0.01),
)


def call(*arguments):
    with pytest.raises(SystemExit) as end:
        main(["rl", *map(str, arguments)])
    return end.value.code


@pytest.fixture
def asked(tiny_run, tmp_path, monkeypatch):
    """Three questions, and a reward that is the share of different letters."""
    rows = [{"question": f"{'abc' * i}?", "answer": "1", "kind": "number"} for i in range(3)]
    (tmp_path / "sums.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    seen = []

    def answer(sample):
        seen.append(sample)
        return Score(len(set(sample.text)) / 8)

    monkeypatch.setattr(reward_sources, "answer", answer)
    arguments = ("--model", tiny_run, "--data", tmp_path / "sums.jsonl", *SMALL)
    return arguments, seen


def metrics(folder):
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    timed = ("seconds", "generator_idle", "trainer_idle", "lost", "tokens_per_second")
    return [{k: v for k, v in line.items() if k not in timed} for line in lines]


@pytest.mark.long
def test_a_run_that_was_interrupted_ends_in_the_same_bits(asked, tmp_path, capsys, monkeypatch):
    arguments, seen = asked
    whole, part = tmp_path / "whole", tmp_path / "part"
    assert call(*arguments, "--staleness", 0, "--out", whole) == 0
    assert f"{whole / 'model'} holds the model" in capsys.readouterr().out
    assert len(seen) == 4 * 2 * 2 and all(s.gold == "1" for s in seen)
    assert {sample.question for sample in seen} == {"?", "abc?", "abcabc?"}
    text = rl._text

    def interrupted(line):
        if line["step"] == 3:
            raise KeyboardInterrupt
        return text(line)

    monkeypatch.setattr(rl, "_text", interrupted)
    assert call(*arguments, "--staleness", 0, "--out", part) == 130
    monkeypatch.setattr(rl, "_text", text)
    assert call(*arguments, "--staleness", 0, "--out", part) == 0
    assert metrics(part) == metrics(whole)
    found, want = (load_file(f / "model" / "model.safetensors") for f in (part, whole))
    for name in want:
        np.testing.assert_array_equal(found[name], want[name])
    assert any(line["grad_norm"] > 0 for line in metrics(whole))
    last = json.loads((whole / "metrics.jsonl").read_text().splitlines()[-1])
    assert last["tokens_per_second"] > 0 and 0 <= last["generator_idle"] < 1
    assert "tokens/s, slots" in text(last)
    with pytest.raises(InputError, match=rf"^{whole} .*, whose model is {whole / 'model'}; give"):
        open_checkpoint(whole)
    assert call(*arguments, "--staleness", 1, "--out", part) == 2
    assert "another staleness" in capsys.readouterr().err


@pytest.mark.long
@pytest.mark.parametrize("algorithm", ["dapo", "dr-grpo"])
def test_other_algorithms_run_ahead(asked, tmp_path, algorithm):
    arguments, _ = asked
    mixes = ("--curriculum",) if algorithm == "dapo" else ()
    split = ("--mesh", "data=4,tensor=2", "--rules", "fsdp+tensor", "--slots", 4)
    devices = () if mixes else split
    more = ("--algorithm", algorithm, "--staleness", 2, "--updates", 2, *mixes, *devices)
    assert call(*arguments, *more, "--out", tmp_path / "out") == 0
    lines = metrics(tmp_path / "out")
    assert ("easy_questions" in lines[0]) == bool(mixes)
    assert [line["step"] for line in lines] == [1, 2] and max(lines[1]["ages"]) <= 2


def test_ray_is_asked_for_where_it_is_missing(asked, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    assert call(*asked[0], "--rollouts", "ray", "--out", tmp_path / "out") == 2
    assert "pip install 'pangu-jax[ray]'" in capsys.readouterr().err


@pytest.mark.slow
def test_ray_writes_the_answers(asked, tmp_path):
    pytest.importorskip("ray", reason="needs ray: pip install 'pangu-jax[ray]'")
    arguments, seen = asked
    assert call(*arguments, "--rollouts", "ray", "--staleness", 1, "--out", tmp_path / "out") == 0
    lines = metrics(tmp_path / "out")
    assert [line["step"] for line in lines] == [1, 2, 3, 4] and len(seen) >= 16
    assert (tmp_path / "out" / "model" / "model.safetensors").exists()


def test_code_runs_only_where_it_is_allowed(asked, tmp_path, capsys):
    task = {"prompt": "Write f.", "code": "def f(): pass", "test": ["f()"]}
    (tmp_path / "code.jsonl").write_text(json.dumps(task) + "\n")
    more = ("--data", tmp_path / "code.jsonl", "--out", tmp_path / "out")
    assert call(*asked[0], *more) == 2
    assert "give --reward code" in capsys.readouterr().err
    assert call(*asked[0], *more, "--reward", "code") == 2
    assert "only with --allow-code-execution" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments, words",
    [
        (("--reward", "code"), "code is no answer to"),
        (("--max-new-tokens", 0), "max_new_tokens must be at least 1"),
        (("--kl", -1), "kl must be at least 0"),
        (("--temperature", 0), "temperature must be above 0"),
        (("--staleness", -1), "staleness must be at least 0"),
        (("--seed", -1), "seed must be at least 0"),
        (("--algorithm", "dapo", "--group", 1), "replace_equal_groups needs 2 or more"),
        (("--group", 1), "a group needs 2 answers"),
        (("--rollouts", "ray", "--workers", 0), "workers must be at least 1"),
    ],
)
def test_what_cannot_be_is_refused_in_a_sentence(asked, tmp_path, arguments, words, capsys):
    assert call(*asked[0], *arguments, "--out", tmp_path / "out") == 2
    assert words in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
