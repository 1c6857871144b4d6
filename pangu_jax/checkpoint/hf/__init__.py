"""Checkpoints in the Hugging Face layout, both ways, one tensor at a time."""

from pangu_jax.checkpoint.hf.checkpoint import (
    LazyLeaf,
    assign_tensors,
    read_headers,
    read_part,
    view,
)
from pangu_jax.checkpoint.hf.config import (
    CONFIG,
    read_config,
    read_keys,
    read_pooling,
    read_prompts,
    write_keys,
)
from pangu_jax.checkpoint.hf.families.registry import FAMILIES, named
from pangu_jax.checkpoint.hf.reader import load
from pangu_jax.checkpoint.hf.writer import families_of, save, save_first

__all__ = [
    "CONFIG",
    "FAMILIES",
    "LazyLeaf",
    "assign_tensors",
    "families_of",
    "load",
    "named",
    "read_config",
    "read_headers",
    "read_keys",
    "read_part",
    "read_pooling",
    "read_prompts",
    "save",
    "save_first",
    "view",
    "write_keys",
]
