"""Prepares a dataset once, from local files, so that it is read with grain."""

from dataclasses import dataclass
from typing import Annotated, Literal

import tyro


@dataclass(frozen=True)
class Options:
    """Which dataset, from what, and where to."""

    name: Annotated[
        Literal[
            "wikitext2", "etth1", "etth2", "ettm1", "ettm2", "weather", "exchange", "ecl", "solar"
        ],
        tyro.conf.Positional,
    ]
    """wikitext2, which is text, or a forecasting benchmark."""
    source: str
    """The folder that holds its files; nothing is downloaded."""
    out: str = "datasets"
    """Where prepared datasets are kept."""
