"""Tasks that are judged by running code: files of HumanEval and MBPP."""

import ast
import dataclasses
import warnings
from pathlib import Path

from pangu_jax.core.errors import InputError
from pangu_jax.data.text import records


@dataclasses.dataclass(frozen=True)
class CodeTask:
    """One task.

    Attributes:
      prompt: what the model is given.
      tests: what `sandbox.run` takes.
      names: likewise.
      setup: likewise.
      before: what the answer is put behind to be run, such as the head of the function.
      reference: an answer that is known to be right.
    """

    prompt: str
    tests: tuple[str, ...]
    names: tuple[str, ...]
    setup: str
    before: str
    reference: str


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
        found.append(CodeTask(record["prompt"], tuple(tests), names, "", "", record["code"]))
    return found


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
    except (SyntaxError, ValueError) as error:
        raise InputError(f"{what} is no Python: {error}") from error
