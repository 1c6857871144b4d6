"""Frozen dataclasses to JSON and back, with errors that name the field."""

import dataclasses
import json
import math
import re
import types
import typing
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

from pangu_jax.core.errors import InputError
from pangu_jax.core.files import atomic_write, regular

T = TypeVar("T")
_UNIONS = (typing.Union, types.UnionType)
# Fields that older files hold under another name: the type of their values, and today's name.
RENAMED_FIELDS: dict[str, tuple[type, str]] = {
    "deviation": (list, "std"),
    "end": (bool, "append_eos"),
    "max_new": (int, "max_new_tokens"),
    "normalise": (bool, "normalize"),
    "renormalise": (bool, "renormalize"),
}
_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")


def to_json(config: Any) -> Any:
    """A nested frozen dataclass as JSON values: dicts, lists, strings, numbers, None."""
    if dataclasses.is_dataclass(config) and not isinstance(config, type):
        return {f.name: to_json(getattr(config, f.name)) for f in dataclasses.fields(config)}
    if isinstance(config, list | tuple):
        return [to_json(item) for item in config]
    if isinstance(config, dict):
        return {key: to_json(value) for key, value in config.items()}
    if config is None or isinstance(config, str | bool | int | float):
        return config
    raise TypeError(f"a config holds no {type(config).__name__}")


def up_to_date(value: Any, depth: int = 16) -> Any:
    """JSON values with the fields of `RENAMED_FIELDS` renamed to their current names.

    Args:
      value: what `json.loads` gave.
      depth: how deep configurations may lie in it; what lies deeper is left as it is.
    """
    if not depth or not isinstance(value, dict | list):
        return value
    if isinstance(value, list):
        return [up_to_date(item, depth - 1) for item in value]
    found = {}
    for key, item in value.items():
        kind, new = RENAMED_FIELDS.get(key, (None, key))
        new = new if type(item) is kind else key
        # If both are there, one is unknown, which the error says when fields are read.
        found[key if new in value else new] = up_to_date(item, depth - 1)
    return found


def from_json(cls: type[T], value: Any, where: str = "config") -> T:
    """Builds the dataclass `cls` from JSON values, checking names and types.

    Fields may have the names that older files give them (`RENAMED_FIELDS`).

    Args:
      cls: a dataclass whose fields are dataclasses, tuples, unions with None, or plain values.
      value: what `json.loads` gave.
      where: how errors name the place, usually the file.

    Raises:
      InputError: a field is unknown, missing, of the wrong type, or refused by `cls`.
    """
    return _build(cls, up_to_date(value), where)


def load_config(cls: type[T], path: str | Path) -> T:
    """Reads a JSON file into the dataclass `cls`.

    Raises:
      InputError: no such file, not JSON, or not a `cls`.
    """
    return from_json(cls, read_json(path), str(path))


def save_config(config: Any, path: str | Path) -> None:
    """Writes a dataclass as JSON, atomically."""
    with atomic_write(path) as file:
        json.dump(to_json(config), file, indent=1)
        file.write("\n")


def read_json(path: str | Path, *, finite: bool = True) -> Any:
    """Parses a JSON file.

    Args:
      path: the file.
      finite: whether NaN and infinity, which are no JSON, are refused; results of ours may have
        them.

    Raises:
      InputError: the file is missing, unreadable, not JSON, names a key of an object twice, or
        holds a number beyond float64 or half of a character.
    """
    regular(path)
    try:
        text = Path(path).read_text(encoding="utf-8")
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}") from error
    except ValueError as error:
        raise InputError(f"{path} is not JSON: {error}") from error
    return parse_json(text, str(path), finite=finite)


def parse_json(text: str | bytes, where: str, *, finite: bool = True) -> Any:
    """Parses JSON text as `read_json` does; `where` names it in errors.

    Raises:
      InputError: see `read_json`.
    """

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):  # Python would take the last in silence
            names = [name for name, _ in pairs]
            twice = next(name for name in names if names.count(name) > 1)
            raise InputError(f"{where} names {twice!r:.200} twice")
        return found

    def number(text: str) -> float:
        value = float(text)
        if finite and not math.isfinite(value):
            raise InputError(f"{where} holds the number {text:.40}, which is not finite")
        return value

    def whole(text: str) -> int:
        if len(text) > 300:  # float64 ends near 1e308
            raise InputError(f"{where} holds a number of {len(text):,} digits, {text:.20}...")
        return int(text)

    hooks = {"parse_constant": number, "parse_float": number, "parse_int": whole}
    try:
        found = json.loads(text, object_pairs_hook=once, **hooks)
        if _SURROGATE.search(text if isinstance(text, str) else text.decode("utf-8")):
            json.dumps(found, ensure_ascii=False).encode()  # a pair is a character, a half is none
    except InputError:
        raise
    except (ValueError, RecursionError) as error:
        raise InputError(f"{where} is not JSON: {error}") from error
    return found


