"""Checkpoints in the Hugging Face layout, both ways, one tensor at a time."""

from pangu_jax.checkpoint.hf.config import CONFIG, read_config, read_keys, write_keys
from pangu_jax.checkpoint.hf.families.registry import FAMILIES, named
from pangu_jax.checkpoint.hf.opened import place, read_part, survey, view
from pangu_jax.checkpoint.hf.reader import load
from pangu_jax.checkpoint.hf.writer import save

__all__ = [
    "CONFIG",
    "FAMILIES",
    "load",
    "named",
    "place",
    "read_config",
    "read_keys",
    "read_part",
    "save",
    "survey",
    "view",
    "write_keys",
]
