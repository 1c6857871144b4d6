"""Measures perplexity and bits per byte of a trained model on text."""

import json
import sys
from dataclasses import dataclass
from typing import Annotated, Literal

import tyro

from pangu_jax.checkpoint.open import open_checkpoint
from pangu_jax.cli.progress import progress, working
from pangu_jax.data.text import documents
from pangu_jax.data.tokenizer import load_tokenizer
from pangu_jax.nn.how import How
from pangu_jax.task.language import as_dict, perplexity


@dataclass(frozen=True)
class Options:
    """What to evaluate, on which text, with which windows."""

    checkpoint: Annotated[str, tyro.conf.Positional]
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


def main(options: Options) -> None:
    """Prints tokens, perplexity, bits per byte, and the protocol."""
    with working(f"reading {options.checkpoint}"):
        params, cfg, found = open_checkpoint(
            options.checkpoint, kind="decoder", by="`pangu-jax eval`"
        )
    tokenizer = load_tokenizer(options.tokenizer or found, checkpoint=options.checkpoint)
    with progress() as show:
        result = perplexity(
            params,
            documents(options.data, field=options.field),
            cfg=cfg,
            tokenizer=tokenizer,
            progress=show,
            length=options.length,
            stride=options.stride,
            batch=options.batch,
            max_tokens=options.max_tokens,
            how=How(dtype=options.dtype),
        )
    if options.length > cfg.max_length:
        print(f"note: the model was made for {cfg.max_length} tokens", file=sys.stderr)
    if options.json:
        print(json.dumps(as_dict(result)))
        return
    print(f"tokens predicted  {result.tokens:,}")
    print(f"bytes             {result.bytes:,}")
    print(f"perplexity        {result.perplexity:.4f}")
    print(f"bits per byte     {result.bits_per_byte:.4f}")
    print(f"protocol          {result.protocol}")