def check_size(name: str, value: int, *, least: int = 1, most: int = 2**31 - 1) -> None:
    """Checks that an array can have this size.

    Args:
      name: how the error names it.
      value: the size.
      least: the smallest that makes sense.
      most: the greatest.

    Raises:
      InputError: it is out of range.
    """
    if value < least:
        raise InputError(f"{name} must be at least {least}, got {value}")
    if value > most:
        raise InputError(f"{name} must be at most {most:,}, got {value!s:.40}")


def check_choice(name: str, value: Any, known: Iterable[Any]) -> None:
    """Checks that a value is one of the known ones.

    Args:
      name: how the error names it.
      value: what was given.
      known: what there is; of equal values of other types (True is 1) none is meant.

    Raises:
      InputError: it is none of them.
    """
    known = tuple(known)
    if not _is_choice(value, known):
        raise InputError(f"{name} must be one of {', '.join(map(str, known))}, got {value!r:.60}")


def check_choices(config: Any, of: str = "") -> None:
    """Checks that each field of a dataclass whose type is a `Literal` holds one of its values.

    The type is all there is to keep: it says what a reader, a type checker, the command line and
    this accept. To be called first in `__post_init__`. A field may also be None, or a tuple of such
    values, where its type says so.

    Args:
      config: the dataclass.
      of: whose fields they are, for the error, such as "optimizer".

    Raises:
      InputError: one of them holds something else.
    """
    for name, known, many, optional in _choices(type(config)):
        value = getattr(config, name)
        if value is None and optional:
            continue
        for one in value if many and isinstance(value, tuple) else (value,):
            check_choice(f"{of} {name}".lstrip(), one, known)


@cache
def _choices(cls: type) -> tuple[tuple[str, tuple, bool, bool], ...]:
    """(field, accepted values, whether it is a tuple of them, whether None is accepted)."""
    found = []
    for name, kind in typing.get_type_hints(cls).items():
        parts = typing.get_args(kind) if typing.get_origin(kind) in _UNIONS else (kind,)
        for part in parts:
            arguments = typing.get_args(part)
            many = typing.get_origin(part) is tuple and arguments[1:] == (...,)
            inner = arguments[0] if many else part
            if typing.get_origin(inner) is typing.Literal:
                found.append((name, typing.get_args(inner), many, type(None) in parts))
    return tuple(found)


def _is_choice(value: Any, known: tuple) -> bool:
    return any(type(choice) is type(value) and choice == value for choice in known)


def _build(kind: Any, value: Any, where: str) -> Any:
    if dataclasses.is_dataclass(kind):
        return _build_dataclass(kind, value, where)
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin in _UNIONS:
        return _build_union(arguments, value, where)
    if origin is tuple:
        return _build_tuple(arguments, value, where)
    if origin is dict:
        _expect(isinstance(value, dict), where, value, "an object")
        return {key: _build(arguments[1], item, f"{where}.{key}") for key, item in value.items()}
    if origin is typing.Literal:
        check_choice(where, value, arguments)
        return value
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    is_kind = isinstance(value, kind) and (kind is bool or not isinstance(value, bool))
    _expect(is_kind, where, value, kind.__name__)
    return value


def _build_dataclass(cls: Any, value: Any, where: str) -> Any:
    _expect(isinstance(value, dict), where, value, f"an object ({cls.__name__})")
    kinds = typing.get_type_hints(cls)
    fields = {f.name: f for f in dataclasses.fields(cls)}
    for name in value:
        if name not in fields:
            raise InputError(f"{where} has an unknown field {name!r}; known: {', '.join(fields)}")
    for name, field in fields.items():
        no_default = field.default is field.default_factory is dataclasses.MISSING
        if no_default and name not in value:
            raise InputError(f"{where} lacks the field {name!r}")
    arguments = {name: _build(kinds[name], item, f"{where}.{name}") for name, item in value.items()}
    try:
        return cls(**arguments)
    except InputError as error:
        raise InputError(f"{where}: {error}") from error


def _build_union(kinds: tuple, value: Any, where: str) -> Any:
    if value is None and type(None) in kinds:
        return None
    errors = []
    for kind in kinds:
        if kind is not type(None):
            try:
                return _build(kind, value, where)
            except InputError as error:
                errors.append(error)
    raise errors[0]


def _build_tuple(kinds: tuple, value: Any, where: str) -> tuple:
    _expect(isinstance(value, list | tuple), where, value, "a list")
    if len(kinds) == 2 and kinds[1] is Ellipsis:
        return tuple(_build(kinds[0], item, f"{where}[{i}]") for i, item in enumerate(value))
    _expect(len(value) == len(kinds), where, value, f"a list of {len(kinds)}")
    return tuple(
        _build(k, v, f"{where}[{i}]") for i, (k, v) in enumerate(zip(kinds, value, strict=False))
    )


def _expect(condition: bool, where: str, value: Any, wanted: str) -> None:
    if not condition:
        raise InputError(f"{where} must be {wanted}, got {value!r:.60}")
