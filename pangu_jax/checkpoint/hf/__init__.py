"""Checkpoints in the Hugging Face layout, both ways, one tensor at a time."""

from pangu_jax.checkpoint.hf.config import (
    CONFIG,
    read_config,
    read_keys,
    read_pooling,
    read_prompts,
    write_keys,
)
from pangu_jax.checkpoint.hf.families.registry import FAMILIES, named
from pangu_jax.checkpoint.hf.opened import Lazy, place, read_part, survey, view
from pangu_jax.checkpoint.hf.reader import load
from pangu_jax.checkpoint.hf.writer import families_of, save, save_first

__all__ = [
    "CONFIG",
    "FAMILIES",
    "Lazy",
    "families_of",
    "load",
    "named",
    "place",
    "read_config",
    "read_keys",
    "read_part",
    "read_pooling",
    "read_prompts",
    "save",
    "save_first",
    "survey",
    "view",
    "write_keys",
]
