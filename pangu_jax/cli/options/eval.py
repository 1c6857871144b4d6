"""Measures perplexity and bits per byte of a trained model on text."""

from dataclasses import dataclass
from typing import Annotated, Literal

import tyro


@dataclass(frozen=True)
class Options:
    """What to evaluate, on which text, with which windows."""

    checkpoint: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="CHECKPOINT")]
    """A run folder, or a folder in the Hugging Face layout."""
    data: str
    """A file or folder of .txt or .jsonl, either possibly .gz; "stdlib"; "packages"."""
    length: int = 512
    """Maximum context, in tokens."""
    stride: int | None = None
    """New tokens predicted per window; None is the length (no overlap)."""
    batch: int = 8
    """Windows computed at once."""
    max_tokens: int | None = None
    """Stop after the document in which this many tokens were predicted; None takes all."""
    field: str = "text"
    """The key of the text in .jsonl lines."""
    tokenizer: str | None = None
    """"bytes" or a tokenizer.json; None takes the checkpoint's own."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Type of the activations."""
    json: bool = False
    """Print one JSON object instead of text."""
