"""Chat templates that ship with a checkpoint: programs, run in a sandboxed process."""

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from pangu_jax.core.child import Child
from pangu_jax.core.errors import InputError
from pangu_jax.data.chat import TEMPLATES, Message, Template
from pangu_jax.data.tokenizer import RUN, Tokenizer
from pangu_jax.data.tokenizer_files import CONFIG, tokenizer_config

FILE = "chat_template.jinja"
SCRIPT = Path(__file__).with_name("checkpoint_chat_template_child.py")
SECONDS = 4  # of the processor for one rendering, a second more or less
CLOCK_SECONDS = 30  # until it must be there
MEMORY = 2**29  # bytes of its address space, jinja2 and Python included
LONGEST = 2**23  # characters of a dialogue


def choose_template(name: str, folder: str | Path, tokenizer: Tokenizer) -> Template:
    """The template that an option names, in `TEMPLATES`; "auto" takes the checkpoint's own.

    Args:
      name: the option's value.
      folder: of the checkpoint.
      tokenizer: of the checkpoint.

    Raises:
      InputError: an unknown name, or see `find_template`.
    """
    if name == "auto":
        return find_template(folder, tokenizer)
    if name not in TEMPLATES:
        known = ", ".join(("auto", *TEMPLATES))
        raise InputError(f"unknown chat template {name!r}; known: {known}")
    return TEMPLATES[name]


def find_template(folder: str | Path, tokenizer: Tokenizer) -> Template:
    """The template for a checkpoint: its own, or the one whose tokens its tokenizer has.

    Args:
      folder: of the checkpoint.
      tokenizer: of the checkpoint.

    Raises:
      InputError: the checkpoint's own cannot be read, or there is none and no known one fits.
    """
    own = load_template(folder, tokenizer)
    if own is not None:
        return own
    for template in TEMPLATES.values():
        if tokenizer.token_to_id(template.stops[0]) is not None:
            return template
    raise InputError(
        f"{folder} has no chat template, and its tokenizer has the tokens of none; name one of "
        f"{', '.join(TEMPLATES)}"
    )


def load_template(folder: str | Path, tokenizer: Tokenizer) -> Template | None:
    """The template in chat_template.jinja or tokenizer_config.json; None if neither has one.

    It is a program by the checkpoint's author. It is compiled and run in jinja2's immutable
    sandbox, which lets it neither reach Python's internals nor change its arguments, in a process
    of its own with bounds on time, memory and the length of its text. (macOS does not bound a
    process's memory; there only the bound on time ends a template that takes too much.)

    Args:
      folder: of the checkpoint.
      tokenizer: decides which stops and thinking tags are tokens.

    Raises:
      InputError: it cannot be read, or is not a template.
    """
    source, where, names = _source(Path(folder))
    if source is None:
        return None
    program = _Program(source, where)
    program.ask(None)
    known = TEMPLATES.values()
    pairs = [t.thinking for t in known if t.thinking is not None]
    found = [p for p in pairs if all(tokenizer.token_to_id(tag) is not None for tag in p)]
    found += [p for p in pairs if p[0] in source]
    return Template(
        _writer(program, names),
        roles=("system", "user", "assistant", "tool", "function", "ipython"),
        modes=next((t.modes for t in known if t.stops[0] in source), {}),
        stops=tuple(stop for t in known for stop in t.stops if stop in source),
        thinking=found[0] if found else None,
        # A run of ours began every document with the boundary, whatever the template writes.
        whole=not (Path(folder) / RUN).is_file(),
    )


def _source(folder: Path) -> tuple[str | None, str, dict[str, str]]:
    """The program, its location, and the special tokens it may name."""
    config = tokenizer_config(folder)
    names = {}
    for name, token in config.items():
        token = token.get("content") if isinstance(token, dict) else token
        if name.endswith("_token") and isinstance(token, str):
            names[name] = token
    if (folder / FILE).is_file():
        try:
            return (folder / FILE).read_text(encoding="utf-8"), str(folder / FILE), names
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"cannot read {folder / FILE}: {error}") from error
    where = f"chat_template of {folder / CONFIG}"
    source = config.get("chat_template")
    if isinstance(source, list):  # several by name
        named = [t for t in source if isinstance(t, dict)]
        named.sort(key=lambda t: t.get("name") != "default")
        source = named[0].get("template") if named else None
    if source is not None and not isinstance(source, str):
        raise InputError(f"{where} must be a text, got {source!r:.40}")
    return source, where, names


def _writer(program: "_Program", names: dict[str, str]) -> Callable[[Sequence[Message], bool], str]:
    def write(turns: Sequence[Message], add_generation_prompt: bool) -> str:
        given = {"messages": turns, "add_generation_prompt": add_generation_prompt}
        return program.ask({**names, **given, "tools": None, "documents": None})

    return write


class _Program:
    """A template and the process that renders it, kept from one rendering to the next."""

    def __init__(self, source: str, where: str):
        self._source, self._where = source, where
        # JSON may take twelve bytes for a character.
        longest = 12 * LONGEST + 1000
        self._child = Child(SCRIPT, (MEMORY, LONGEST), ("jinja2", "markupsafe"), longest=longest)

    def ask(self, values: dict[str, Any] | None) -> str:
        """The template's text with these values; None compiles it only.

        Raises:
          InputError: it is not a template, cannot render this, or did something forbidden.
        """
        request = {"source": self._source, "values": values, "seconds": SECONDS}
        try:
            found = self._child.ask(request, CLOCK_SECONDS)
        except TimeoutError as error:
            raise InputError(
                f"{self._where} ran for too long or took too much memory and was stopped"
            ) from error
        except OSError as error:
            raise InputError(
                f"cannot start {sys.executable or 'Python'} to run {self._where}: {error}"
            ) from error
        if "text" in found:
            return found["text"]
        what = {
            "compile": "is not a chat template",
            "security": "tried what a template may not",
            "render": "cannot write this dialogue",
        }
        raise InputError(f"{self._where} {what[found['kind']]}: {found['error']}")
