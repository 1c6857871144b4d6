"""`pangu-jax COMMAND ...`: finds the command, and turns bad input into one sentence."""

import contextlib
import dataclasses
import importlib
import logging
import os
import sys
import typing
from collections.abc import Iterable, Iterator
from types import ModuleType

import pangu_jax
from pangu_jax.core.errors import InputError

# name, of one word or two: (module, what it does). To add a command, write the module, with
# `main(options)`, and one of the same name in `cli/options`, with a frozen dataclass `Options`: its
# docstrings become the help. That one imports no jax, so that --help is quick; the other is
# imported when the command is run.
COMMANDS = {
    "train": ("pangu_jax.cli.train", "train a language model on text"),
    "generate": ("pangu_jax.cli.generate", "continue a prompt with a trained model"),
    "chat": ("pangu_jax.cli.chat", "talk with a trained model"),
    "serve": ("pangu_jax.cli.serve", "answer requests in OpenAI's form over HTTP"),
    "eval": ("pangu_jax.cli.eval", "measure perplexity and bits per byte on text"),
    "bench": ("pangu_jax.cli.bench", "measure answers to benchmarks: maths, code, choices"),
    "prune": ("pangu_jax.cli.prune", "make a checkpoint smaller: units, heads, layers"),
    "prune check": ("pangu_jax.cli.prune_check", "verify what a pruned folder promises"),
    "merge": ("pangu_jax.cli.merge", "merge checkpoints of one origin into one"),
    "distill": ("pangu_jax.cli.distill", "train a student on a teacher's predictions"),
    "rl": ("pangu_jax.cli.rl", "train on the rewards of a model's own answers"),
    "rl simulate": ("pangu_jax.cli.rl_simulate", "simulate what training on older answers gains"),
    "latent train": ("pangu_jax.cli.latent_train", "train a decoder to reason in latent thoughts"),
    "latent eval": ("pangu_jax.cli.latent_eval", "measure answers of a model with latent thoughts"),
    "latent probe": ("pangu_jax.cli.latent_probe", "show what can be read from latent thoughts"),
    "inspect": ("pangu_jax.cli.inspect", "print a checkpoint's architecture, sizes and memory"),
    "convert": ("pangu_jax.cli.convert", "write a checkpoint in the Hugging Face layout"),
    "export": ("pangu_jax.cli.export", "compile a checkpoint to StableHLO, ONNX or for Ascend"),
    "run": ("pangu_jax.cli.run", "run or check an exported artifact"),
    "backends": ("pangu_jax.cli.backends", "print what is here and which implementations it picks"),
    "embed": ("pangu_jax.cli.embed", "write one vector per text"),
    "multiconir": ("pangu_jax.cli.multiconir", "measure retrieval by many conditions at once"),
    "forecast": ("pangu_jax.cli.forecast", "train on a CSV of series, evaluate, predict"),
    "prepare": ("pangu_jax.cli.prepare", "prepare a dataset from local files"),
}
WIDTH = max(map(len, COMMANDS))


def main(arguments: list[str] | None = None) -> None:
    """Runs a command and exits: 0, 1 without memory left, 2 for bad input, 130 when interrupted.

    Args:
      arguments: the words after `pangu-jax`; None takes them from the process.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    try:
        with _plain_notes():
            status = _run(arguments)
        sys.stdout.flush()  # here, where a reader that has gone can be dealt with
    except InputError as error:
        status = _fail(str(error), 2)
    except KeyboardInterrupt:
        status = _fail("interrupted", 130)
    except (MemoryError, RuntimeError) as error:  # jax raises the latter
        if isinstance(error, RuntimeError) and "RESOURCE_EXHAUSTED" not in str(error):
            raise
        status = _fail(f"there is not enough memory: {str(error).partition(chr(10))[0]}", 1)
    except BrokenPipeError:
        # Whoever read the output has gone; the interpreter must not complain on its way out.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        status = 0
    sys.exit(status)


def options_of(name: str) -> ModuleType:
    """The module in `cli/options` that says what a command takes.

    Args:
      name: one of `COMMANDS`.
    """
    room, _, module = COMMANDS[name][0].rpartition(".")
    return importlib.import_module(f"{room}.options.{module}")


def _run(arguments: list[str]) -> int:
    words = 2 if " ".join(arguments[:2]) in COMMANDS else 1
    name = " ".join(arguments[:words])
    if name not in COMMANDS:
        return _list(arguments)
    import tyro

    described = options_of(name)
    for kind in typing.get_args(described.Options) or (described.Options,):
        _fill_lines(kind)
    try:
        options = tyro.cli(
            described.Options,
            prog=f"pangu-jax {name}",
            args=arguments[words:],
            description=described.__doc__,
            config=(tyro.conf.OmitArgPrefixes,),
        )
    except SystemExit as done:  # after --help, or after a wrong flag, which tyro has explained
        return int(done.code or 0)
    importlib.import_module(COMMANDS[name][0]).main(options)
    return 0


def _fill_lines(options: type) -> None:
    """Moves what stands below the fields of a dataclass into its docstring.

    tyro fills the lines of a docstring; of a string below a field it keeps the line breaks.
    """
    import docstring_parser  # tyro's own

    for cls in filter(dataclasses.is_dataclass, options.__mro__):
        found = docstring_parser.parse_from_object(cls)
        fields = [
            f"  {field.arg_name}: {' '.join((field.description or '').split())}"
            for field in found.params
        ]
        cls.__doc__ = "\n".join([found.description or "", "", "Attributes:", *fields])


def _list(arguments: list[str]) -> int:
    """Prints the version, or the commands, or those that begin with a word."""
    if arguments[:1] == ["--version"]:
        print(f"pangu-jax {pangu_jax.__version__}")
        return 0
    word = "".join(arguments[:1])
    group = [name for name in COMMANDS if name.startswith(f"{word} ")]
    rest = arguments[1:] if group else arguments
    if not rest or rest[0] in ("-h", "--help"):
        print(_usage(group or COMMANDS))
        return 0 if rest else 2
    name = " ".join(arguments[:2] if group else arguments[:1])
    raise InputError(f"there is no command {name!r}; known: {', '.join(group or COMMANDS)}")


@contextlib.contextmanager
def _plain_notes() -> Iterator[None]:
    """Prints what the library logs as it is, whatever a dependency set up for its own logs."""
    logger, handler = logging.getLogger("pangu_jax"), logging.StreamHandler()
    propagate = logger.propagate
    logger.addHandler(handler)
    logger.propagate = False
    try:
        yield
    finally:
        logger.propagate = propagate
        logger.removeHandler(handler)


def _usage(names: Iterable[str]) -> str:
    lines = ["usage: pangu-jax COMMAND [OPTIONS]", "", "commands:"]
    lines += [f"  {name:{WIDTH}} {COMMANDS[name][1]}" for name in names]
    lines += ["", "pangu-jax COMMAND --help shows a command's options; --version the version."]
    return "\n".join(lines)


def _fail(message: str, status: int) -> int:
    print(f"pangu-jax: {message}", file=sys.stderr)
    return status


if __name__ == "__main__":
    main()
