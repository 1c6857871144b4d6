"""`pangu-jax chat` as a user meets it."""

import io
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pangu_jax.checkpoint import store
from pangu_jax.cli import chat
from pangu_jax.cli.main import main
from pangu_jax.core.spec import is_spec
from pangu_jax.models import decoder
from pangu_jax.nn.attention import AttentionConfig
from pangu_jax.nn.block import LayerConfig
from pangu_jax.nn.mlp import MlpConfig

CFG = decoder.DecoderConfig(
    264, 8, (LayerConfig(AttentionConfig(2, 1, 4), mlp=MlpConfig(8)),), max_length=400
)
ANSWERS = ["<think>two and two</think>4", "five", "six"]


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    rng = np.random.default_rng(0)
    params = jax.tree.map(
        lambda s: jnp.asarray(rng.normal(size=s.shape), jnp.float32),
        decoder.spec(CFG),
        is_leaf=is_spec,
    )
    store.save_model(CFG, folder)
    with store.Store(folder) as checkpoints:
        checkpoints.save(1, params, {"step": jnp.int32(1)})
    return folder


@pytest.fixture
def talk(run_folder, monkeypatch, capsys):
    """Runs the command on lines of input; the model says ANSWERS, and its prompts are kept."""
    prompts = []

    def stream(params, prompt, **options):
        text = bytes(i for i in prompt[1:] if i < 256).decode()
        prompts.append(text)
        yield from ANSWERS[len(prompts) - 1].encode()
        yield options["stop_ids"][0]

    monkeypatch.setattr(chat, "stream", stream)

    def run(lines, *arguments):
        monkeypatch.setattr("sys.stdin", io.StringIO("".join(line + "\n" for line in lines)))
        prompts.clear()
        with pytest.raises(SystemExit) as end:
            main(["chat", str(run_folder), "--max-new", "50", *arguments])
        return end.value.code, *capsys.readouterr(), list(prompts)

    return run


def turn(role, text):
    return f"<|im_start|>{role}\n{text}<|im_end|>\n"


OPEN = "<|im_start|>assistant\n"


def test_it_answers_remembers_and_starts_over(talk):
    lines = ["2+2?", "", "and one more?", "/new", "hello", "/quit", "never said"]
    status, out, err, prompts = talk(lines, "--template", "chatml", "--system", "Be brief.")
    assert status == 0
    assert out == "4\nfive\nsix\n"
    assert err == "two and two"
    begin = turn("system", "Be brief.") + turn("user", "2+2?")
    second = begin + turn("assistant", "4") + turn("user", "and one more?")
    third = turn("system", "Be brief.") + turn("user", "hello")
    assert prompts == [begin + OPEN, second + OPEN, third + OPEN]


def test_the_thinking_can_be_hidden(talk):
    _, out, err, _ = talk(["2+2?"], "--template", "chatml", "--no-thinking")
    assert (out, err) == ("4\n", "")


def test_a_dialogue_is_kept_and_gone_on_with(talk, tmp_path):
    kept = tmp_path / "dialogue.json"
    more = ["--template", "pangu", "--history", str(kept)]
    talk([], *more, "--message", "你好", "--mode", "fast")
    assert json.loads(kept.read_text())[0] == {"role": "user", "content": "你好"}
    *_, prompts = talk(["more"], *more)
    assert prompts[0].startswith(
        "[unused9]系统：[unused10][unused9]用户：你好[unused10][unused9]助手："
    )
    assert len(json.loads(kept.read_text())) == 4


def test_what_no_longer_fits_is_left_out_oldest_first(talk):
    lines = ["a" * 150, "b" * 60, "c" * 60]
    status, _, err, prompts = talk(lines, "--template", "chatml", "--system", "S", "--no-thinking")
    assert status == 0
    assert "2 oldest messages no longer fit" in err
    assert prompts[2].startswith(turn("system", "S") + turn("user", "b" * 60))
    assert all(len(prompt) + 51 <= 400 for prompt in prompts)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "has no chat template"),
        (["--template", "x"], "unknown chat template 'x'; known: auto, pangu, llama3, chatml"),
        (["--template", "chatml", "--mode", "fast"], "unknown think mode 'fast'"),
        (["--template", "chatml", "--history", "{bad}"], "message 0"),
        (["--template", "chatml", "--history", "{none}"], "is not JSON"),
    ],
)
def test_what_is_wrong_is_said_in_a_sentence(talk, arguments, words, tmp_path):
    (tmp_path / "bad").write_text('[{"role": "user"}]')
    (tmp_path / "none").write_text("[")
    files = {name: str(tmp_path / name) for name in ("bad", "none")}
    status, out, err, _ = talk(["x"], *(argument.format(**files) for argument in arguments))
    assert (status, out) == (2, "")
    assert words in err and err.count("\n") == 1


def test_a_real_model_answers_and_the_seed_decides(run_folder, capsys):
    def say(*more):
        arguments = ["chat", str(run_folder), "--template", "chatml", "--max-new", "12"]
        with pytest.raises(SystemExit) as end:
            main([*arguments, "--message", "hello", *more])
        assert end.value.code == 0
        return capsys.readouterr().out

    assert say() == say("--seed", "0") != say("--seed", "1")
