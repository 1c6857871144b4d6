"""Tasks that are judged by running code: files of HumanEval, MBPP and LiveCodeBench."""

import ast
import base64
import dataclasses
import pickletools
import warnings
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pangu_jax.core.config import parse_json
from pangu_jax.core.errors import InputError
from pangu_jax.data.text import records
from pangu_jax.reasoning.sandbox import Limits, Verdict, run

# What LiveCodeBench's released runner puts before answers: starters use List without an import.
_MODULES = (
    "string", "re", "datetime", "collections", "heapq", "bisect", "copy", "math", "random",
    "statistics", "itertools", "functools", "operator", "io", "sys", "json",
)  # fmt: skip
IMPORTS = "\n".join(
    (
        *(f"from {name} import *" for name in (*_MODULES, "builtins", "typing")),
        *(f"import {name}" for name in _MODULES),
        "sys.setrecursionlimit(50000)",
        "",
    )
)
# The answer as a function of what it would read, which gives what it would print.
PROGRAM = """
import builtins, contextlib, io, sys
_IMPORTS, _PROGRAM = {imports!r}, compile({source!r}, "answer.py", "exec")
def run(text):
    given = io.TextIOWrapper(io.BytesIO(text.encode()), encoding="utf-8")
    said = io.TextIOWrapper(io.BytesIO(), encoding="utf-8", write_through=True)
    opened = lambda file, *more, **options: (
        given if file == 0 else builtins.open(file, *more, **options))
    before, sys.stdin = sys.stdin, given
    try:
        with contextlib.redirect_stdout(said), contextlib.suppress(SystemExit):
            names = {{"__name__": "__main__"}}
            exec(_IMPORTS, names)
            exec(_PROGRAM, names | {{"open": opened, "exit": sys.exit, "quit": sys.exit}})
        said.flush()
        return said.buffer.getvalue().decode()
    finally:
        sys.stdin = before
"""
# How LiveCodeBench compares: words line by line, as texts or as numbers; tuples are lists.
SAME = """
from decimal import Decimal as _Decimal, InvalidOperation as _Invalid
def _words(text):
    return [line.split() for line in text.strip().splitlines()]
def _number(word):
    try:
        return _Decimal(word)
    except _Invalid:
        return word
def _printed(found, wanted):
    found, wanted = _words(found), _words(wanted)
    numbers = [[[_number(x) for x in line] for line in side] for side in (found, wanted)]
    return found == wanted or numbers[0] == numbers[1]
def _same(found, wanted):
    return (list(found) if isinstance(found, tuple) else found) == wanted
"""
_UNPACKED = 2**28  # bytes of one task's hidden tests
_LIVE = Limits(seconds=120, cpu_seconds=60)  # for all tests of a task, which are dozens


@dataclasses.dataclass(frozen=True)
class CodeTask:
    """One task.

    Attributes:
      prompt: what the model is given.
      tests: what `sandbox.run` takes.
      names: likewise.
      setup: likewise.
      before: what the answer is put behind to be run, such as the head of the function.
      reference: an answer that is known to be right; empty where there is none.
      shown: how many of the tests, the first, the model may see.
      imports: what is run before an answer that stands by itself.
      program: whether an answer reads and prints texts, instead of defining `names`.
      limits: likewise.
    """

    prompt: str
    tests: tuple[str, ...]
    names: tuple[str, ...]
    setup: str
    before: str
    reference: str
    shown: int = 0
    imports: str = ""
    program: bool = False
    limits: Limits = Limits()

    @property
    def asked(self) -> tuple[str, ...]:
        """What the model was asked to define; a program defines what it likes."""
        return () if self.program else self.names

    def source(self, answer: str) -> str:
        """What is run for an answer: it, behind what it continues where it is a continuation.

        An answer that defines what is asked for stands by itself, with what the prompt defines
        beside that.
        """
        if self.program:
            return PROGRAM.format(source=answer, imports=self.imports)
        if not self.before:
            return self.imports + answer
        try:
            whole = set(self.names) <= set(_defined(answer, "the answer"))
        except InputError:  # the body of a function, say
            whole = False
        return f"{self.before}    pass\n\n{answer}" if whole else self.before + answer

    def judge(
        self, answer: str, *, allow: bool = False, tests: Sequence[str] | None = None
    ) -> Verdict:
        """Runs an answer and the tests, or some of them.

        Raises:
          InputError: see `sandbox.run`.
        """
        return run(
            self.source(answer),
            self.tests if tests is None else tests,
            names=self.names,
            setup=self.setup,
            allow=allow,
            limits=self.limits,
        )


def humaneval(path: str | Path) -> list[CodeTask]:
    """Reads the file of HumanEval, possibly .gz.

    What a prompt defines beside the function that is asked for (helpers, imports) is trusted, so
    that an answer which redefines it cannot bend the tests that use it.

    Raises:
      InputError: the file cannot be read, or a line is of another form; names it.
    """
    keys = ("prompt", "entry_point", "canonical_solution", "test")
    return [
        CodeTask(
            record["prompt"],
            (f"{record['test']}\ncheck({record['entry_point']})\n",),
            (record["entry_point"],),
            _beside(record["prompt"], record["entry_point"], where),
            record["prompt"],
            record["canonical_solution"],
        )
        for _, where, record in records(path, *keys)
    ]


