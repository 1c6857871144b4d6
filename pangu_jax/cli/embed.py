"""Writes one vector a text, by an encoder such as those of sentence-transformers."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import tyro

from pangu_jax.checkpoint.open import open_checkpoint
from pangu_jax.cli.progress import progress, working
from pangu_jax.core.errors import InputError
from pangu_jax.core.files import atomic_write
from pangu_jax.data.text import lines
from pangu_jax.data.tokenizer import load_tokenizer
from pangu_jax.eval.embedding import embed
from pangu_jax.models.encoder import EncoderConfig, Pooling
from pangu_jax.nn.how import How


@dataclass(frozen=True)
class Options:
    """Which texts, by which model, and how their vectors are made."""

    checkpoint: Annotated[str, tyro.conf.Positional]
    """A folder in the Hugging Face layout, or a run folder, that holds an encoder."""
    data: str
    """A .jsonl file with a text a record, or another text file with one a line; .gz too."""
    out: str
    """The .npy file to write: float32 [texts, width], in the order of the texts."""
    field: str = "text"
    """The key of the text in .jsonl records."""
    pooling: Pooling | None = None
    """Which hidden states make the vector; None is what the folder says."""
    batch: int = 32
    """Texts computed at once."""
    max_length: int | None = None
    """Tokens that a text is cut to, special ones among them; None is what the folder says."""
    prefix: str | None = None
    """What is put before every text, such as "query: "; None is what the folder says."""
    tokenizer: str | None = None
    """A tokenizer.json; None takes the checkpoint's own."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Type of the activations."""


def main(options: Options) -> None:
    """Writes the vectors, and prints how many there are and how they were made."""
    if Path(options.out).suffix != ".npy":
        raise InputError(f"--out is {options.out!r}; vectors are written as .npy")
    with working(f"reading {options.checkpoint}"):
        params, cfg, found = open_checkpoint(
            options.checkpoint, kind="encoder", by="`pangu-jax embed`"
        )
    cfg, said = configured(cfg, options.checkpoint, options.pooling, options.prefix)
    tokenizer = load_tokenizer(options.tokenizer or found, checkpoint=options.checkpoint)
    texts = [document.text for document in lines(options.data, field=options.field)]
    with progress() as show:
        result = embed(
            params,
            texts,
            cfg=cfg,
            tokenizer=tokenizer,
            batch=options.batch,
            max_length=options.max_length,
            how=How(dtype=options.dtype),
            progress=lambda done, total: show("embedding, texts", done, total),
        )
    with atomic_write(options.out, "wb") as file:
        np.save(file, result.vectors)
    print(f"vectors    {len(texts):,} of width {cfg.width:,}")
    print(f"pooling    {cfg.pooling}{', scaled to length 1' * cfg.normalise} (by {said})")
    if cfg.prefix:
        print(f"prefix     {cfg.prefix!r}")
    print(f"truncated  {result.cut:,} texts, to {result.length:,} tokens")


def configured(
    cfg: EncoderConfig, checkpoint: str, pooling: Pooling | None, prefix: str | None = None
) -> tuple[EncoderConfig, str]:
    """An encoder with the pooling and prefix that were asked for, and who said what pooling.

    Raises:
      InputError: nobody did.
    """
    if pooling is None and cfg.pooling is None:
        raise InputError(
            f"{checkpoint} does not say how hidden states make a vector (modules.json of "
            "sentence-transformers would); give --pooling cls, mean, weighted, last "
            "or max"
        )
    changes = {"pooling": pooling, "prefix": prefix}
    changes = {name: value for name, value in changes.items() if value is not None}
    said = checkpoint if pooling is None else "--pooling"
    return dataclasses.replace(cfg, **changes), said
