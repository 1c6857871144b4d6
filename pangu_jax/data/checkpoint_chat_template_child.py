"""Renders a chat template in a process of its own: a script that imports nothing of this package.

It reads one JSON object per line from stdin, {"source": the template, "values": what it may name,
or null to compile only, "seconds": of processor time}, and answers each with one on stdout:
{"text": ...} or {"kind": "compile" | "security" | "render", "error": ...}. What runs too long ends
with it.
Arguments: bytes of memory it may take, the longest text, and folders to import jinja2 from.
"""

import sys

if __name__ == "__main__":
    sys.path += sys.argv[3:]

import contextlib
import datetime
import functools
import json
import resource
import time
from collections.abc import Callable
from typing import Any

import jinja2
from jinja2 import nodes
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension, loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment


class Generation(Extension):
    """The block {% generation %} ... {% endgeneration %}, which marks answers for training."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: Any) -> nodes.Node:
        """The statements up to endgeneration; names set there stay there, as in transformers."""
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("_same"), [], [], body).set_lineno(line)

    def _same(self, caller: Callable[[], str]) -> str:
        return caller()


class Environment(ImmutableSandboxedEnvironment):
    """The sandbox, with the names that templates of public checkpoints expect."""

    def __init__(self):
        extensions = [Generation, loopcontrols]
        super().__init__(trim_blocks=True, lstrip_blocks=True, extensions=extensions)
        self.filters["tojson"] = to_json
        self.globals["raise_exception"] = refuse
        self.globals["strftime_now"] = lambda form: datetime.datetime.now().strftime(form)


def refuse(message: str) -> None:
    """Called by a template to reject a dialogue; raises `jinja2.TemplateError`."""
    raise jinja2.TemplateError(message)


def to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """JSON as transformers writes it; jinja2's own filter escapes < and >, which dialogues hold."""
    form = {"indent": indent, "separators": separators, "sort_keys": sort_keys}
    return json.dumps(value, ensure_ascii=ensure_ascii, **form)


def answer(compiled: Callable, request: dict[str, Any], longest: int) -> dict[str, str]:
    """The rendered text, or the error that prevented it."""
    kind, parts, size = "compile", [], 0
    try:
        program = compiled(request["source"])
        kind = "render"
        for part in program.generate(**request["values"]) if request["values"] is not None else ():
            parts.append(part)
            size += len(part)
            if size > longest:
                return {"kind": kind, "error": f"its text is longer than {longest:,} characters"}
    except Exception as error:  # what a stranger's program raises can be anything
        text = " ".join(str(error).split())[:300] or type(error).__name__
        return {"kind": "security" if isinstance(error, SecurityError) else kind, "error": text}
    return {"text": "".join(parts)}


def main() -> None:
    """Answers until the input ends."""
    memory, longest = int(sys.argv[1]), int(sys.argv[2])
    with contextlib.suppress(OSError, ValueError):  # not every system bounds memory so
        resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    compiled = functools.lru_cache(1)(Environment().from_string)
    print("{}", flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        _, most = resource.getrlimit(resource.RLIMIT_CPU)
        limit = int(time.process_time()) + 1 + request["seconds"]
        with contextlib.suppress(OSError, ValueError):  # a smaller bound of the system's holds
            resource.setrlimit(resource.RLIMIT_CPU, (limit, most))
        print(json.dumps(answer(compiled, request, longest)), flush=True)


if __name__ == "__main__":
    main()
