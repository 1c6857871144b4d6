"""The frame of the command line: help, exit codes, one sentence for bad input."""

import dataclasses
import importlib
import logging
import os
import subprocess
import sys
import types
import typing
from typing import Annotated

import pytest
import tyro

import pangu_jax
from pangu_jax.checkpoint import store
from pangu_jax.cli import main as frame
from pangu_jax.core.errors import InputError
from pangu_jax.models.timepro_config import TimeProConfig


@dataclasses.dataclass(frozen=True)
class Nested:
    size: int = 1
    """Of what is nested."""

    def __post_init__(self):
        if self.size < 1:
            raise InputError(f"size must be 1 or more, got {self.size}")


@dataclasses.dataclass(frozen=True)
class Options:
    path: Annotated[str, tyro.conf.Positional]
    """Where it lies."""
    nested: Nested = Nested()


@pytest.fixture
def command(monkeypatch):
    """A function that puts a command `try` into the table, whose main is what it is given."""

    def add(main):
        name, options = "pangu_jax.cli.try_", "pangu_jax.cli.options.try_"
        module, described = types.ModuleType(name), types.ModuleType(options, "Tries things.")
        module.main, described.Options = main, Options
        monkeypatch.setitem(sys.modules, name, module)
        monkeypatch.setitem(sys.modules, options, described)
        monkeypatch.setitem(frame.COMMANDS, "try", (name, "try things"))

    return add


def run(*arguments):
    with pytest.raises(SystemExit) as stop:
        frame.main(list(arguments))
    return stop.value.code


def test_help_lists_each_command_with_its_line(capsys):
    assert run("--help") == 0
    out, err = capsys.readouterr()
    for name, (_, text) in frame.COMMANDS.items():
        assert f"  {name:{frame.WIDTH}} {text}\n" in out
    assert err == ""
    assert run() == 2
    assert capsys.readouterr().out == out


def test_version(capsys):
    assert run("--version") == 0
    assert capsys.readouterr().out == f"pangu-jax {pangu_jax.__version__}\n"


def test_an_unknown_command_is_one_sentence_that_names_the_known(capsys):
    assert run("trian") == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err == f"pangu-jax: there is no command 'trian'; known: {', '.join(frame.COMMANDS)}\n"


@pytest.mark.parametrize("arguments, status", [(("latent",), 2), (("latent", "--help"), 0)])
def test_a_word_that_several_commands_begin_with_lists_them(arguments, status, capsys):
    assert run(*arguments) == status
    out, err = capsys.readouterr()
    listed = [line for line in out.splitlines() if line.startswith("  ")]
    assert [line[: frame.WIDTH + 2].strip() for line in listed] == [
        *("latent train", "latent eval", "latent probe")
    ]
    assert err == ""
    assert run("latent", "trian") == 2
    known = "latent train, latent eval, latent probe"
    want = f"pangu-jax: there is no command 'latent trian'; known: {known}\n"
    assert capsys.readouterr() == ("", want)


def test_options_reach_the_command(command, capsys):
    command(lambda options: print(options))
    assert run("try", "here", "--size", "3") == 0
    assert capsys.readouterr().out == f"{Options('here', Nested(3))}\n"


def test_help_of_a_command_is_its_docstrings(command, capsys):
    command(lambda options: None)
    assert run("try", "--help") == 0
    out = capsys.readouterr().out
    for text in ("usage: pangu-jax try", "Tries things.", "Where it lies.", "Of what is nested."):
        assert text in out


@pytest.mark.parametrize("flags", [(), ("here", "--sise", "3"), ("here", "--size", "x")])
def test_wrong_flags_exit_with_2(command, capsys, flags):
    command(lambda options: pytest.fail("must not run"))
    assert run("try", *flags) == 2
    out, err = capsys.readouterr()
    assert out == "" and "pangu-jax try --help" in err


def test_an_option_that_a_config_refuses_exits_with_2_and_its_reason(command, capsys):
    command(lambda options: pytest.fail("must not run"))
    assert run("try", "here", "--size", "0") == 2
    assert "size must be 1 or more, got 0" in capsys.readouterr().err


def test_bad_input_is_one_sentence_and_2(command, capsys):
    def fail(options):
        print("begun")
        raise InputError(f"{options.path} is\n  no checkpoint")

    command(fail)
    assert run("try", "here") == 2
    assert capsys.readouterr() == ("begun\n", "pangu-jax: here is no checkpoint\n")


