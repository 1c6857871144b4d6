"""Chat templates that come with a checkpoint: programs, run where they can do no harm."""

import dataclasses
import datetime
import json
import operator
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jinja2
from jinja2.exceptions import SecurityError
from jinja2.ext import loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment

from pangu_jax.core.config import read_json
from pangu_jax.core.errors import InputError
from pangu_jax.data.chat import TEMPLATES, Message, Template
from pangu_jax.data.tokenizer import Tokenizer

FILE, CONFIG = "chat_template.jinja", "tokenizer_config.json"
MOST_LINES = 1_000_000  # of the template that one rendering may run
MOST_SIZE = 1_000_000  # of a repeated text or a power


def find_template(folder: str | Path, tokenizer: Tokenizer) -> Template:
    """The template for a checkpoint: its own, or the one whose tokens its tokeniser has.

    Args:
      folder: of the checkpoint.
      tokenizer: of the checkpoint.

    Raises:
      InputError: the checkpoint's own cannot be read, or there is none and no known one fits.
    """
    own = own_template(folder, tokenizer)
    if own is not None:
        return own
    for template in TEMPLATES.values():
        if len(tokenizer.encode(template.stops[0])) == 1:
            return template
    raise InputError(
        f"{folder} has no chat template, and its tokenizer has the tokens of none; name one of "
        f"{', '.join(TEMPLATES)}"
    )


def own_template(folder: str | Path, tokenizer: Tokenizer) -> Template | None:
    """The template in chat_template.jinja or tokenizer_config.json; None where there is none.

    It is a program that the checkpoint's author wrote. It runs in jinja2's immutable sandbox,
    which lets it neither reach Python's insides nor change what it is given; how long it runs and
    how large a text it repeats are bounded too.

    Args:
      folder: of the checkpoint.
      tokenizer: tells which stops and thinking tags are tokens.

    Raises:
      InputError: it cannot be read, or is no template.
    """
    source, where, names = _source(Path(folder))
    if source is None:
        return None
    environment = _Environment()
    try:
        program = environment.from_string(source)
    except (jinja2.TemplateError, RecursionError, MemoryError) as error:
        raise InputError(f"{where} is not a chat template: {error}") from error
    known = TEMPLATES.values()
    pairs = [t.thinking for t in known if t.thinking is not None]
    single = [p for p in pairs if all(len(tokenizer.encode(tag)) == 1 for tag in p)]
    return Template(
        _writer(program, where, names),
        roles=("system", "user", "assistant", "tool", "function", "ipython"),
        modes=next((t.modes for t in known if t.stops[0] in source), {}),
        stops=tuple(stop for t in known for stop in t.stops if stop in source),
        thinking=single[0] if single else None,
    )


def _source(folder: Path) -> tuple[str | None, str, dict[str, str]]:
    """The program, where it stands, and the special tokens it may name."""
    config = read_json(folder / CONFIG) if (folder / CONFIG).is_file() else {}
    if not isinstance(config, dict):
        raise InputError(f"{folder / CONFIG} holds no JSON object")
    names = {}
    for name in ("bos_token", "eos_token", "pad_token", "unk_token"):
        token = config.get(name)
        token = token.get("content") if isinstance(token, dict) else token
        names[name] = token if isinstance(token, str) else ""
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


def _writer(program: jinja2.Template, where: str, names: dict[str, str]) -> Callable:
    def write(turns: Sequence[Message], add_generation_prompt: bool) -> str:
        values = {"messages": turns, "add_generation_prompt": add_generation_prompt, **names}
        try:
            text = _bounded(lambda: program.render(**values))
        except _TooLong as error:
            raise InputError(f"{where} ran for too long and was stopped") from error
        except SecurityError as error:
            raise InputError(f"{where} tried what a template may not: {error}") from error
        except Exception as error:  # what a stranger's program raises can be anything
            raise InputError(f"{where} cannot write this dialogue: {error}") from error
        return text.removeprefix(names["bos_token"])

    return write


class _Environment(ImmutableSandboxedEnvironment):
    """The sandbox, with what templates of public checkpoints expect to find."""

    intercepted_binops = frozenset(["*", "**"])

    def __init__(self):
        super().__init__(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols])
        self.filters["tojson"] = _to_json
        self.globals["raise_exception"] = _refuse
        self.globals["strftime_now"] = lambda form: datetime.datetime.now().strftime(form)

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        """Products and powers, of a size that does no harm."""
        del context
        return _product(left, right) if operator == "*" else _power(left, right)


def _product(left: Any, right: Any) -> Any:
    for text, times in ((left, right), (right, left)):
        if hasattr(text, "__len__") and isinstance(times, int) and len(text) * times > MOST_SIZE:
            raise SecurityError("a repetition is too long")
    return operator.mul(left, right)


def _power(left: Any, right: Any) -> Any:
    if abs(right) > 64 or abs(left) > MOST_SIZE:
        raise SecurityError("a power is too large")
    return operator.pow(left, right)


def _refuse(message: str) -> None:
    raise jinja2.TemplateError(message)


def _to_json(value: Any, ensure_ascii: bool = False, indent: int | None = None) -> str:
    # The library's own filter escapes < and >, which dialogues hold.
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent)


class _TooLong(BaseException):  # so that no handler in between takes it
    pass


@dataclasses.dataclass
class _Lines:
    """Counts the lines that run, in every Python function, and stops what runs too many."""

    left: int = MOST_LINES

    def __call__(self, frame: Any, event: str, argument: Any) -> Any:
        self.left -= 1
        if self.left < 0:
            raise _TooLong
        return self


def _bounded(render: Callable[[], str]) -> str:
    before = sys.gettrace()
    sys.settrace(_Lines())
    try:
        return render()
    finally:
        sys.settrace(before)
