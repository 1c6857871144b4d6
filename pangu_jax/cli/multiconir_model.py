"""What `pangu-jax multiconir` measures: BM25 or an encoder, as something that scores documents."""

import dataclasses
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from pangu_jax.checkpoint.open import open_checkpoint
from pangu_jax.cli.embed import configured
from pangu_jax.cli.progress import Show, working
from pangu_jax.core.config import check_size, to_json
from pangu_jax.core.errors import InputError
from pangu_jax.core.tree import content_hash
from pangu_jax.data.multiconir import Part
from pangu_jax.data.tokenizer import load_tokenizer
from pangu_jax.eval import lexical
from pangu_jax.eval.embedding import cut_length, embed
from pangu_jax.eval.embedding_cache import embed_distinct
from pangu_jax.eval.lexical import Collection, Scorer
from pangu_jax.eval.multiconir import texts
from pangu_jax.nn.how import How

BM25 = "bm25"
_ENCODERS = ("query_prefix", "document_prefix", "pooling", "max_length", "tokenizer")


class Options(Protocol):
    """What is asked for; see `cli.multiconir`."""

    model: str | None
    protocol: Any
    orders: int | None
    query_prefix: str | None
    document_prefix: str | None
    pooling: Any
    batch: int
    max_length: int | None
    tokenizer: str | None
    dtype: Any


@dataclasses.dataclass(frozen=True)
class Model:
    """What is measured.

    Attributes:
      about: what decides its scores, as JSON values.
      pairs_only: see `eval.multiconir.score_growing`.
      prepare: of a run's folder and results, a domain, the rows of its parts, more queries than
        theirs, and progress, gives what gives the scorer of a part and its rows.
    """

    about: dict[str, Any]
    pairs_only: bool
    prepare: Callable[..., Callable[[Part, Sequence], Scorer]]


def bm25_model(options: Options) -> Model:
    """BM25 as the protocol has it.

    Raises:
      InputError: an option is for encoders, or orders are to be studied by fresh indexes.
    """
    for name in _ENCODERS:
        if getattr(options, name) is not None:
            raise InputError(f"--{name.replace('_', '-')} is for encoders; bm25 reads words")
    alone = options.protocol == "official"
    if alone and options.orders is not None:
        raise InputError(
            "--orders needs scores that do not depend on what else is compared, which BM25 has by "
            "--protocol collection"
        )
    about = {
        "name": BM25,
        "by": "rank_bm25, k1 1.5, b 0.75",
        "words": "lower case, split at white space" if alone else r"lower case, \w+",
        "frequencies": "of the documents that are compared" if alone else "of the part's positives",
    }
    if not alone:
        about["weight"] = "log(1 + (N - df + 0.5) / (df + 0.5))"

    def scorer(part: Part, rows: Sequence) -> Scorer:
        if alone:
            return lexical.fresh_bm25
        first = (row.positive if part.task == 1 else row.documents[0] for row in rows)
        return Collection(text for text in first if text is not None).scores

    return Model(about, alone, lambda *_: scorer)


def encoder_model(options: Options) -> Model:
    """An encoder: the cosine of a query's and a document's vector, times 100, in float32.

    Raises:
      InputError: the folder holds none, or nobody says how it pools.
    """
    check_size("batch", options.batch)
    path = str(options.model)
    with working(f"reading {path}"):
        params, cfg, found = open_checkpoint(
            path, kind="encoder", by=f"`pangu-jax multiconir --model` ({BM25!r} aside)"
        )
    cfg, _ = configured(cfg, path, options.pooling)
    tokenizer = load_tokenizer(options.tokenizer or found, checkpoint=path)
    query, document = (
        cfg.prefix if prefix is None else prefix
        for prefix in (options.query_prefix, options.document_prefix)
    )
    cfg = dataclasses.replace(cfg, prefix="", normalise=True)
    about = {
        "name": Path(path).resolve().name,
        "parameters": content_hash(params),
        "config": to_json(cfg),
        "tokenizer": tokenizer.digest,
        "document_prefix": document,
        "query_prefix": query,
        "max_length": cut_length(cfg, options.max_length),
        "dtype": options.dtype,
        "score": "cosine times 100",
    }

    def vectors(some: Sequence[str]):
        return embed(
            params, some, cfg=cfg, tokenizer=tokenizer, batch=options.batch,
            max_length=options.max_length, how=How(dtype=options.dtype),
        )  # fmt: skip

    return Model(about, False, partial(_prepare, vectors, query, document))


def _prepare(
    embed_texts: Callable,
    query_prefix: str,
    document_prefix: str,
    folder: Path,
    results: dict[str, Any],
    domain: str,
    rows: dict[Part, list],
    more: Sequence[str | None],
    show: Show,
) -> Callable[[Part, Sequence], Scorer]:
    """Embeds each different text of a domain once."""
    pairs = [pair for part in rows.values() for row in part for pair in texts(row)]
    pairs += [(query, True) for query in more]
    wanted = {
        (query_prefix if is_query else document_prefix) + text
        for text, is_query in pairs if text is not None
    }  # fmt: skip
    progress = partial(show, f"embedding {domain}, texts")
    places, vectors = embed_distinct(folder, results, domain, wanted, embed_texts, progress)

    def scores(query: str, documents: Sequence[str]) -> np.ndarray:
        # Summed in float64, so that equal texts have equal scores wherever they stand.
        one = vectors[places[query_prefix + query]].astype(np.float64)
        others = vectors[[places[document_prefix + text] for text in documents]]
        return (100 * (others * one).sum(1)).astype(np.float32).astype(np.float64)

    return lambda part, rows: scores
