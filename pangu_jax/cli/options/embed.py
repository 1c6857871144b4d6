"""Writes one vector per text, from an encoder (sentence-transformers and the like) or a decoder."""

from dataclasses import dataclass
from typing import Annotated, Literal

import tyro

from pangu_jax.models.pooling_config import Attention, Pooling


@dataclass(frozen=True)
class Options:
    """Which texts to embed, with which model, and how."""

    checkpoint: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="CHECKPOINT")]
    """A folder in the Hugging Face layout, or a run folder, of an encoder or a decoder."""
    data: str
    """A .jsonl file with one text per record, or another text file with one per line; .gz too."""
    out: str
    """The .npy file to write: float32 [texts, width], in the order of the texts."""
    field: str = "text"
    """The key of the text in .jsonl records."""
    pooling: Pooling | None = None
    """Which hidden states make the vector; None is what the folder says."""
    attention: Attention | None = None
    """For a decoder: causal or bidirectional attention; None is what the folder says."""
    pool_prefix: bool | None = None
    """For a decoder: whether the prefix's tokens are pooled too; None is what the folder says."""
    batch: int = 32
    """Texts computed at once."""
    max_length: int | None = None
    """Maximum tokens per text, special tokens included; None is what the folder says."""
    prefix: str | None = None
    """What is put before every text, such as "query: "; None is what the folder says."""
    tokenizer: str | None = None
    """A tokenizer.json; None takes the checkpoint's own."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Type of the activations."""
