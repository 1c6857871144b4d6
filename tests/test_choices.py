"""Every configuration refuses a word that its type does not list, and says which it lists."""

import dataclasses
import importlib
import inspect
import pkgutil
import typing

import pytest

import pangu_jax
from pangu_jax.core.errors import InputError

# What engines give, which nobody configures; the command line's options are checked by tyro.
RESULTS = {"Answer", "Part", "Piece"}
LATE = ("pangu_jax.cli", "pangu_jax.ops.kernels", "pangu_jax.data.wikitext2")


def configs():
    found = {}
    for module in pkgutil.walk_packages(pangu_jax.__path__, "pangu_jax."):
        if module.name.startswith(LATE):
            continue
        for name, cls in inspect.getmembers(importlib.import_module(module.name), inspect.isclass):
            if cls.__module__ == module.name and dataclasses.is_dataclass(cls):
                found[name] = cls
    return found


def choices(kind):
    """The values that a field's type lists, through unions and tuples; () where it lists none."""
    if typing.get_origin(kind) is typing.Literal:
        return typing.get_args(kind)
    return next(filter(None, map(choices, typing.get_args(kind))), ())


FIELDS = [
    (cls, field.name)
    for name, cls in configs().items()
    for field in dataclasses.fields(cls)
    if name not in RESULTS and choices(typing.get_type_hints(cls)[field.name])
]


def test_they_are_found():
    assert {name for _, name in FIELDS} > {"schedule", "norm", "norm_place", "activation", "rule"}


@pytest.mark.parametrize(("cls", "field"), FIELDS, ids=lambda x: getattr(x, "__name__", x))
def test_a_configuration_refuses_what_it_does_not_know(cls, field):
    kinds = typing.get_type_hints(cls)
    required = {
        f.name: next(iter(choices(kinds[f.name])), None)
        for f in dataclasses.fields(cls)
        if f.default is f.default_factory is dataclasses.MISSING
    }
    known = ", ".join(map(str, choices(kinds[field])))
    with pytest.raises(InputError, match=rf"{field} must be one of {known}, got 'bogus'$"):
        cls(**{**required, field: "bogus"})