def mbpp(path: str | Path) -> list[CodeTask]:
    """Reads a file of MBPP, {"prompt", "code": texts, "test": list of texts}, possibly .gz.

    The names that tests have from an answer are those that the reference defines.

    Raises:
      InputError: the file cannot be read, or a line is of another form; names it.
    """
    found = []
    for _, where, record in records(path, "prompt", "code"):
        tests = record.get("test")
        if not isinstance(tests, list) or not tests or not all(isinstance(t, str) for t in tests):
            raise InputError(f'{where} has no list of texts under "test"')
        names = _defined(record["code"], where)
        found.append(
            CodeTask(record["prompt"], tuple(tests), names, "", "", record["code"], len(tests))
        )
    return found


def livecodebench(path: str | Path) -> list[CodeTask]:
    """Reads a file of LiveCodeBench as it is released, a JSON object a line, possibly .gz.

    Hidden tests lie there as a pickle of a text, packed; it is taken apart, never loaded.

    Raises:
      InputError: the file cannot be read, or a line is of another form; names it.
    """
    keys = ("question_content", "starter_code", "public_test_cases", "private_test_cases")
    return [_live(record, where) for _, where, record in records(path, *keys, "metadata")]


def _live(record: dict[str, Any], where: str) -> CodeTask:
    public = _cases(record["public_test_cases"], f"{where}: public_test_cases")
    cases = public + _cases(record["private_test_cases"], f"{where}: private_test_cases")
    if not cases:
        raise InputError(f"{where} has no test cases")
    program = cases[0]["testtype"] == "stdin"
    text, start = record["question_content"].strip(), record["starter_code"]
    if start.strip():
        text += f"\n\nBegin with:\n```python\n{start.rstrip()}\n```"
    if program:
        tests = [f"assert _printed(run({c['input']!r}), {c['output']!r})" for c in cases]
    else:
        about = parse_json(record["metadata"], f"{where}: metadata")
        name = about.get("func_name") if isinstance(about, dict) else None
        if not isinstance(name, str) or not name.isidentifier():
            raise InputError(f"{where}: metadata has no func_name that is a name")
        tests = [_call(name, case, where) for case in cases]
    names = ("run",) if program else ("Solution",)
    return CodeTask(text, tuple(tests), names, SAME, "", "", len(public), IMPORTS, program, _LIVE)


def _call(name: str, case: dict[str, str], where: str) -> str:
    given = [parse_json(line, f"{where}: a test's input") for line in case["input"].splitlines()]
    wanted = parse_json(case["output"], f"{where}: a test's output")
    return f"assert _same(Solution().{name}(*{given!r}), {wanted!r})"


def _cases(text: str, where: str) -> list[dict[str, str]]:
    """The list of {"input", "output", "testtype": texts} that a field is, packed or not."""
    found = parse_json(text if text.lstrip().startswith("[") else _unpacked(text, where), where)
    keys = ("input", "output", "testtype")
    if not isinstance(found, list) or not all(
        isinstance(case, dict) and all(isinstance(case.get(key), str) for key in keys)
        for case in found
    ):
        raise InputError(f"{where} must be a list of objects with the texts {', '.join(keys)}")
    return found


def _unpacked(text: str, where: str) -> str:
    """The text in a zlib stream of a pickle, in base 64."""
    try:
        stream = zlib.decompressobj()
        raw = stream.decompress(base64.b64decode(text, validate=True), _UNPACKED)
        if not stream.eof:
            raise InputError(f"{where} holds more than {_UNPACKED:,} bytes, or ends too early")
        found = [(op.name, value) for op, value, _ in pickletools.genops(raw)]
    except (ValueError, zlib.error) as error:
        raise InputError(f"{where} is no packed text: {error}") from error
    around = ("PROTO", "FRAME", "MEMOIZE", "BINPUT", "STOP")
    texts = ("SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8", "UNICODE")
    rest = [(name, value) for name, value in found if name not in around]
    if len(rest) != 1 or rest[0][0] not in texts:
        raise InputError(f"{where} holds something else than one text")
    return rest[0][1]


def _beside(prompt: str, name: str, where: str) -> str:
    """The statements of a prompt but for the function of that name."""
    body = _parsed(f"{prompt}\n    pass\n", f"{where}: the prompt")
    kept = [x for x in body if not (isinstance(x, ast.FunctionDef) and x.name == name)]
    return ast.unparse(ast.Module(kept, []))


def _defined(code: str, where: str) -> tuple[str, ...]:
    """The functions, classes and variables of a piece of Python, at its top level."""
    body = _parsed(code, f"{where}: the code")
    found = {x.name for x in body if isinstance(x, ast.FunctionDef | ast.ClassDef)}
    for node in body:
        if isinstance(node, ast.Assign | ast.AnnAssign):
            names = (x for x in ast.walk(node) if isinstance(x, ast.Name))
            found |= {x.id for x in names if isinstance(x.ctx, ast.Store)}
    return tuple(sorted(found))


def _parsed(code: str, what: str) -> list[ast.stmt]:
    try:
        with warnings.catch_warnings(action="ignore"):  # of escapes that are none, say
            return ast.parse(code).body
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:  # too deep, too long
        raise InputError(f"{what} is no Python: {error}") from error
