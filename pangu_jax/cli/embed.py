"""Runs `pangu-jax embed`; its options are in `cli/options/embed.py`."""

from pathlib import Path

import numpy as np

from pangu_jax.cli.options.embed import Options
from pangu_jax.cli.progress import progress, working
from pangu_jax.core.errors import InputError
from pangu_jax.core.files import atomic_write
from pangu_jax.data.text import lines
from pangu_jax.eval.embedding import embed
from pangu_jax.eval.text_encoder import open_text_encoder
from pangu_jax.models.embedder import EmbedderConfig
from pangu_jax.nn.how import How


def main(options: Options) -> None:
    """Writes the vectors, and prints how many there are and how they were made."""
    if Path(options.out).suffix != ".npy":
        raise InputError(f"--out is {options.out!r}; vectors are written as .npy")
    with working(f"reading {options.checkpoint}"):
        model = open_text_encoder(
            options.checkpoint,
            pooling=options.pooling,
            attention=options.attention,
            pool_prefix=options.pool_prefix,
            prefix=options.prefix,
            max_length=options.max_length,
            tokenizer=options.tokenizer,
            how=How(dtype=options.dtype),
            by="`pangu-jax embed`",
        )
    cfg = model.cfg
    texts = [document.text for document in lines(options.data, field=options.field)]
    with progress() as show:
        result = embed(
            model.params,
            texts,
            cfg=cfg,
            tokenizer=model.tokenizer,
            batch=options.batch,
            max_length=options.max_length,
            how=model.how,
            progress=lambda done, total: show("embedding, texts", done, total),
        )
    with atomic_write(options.out, "wb") as file:
        np.save(file, result.vectors)
    print(f"vectors    {len(texts):,} of width {cfg.width:,}")
    said = options.checkpoint if options.pooling is None else "--pooling"
    print(f"pooling    {cfg.pooling}{', scaled to length 1' * cfg.normalize} (by {said})")
    if isinstance(cfg, EmbedderConfig):
        print(f"attention  {'causal' if cfg.causal else 'bidirectional'}")
    if cfg.prefix:
        left = isinstance(cfg, EmbedderConfig) and not cfg.pool_prefix
        print(f"prefix     {cfg.prefix!r}{', not pooled' * left}")
    print(f"truncated  {result.cut:,} texts, to {result.length:,} tokens")
