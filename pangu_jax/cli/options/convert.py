"""Writes a checkpoint in the Hugging Face layout, for other libraries to load.

A run folder of `pangu-jax train` or a GGUF file becomes one, and a checkpoint of one architecture
becomes another that can express it: openPangu-Embedded as llama, say, which stock transformers
loads.
"""

from dataclasses import dataclass
from typing import Annotated, Literal

import tyro


@dataclass(frozen=True)
class Options:
    """What to convert, and to what."""

    checkpoint: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="CHECKPOINT")]
    """A run folder, a folder in the Hugging Face layout, or a GGUF file."""
    out: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="OUT")]
    """The new folder."""
    family: (
        Literal[
            "llama",
            "mistral",
            "gemma2",
            "qwen2",
            "qwen3",
            "qwen3-moe",
            "pangu-embedded",
            "pangu-pro-moe",
            "bert",
            "bert-classifier",
            "llama-embedder",
            "mistral-embedder",
            "gemma2-embedder",
            "qwen2-embedder",
            "qwen3-embedder",
            "nv-embed",
        ]
        | None
    ) = None
    """The family to write as; None keeps a checkpoint's own, or takes the first that fits."""
    dtype: Literal["float32", "float16", "bfloat16"] | None = None
    """Type of the tensors; None keeps each its own."""
    max_shard_gb: float = 5.0
    """Maximum size of each file of tensors."""
