"""Measures the answers of a model that `latent train` made, also with its thoughts exchanged."""

from dataclasses import dataclass
from typing import Literal

from pangu_jax.cli.options.latent_problems import Problems


@dataclass(frozen=True)
class Options(Problems):
    """Which run, on which problems, and how it answers them."""

    max_new_tokens: int | None = None
    """Maximum number of tokens written per answer; None is enough for the task of the run."""
    ablations: bool = True
    """Also measure with thoughts exchanged for zeros, noise, another problem's, and pauses."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Type of activations and cache."""
    json: bool = False
    """Print one JSON object instead of text."""
