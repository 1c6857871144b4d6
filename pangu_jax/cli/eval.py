"""Runs `pangu-jax eval`; its options are in `cli/options/eval.py`."""

import json
import sys

from pangu_jax.checkpoint.open import open_checkpoint
from pangu_jax.cli.options.eval import Options
from pangu_jax.cli.progress import progress, working
from pangu_jax.data.text import documents
from pangu_jax.data.tokenizer import load_tokenizer
from pangu_jax.nn.how import How
from pangu_jax.task.language import as_dict, perplexity


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
