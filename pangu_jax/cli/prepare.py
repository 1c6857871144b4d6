"""Prepares a dataset once, from files at hand, so that training reads it with grain."""

import importlib
import importlib.util
from dataclasses import dataclass
from typing import Annotated, Literal

import tyro

from pangu_jax.core.errors import InputError


@dataclass(frozen=True)
class Options:
    """Which dataset, from what, and where to."""

    name: Annotated[Literal["wikitext2"], tyro.conf.Positional]
    """The dataset."""
    source: str
    """The folder that holds its files; nothing is downloaded."""
    out: str = "datasets"
    """Where prepared datasets are kept."""


def main(options: Options) -> None:
    """Prepares the dataset and says how it is named."""
    for needed in ("tensorflow_datasets", "array_record"):
        if importlib.util.find_spec(needed) is None:
            raise InputError(f"preparing needs {needed}: pip install 'pangu-jax[data]'")
    found = importlib.import_module(f"pangu_jax.data.{options.name}").prepare(
        options.source, options.out
    )
    print(f"{found} holds the dataset; try: pangu-jax train --data {found} (or {found}:test)")
