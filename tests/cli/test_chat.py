"""`pangu-jax chat` as a user meets it."""

import io
import json
import shutil

import pytest

from pangu_jax.cli import chat
from pangu_jax.cli.main import main

ANSWERS = ["<think>two and two</think>4", "five", "six"]


@pytest.fixture
def talk(tiny_run, monkeypatch, capsys):
    """Runs the command on lines of input; the model says ANSWERS, and its prompts are kept."""
    prompts = []

    def stream(params, prompt, **options):
        text = bytes(i for i in prompt[1:] if i < 256).decode()
        prompts.append(text)
        yield from ANSWERS[len(prompts) - 1].encode()
        yield options["stop_ids"][0]

    monkeypatch.setattr(chat, "stream", stream)

    def run(lines, *arguments, model=tiny_run):
        monkeypatch.setattr("sys.stdin", io.StringIO("".join(line + "\n" for line in lines)))
        prompts.clear()
        with pytest.raises(SystemExit) as end:
            main(["chat", str(model), "--max-new-tokens", "50", *arguments])
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


def test_thinking_that_the_template_opens_is_no_part_of_the_answer(talk, tiny_run, tmp_path):
    shutil.copytree(tiny_run, tmp_path / "run")
    (tmp_path / "run" / "chat_template.jinja").write_text(
        "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}"
        "{% if add_generation_prompt %}[assistant]<think>\n{% endif %}"
    )
    ANSWERS[:0] = ["two and two</think>4", "", ""]
    try:
        kept = tmp_path / "kept.json"
        options = ["--history", str(kept)]
        status, out, err, prompts = talk(["2+2?"], *options, model=tmp_path / "run")
    finally:
        del ANSWERS[:3]
    assert (status, out, err) == (0, "4\n", "two and two")
    assert prompts == ["[user]2+2?[assistant]<think>\n"]
    assert json.loads(kept.read_text())[-1] == {"role": "assistant", "content": "4"}


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


@pytest.mark.long
def test_a_real_model_answers_and_the_seed_decides(tiny_run, capsys):
    def say(*more):
        arguments = ["chat", str(tiny_run), "--template", "chatml", "--max-new-tokens", "12"]
        with pytest.raises(SystemExit) as end:
            main([*arguments, "--message", "hello", *more])
        assert end.value.code == 0
        return capsys.readouterr().out

    assert say() == say("--seed", "0") != say("--seed", "1")
