"""`pangu-jax COMMAND ...`: finds the command, turns bad input into one sentence."""

import contextlib
import importlib
import logging
import os
import sys
from collections.abc import Iterator

import pangu_jax
from pangu_jax.core.errors import InputError

# name: (module, what it does). To add a command, write a module with a frozen dataclass `Options`,
# whose docstrings become the help, and `main(options)`, and name it here, in one word or two. It is
# imported when it is run, so that --help is instant; a module that is not there is not offered.
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
    "rl simulate": ("pangu_jax.cli.rl_simulate", "what a bound on staleness would buy"),
    "latent train": ("pangu_jax.cli.latent_train", "train to reason in thoughts, not words"),
    "latent eval": ("pangu_jax.cli.latent_eval", "measure answers of a model that thinks so"),
    "latent probe": ("pangu_jax.cli.latent_probe", "tell what thoughts hold, beside controls"),
    "inspect": ("pangu_jax.cli.inspect", "print a checkpoint's architecture, sizes and memory"),
    "convert": ("pangu_jax.cli.convert", "write a checkpoint in the Hugging Face layout"),
    "export": ("pangu_jax.cli.export", "compile a checkpoint to StableHLO, ONNX or for Ascend"),
    "run": ("pangu_jax.cli.run", "run or check an exported artifact"),
    "backends": ("pangu_jax.cli.backends", "print what is here and which implementations it picks"),
    "embed": ("pangu_jax.cli.embed", "write one vector per text, by an encoder"),
    "multiconir": ("pangu_jax.cli.multiconir", "measure retrieval by many conditions at once"),
    "forecast": ("pangu_jax.cli.forecast", "train on a CSV of series, evaluate, predict"),
    "prepare": ("pangu_jax.cli.prepare", "prepare a dataset from local files"),
}
WIDTH = max(map(len, COMMANDS))


def main(arguments: list[str] | None = None) -> None:
    """Runs a command and exits: 0, 2 for bad input, 130 when interrupted.

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
    except BrokenPipeError:
        # Whoever read the output has gone; the interpreter must not complain on its way out.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        status = 0
    sys.exit(status)


def _run(arguments: list[str]) -> int:
    if not arguments or arguments[0] in ("-h", "--help"):
        print(_usage())
        return 0 if arguments else 2
    if arguments[0] == "--version":
        print(f"pangu-jax {pangu_jax.__version__}")
        return 0
    words = 2 if " ".join(arguments[:2]) in COMMANDS else 1
    name = " ".join(arguments[:words])
    if name not in COMMANDS:
        raise InputError(f"there is no command {name!r}; known: {', '.join(COMMANDS)}")
    import tyro

    module = importlib.import_module(COMMANDS[name][0])
    try:
        options = tyro.cli(
            module.Options,
            prog=f"pangu-jax {name}",
            args=arguments[words:],
            description=module.__doc__,
            config=(tyro.conf.OmitArgPrefixes,),
        )
    except SystemExit as done:  # after --help, or after a wrong flag, which tyro has explained
        return int(done.code or 0)
    module.main(options)
    return 0


@contextlib.contextmanager
def _plain_notes() -> Iterator[None]:
    """Shows what the library notes as it is, whatever some dependency set up for its own logs."""
    logger, handler = logging.getLogger("pangu_jax"), logging.StreamHandler()
    logger.addHandler(handler)
    logger.propagate = False
    try:
        yield
    finally:
        logger.propagate = True
        logger.removeHandler(handler)


def _usage() -> str:
    lines = ["usage: pangu-jax COMMAND [OPTIONS]", "", "commands:"]
    lines += [f"  {name:{WIDTH}} {text}" for name, (_, text) in COMMANDS.items()]
    lines += ["", "pangu-jax COMMAND --help shows a command's options; --version the version."]
    return "\n".join(lines)


def _fail(message: str, status: int) -> int:
    print(f"pangu-jax: {message}", file=sys.stderr)
    return status


if __name__ == "__main__":
    main()
