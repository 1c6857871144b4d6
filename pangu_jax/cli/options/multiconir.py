"""Measures whether a model still ranks well when queries have many conditions (MultiConIR)."""

from dataclasses import dataclass
from typing import Literal

from pangu_jax.eval.pairwise_metrics import Protocol
from pangu_jax.models.pooling_config import Attention, Pooling


@dataclass(frozen=True)
class Options:
    """Which model on which files, and how; or which two runs to compare."""

    model: str | None = None
    """"bm25", or the folder of an encoder, a decoder or a reranker: a run folder, or one in the
    Hugging Face layout."""
    data: str | None = None
    """MultiConIR's folder, or one with its .csv files, possibly .gz or .xz."""
    out: str | None = None
    """The run's folder, where an existing run is resumed; with --compare the picture to draw."""
    protocol: Protocol = "collection"
    """"official" does as the released code does, faults included: BM25 indexes only the documents
    that are compared, and a missing text ends the run; "collection" gives BM25 the statistics of
    all positives, and leaves out rows with a missing text."""
    compare: tuple[str, str] | None = None
    """Two run folders: the first's figures less the second's, on the same rows."""
    rows: int | None = None
    """How many rows of each file, from its start; None is all."""
    seed: int = 0
    """Seed of the intervals and tests."""
    orders: int | None = None
    """Also measure which condition moves the score, by its place in the query as it is and in this
    many random orders; None leaves that out."""
    query_prefix: str | None = None
    """What is put before every query; None is what the folder says."""
    document_prefix: str | None = None
    """What is put before every document; None is what the folder says."""
    pooling: Pooling | None = None
    """Which hidden states make a vector; None is what the folder says."""
    attention: Attention | None = None
    """For a decoder: causal or bidirectional attention; None is what the folder says."""
    pool_prefix: bool | None = None
    """For a decoder: whether the prefix's tokens are pooled too; None is what the folder says."""
    batch: int = 32
    """Texts computed at once."""
    max_length: int | None = None
    """Maximum tokens per text, special tokens included; None is what the folder says."""
    tokenizer: str | None = None
    """A tokenizer.json; None takes the checkpoint's own."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Type of the activations."""
