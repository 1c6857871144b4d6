"""`pangu-jax train` and `distill` take a run's folder before they look at it or write there."""

import signal

import pytest

from pangu_jax.checkpoint import store
from pangu_jax.cli.main import main
from pangu_jax.train.stop_signal import Stopped


def call(*arguments):
    with pytest.raises(SystemExit) as end:
        main([str(argument) for argument in arguments])
    return end.value.code


@pytest.fixture
def options(tmp_path):
    (tmp_path / "text.txt").write_text("some text to train on, again and again. " * 20)
    more = ["--batch", 2, "--length", 16, "--steps", 1]
    return ["--data", tmp_path / "text.txt", "--out", tmp_path / "run", *more]


@pytest.mark.parametrize("command", ["train", "distill"])
def test_a_folder_that_another_process_trains_in_is_left_as_it_is(
    tiny_run, tmp_path, options, command, capsys
):
    words = {
        "train": ("train", "--init", tiny_run, "--held-out", 0),
        "distill": ("distill", tiny_run, tiny_run, "--tokenizer", "bytes"),
    }[command]
    with store.claim(tmp_path / "run"):  # before it has written its settings
        assert call(*words, *options) == 2
        assert "another process is training in" in capsys.readouterr().err
        assert not any((tmp_path / "run").iterdir())


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("command", ["train", "distill"])
def test_one_that_is_told_to_stop_says_where_and_exits_by_the_signal(
    tiny_run, options, command, number, monkeypatch, capsys
):
    def stop(*_, **__):
        raise Stopped(3, 128 + number)

    monkeypatch.setattr(f"pangu_jax.cli.{command}.train", stop)
    words = {"train": ["--init", tiny_run, "--held-out", 0], "distill": [tiny_run, tiny_run]}
    assert call(command, *words[command], "--tokenizer", "bytes", *options) == 128 + number
    said = capsys.readouterr().err.splitlines()[-1]
    assert said == "stopped at step 3; the same command goes on from there"


def test_the_claim_is_held_until_the_run_has_ended(tiny_run, tmp_path, options, monkeypatch):
    seen = []

    def train(*_, folder, **__):
        seen.append(folder.holds() and (folder.folder / "config.json").is_file())
        raise KeyboardInterrupt

    monkeypatch.setattr("pangu_jax.cli.train.train", train)
    assert call("train", "--init", tiny_run, "--held-out", 0, *options) == 130
    assert seen == [True]
    store.claim(tmp_path / "run").close()  # given up
