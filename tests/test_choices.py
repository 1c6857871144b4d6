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
RESULTS = {"Answer", "Part", "TokenDelta"}
LATE = ("pangu_jax.cli", "pangu_jax.ops.kernels", "pangu_jax.data.wikitext2")


def configs():
    """Every dataclass of the package."""
    for module in pkgutil.walk_packages(pangu_jax.__path__, "pangu_jax."):
        if module.name.startswith(LATE):
            continue
        for name, cls in inspect.getmembers(importlib.import_module(module.name), inspect.isclass):
            if cls.__module__ == module.name and dataclasses.is_dataclass(cls):
                yield name, cls


def choices(kind):
    """The values that a field's type lists, through unions and tuples; () where it lists none."""
    if typing.get_origin(kind) is typing.Literal:
        return typing.get_args(kind)
    return next(filter(None, map(choices, typing.get_args(kind))), ())


def test_a_configuration_refuses_what_it_does_not_know():
    seen = set()
    for name, cls in configs():
        kinds = typing.get_type_hints(cls)
        required = {
            f.name: next(iter(choices(kinds[f.name])), None)
            for f in dataclasses.fields(cls)
            if f.default is f.default_factory is dataclasses.MISSING
        }
        for field in () if name in RESULTS else dataclasses.fields(cls):
            if known := ", ".join(map(str, choices(kinds[field.name]))):
                with pytest.raises(InputError) as error:
                    cls(**{**required, field.name: "bogus"})
                want = f"{field.name} must be one of {known}, got 'bogus'"
                assert str(error.value).endswith(want), name
                seen.add(field.name)
    assert seen > {"schedule", "norm", "norm_place", "activation", "rule", "pooling", "step_unit"}