@pytest.mark.parametrize(
    "error, words",
    [
        (RuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 9 bytes.\nMore"), "9 bytes."),
        (MemoryError("Unable to allocate 9 TiB"), "allocate 9 TiB"),
    ],
)
def test_too_little_memory_is_one_sentence_and_1(command, capsys, error, words):
    def fail(options):
        raise error

    command(fail)
    assert run("try", "here") == 1
    told = capsys.readouterr().err
    assert told.startswith("pangu-jax: there is not enough memory: ") and words in told
    assert told.count("\n") == 1


def test_other_errors_keep_their_traceback(command):
    def fail(options):
        raise RuntimeError("a mistake of ours")

    command(fail)
    with pytest.raises(RuntimeError, match="a mistake of ours"):
        frame.main(["try", "here"])


def test_an_interrupt_is_130(command, capsys):
    def interrupt(options):
        raise KeyboardInterrupt

    command(interrupt)
    assert run("try", "here") == 130
    assert capsys.readouterr().err == "pangu-jax: interrupted\n"


@pytest.mark.parametrize("propagate", [True, False])
def test_notes_are_plain_while_a_command_runs_and_then_as_before(
    command, capsys, monkeypatch, propagate
):
    logger = logging.getLogger("pangu_jax")
    monkeypatch.setattr(logger, "propagate", propagate)
    handlers = list(logger.handlers)
    command(lambda options: logger.warning("noted, propagate %s", logger.propagate))
    assert run("try", "here") == 0
    assert capsys.readouterr().err == "noted, propagate False\n"
    assert logger.propagate is propagate and logger.handlers == handlers


def test_a_bug_keeps_its_traceback(command):
    def fail(options):
        raise ZeroDivisionError

    command(fail)
    with pytest.raises(ZeroDivisionError):
        frame.main(["try", "here"])


@pytest.mark.parametrize("arguments", [["--help"], ["generate", "--help"]])
def test_a_reader_that_leaves_causes_no_complaint(arguments):
    # Buffered, as for a user: the output is then written only when the command is over.
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONUNBUFFERED"}
    with subprocess.Popen(
        [sys.executable, "-m", "pangu_jax", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment,
    ) as process:
        process.stdout.close()  # long before anything is written
        assert process.stderr.read() == b""
    assert process.returncode == 0


def test_help_imports_neither_jax_nor_numpy():
    code = (
        "import sys; from pangu_jax.cli.main import main\n"
        "try: main(['--help'])\n"
        "except SystemExit: pass\n"
        "assert not {'jax', 'numpy', 'tyro', 'rich'} & set(sys.modules), sorted(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL)


def test_help_of_no_command_imports_what_computes():
    code = (
        "import sys; from pangu_jax.cli.main import COMMANDS, main\n"
        "heavy = {'jax', 'flax', 'optax', 'orbax', 'torch', 'matplotlib'}\n"
        "for name in COMMANDS:\n"
        "    try: main([*name.split(), '--help'])\n"
        "    except SystemExit as stop: assert stop.code == 0, name\n"
        "    assert not heavy & set(sys.modules), (name, heavy & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for name in frame.COMMANDS:
        assert f"usage: pangu-jax {name} " in done.stdout
    for line in done.stdout.splitlines():  # what is given by place has a name
        assert "usage: " not in line or not line.endswith((" STR", "[STR ...]")), line


@pytest.mark.parametrize("name", frame.COMMANDS)
def test_each_command_keeps_the_contract(name, capsys):
    module, described = importlib.import_module(frame.COMMANDS[name][0]), frame.options_of(name)
    assert module.__doc__ and described.__doc__ and callable(module.main)
    kinds = typing.get_args(described.Options) or (described.Options,)  # one, or subcommands
    for options in kinds:
        assert options.__dataclass_params__.frozen and options.__module__ == described.__name__
    assert typing.get_type_hints(module.main)["options"] == described.Options
    assert run(*name.split(), "--help") == 0
    assert f"usage: pangu-jax {name}" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["latent eval", "forecast predict", "prune"])
def test_help_fills_the_lines_of_an_option(name, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "1000")  # so that only the text could break a line
    assert run(*name.split(), "--help") == 0
    out = capsys.readouterr().out
    for words in {
        "latent eval": ["or a .jsonl file; None is the task of the run. (default: None)"],
        "forecast predict": ["Rows after those that the intervals were calibrated on adapt"],
        "prune": ["(128 suits Ascend); None is 16 for widths"],
    }[name]:
        assert words in out


DECODERS = {
    "generate": ["IN"],
    "chat": ["IN"],
    "eval": ["IN", "--data", "TEXT"],
    "prune": ["IN", "OUT", "--target", "params=0.8"],
    "distill": ["IN", "IN", "--data", "TEXT", "--out", "OUT"],
    "export": ["IN", "--target", "onnx", "--out", "OUT"],
    "train": ["--init", "IN", "--data", "TEXT", "--out", "OUT"],
}


@pytest.mark.parametrize("command", DECODERS)
def test_what_takes_a_decoder_refuses_another_kind_of_model_in_one_sentence(
    command, tmp_path, capsys
):
    place = {"IN": tmp_path / "in", "OUT": tmp_path / "out", "TEXT": tmp_path / "a.txt"}
    place["TEXT"].write_text("text")
    place["IN"].mkdir()
    store.save_model(TimeProConfig(), place["IN"])
    words = [str(place.get(word, word)) for word in DECODERS[command]]
    assert run(command, *words) == 2
    err = capsys.readouterr().err
    takes = "a decoder or an encoder or a thinker" if command == "export" else "a decoder"
    want = f"{place['IN']} holds a timepro; `pangu-jax {command}` takes {takes}"
    assert err.splitlines()[-1] == f"pangu-jax: {want}" and "Traceback" not in err
    assert not place["OUT"].exists()
