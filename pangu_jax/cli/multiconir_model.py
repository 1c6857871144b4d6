"""The models that `pangu-jax multiconir` measures, as scorers of documents.

They are BM25, models of vectors (an encoder, or a decoder whose states are pooled), and rerankers.
"""

import dataclasses
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from pangu_jax.checkpoint.open import checkpoint_format, open_checkpoint, read_cfg
from pangu_jax.cli.options.multiconir import Options
from pangu_jax.cli.progress import Show, working
from pangu_jax.core.config import check_size, to_json
from pangu_jax.core.errors import InputError
from pangu_jax.core.tree import content_hash
from pangu_jax.data.multiconir import Part
from pangu_jax.data.tokenizer import Tokenizer, load_tokenizer
from pangu_jax.eval import lexical
from pangu_jax.eval.embedding import Embeddings, classify, cut_length, embed
from pangu_jax.eval.embedding_cache import Cosines, embed_distinct, wanted_texts
from pangu_jax.eval.lexical import CollectionBM25, Scorer
from pangu_jax.eval.text_encoder import open_text_encoder
from pangu_jax.models.encoder import EncoderConfig
from pangu_jax.nn.how import How

BM25 = "bm25"
_BY = f"`pangu-jax multiconir --model` ({BM25!r} aside)"
_NEURAL = (
    "query_prefix", "document_prefix", "pooling", "attention", "pool_prefix", "max_length",
    "tokenizer",
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Model:
    """A model to measure.

    Attributes:
      about: everything that decides its scores, as JSON values.
      pairs_only: see `eval.multiconir.score_task1`.
      prepare: `prepare(folder, results, domain, visit, show)` computes what scoring a domain needs
        and returns `scorer(part, rows)`, which makes the scorer of a part. `folder` and `results`
        are the run's, `visit(scorer)` calls a scorer with everything that is to be scored in the
        domain, and `show` shows progress.
    """

    about: dict[str, Any]
    pairs_only: bool
    prepare: Callable[..., Callable[[Part, Sequence], Scorer]]


def bm25_model(options: Options) -> Model:
    """BM25, by the protocol that was asked for.

    Raises:
      InputError: an option is for neural models, or --orders is given with the official protocol,
        whose scores depend on what else is compared.
    """
    for name in _NEURAL:
        if getattr(options, name) is not None:
            raise InputError(f"--{name.replace('_', '-')} is for models; bm25 reads words")
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
            return lexical.candidate_bm25
        first = (row.positive if part.task == 1 else row.documents[0] for row in rows)
        return CollectionBM25(text for text in first if text is not None).scores

    return Model(about, alone, lambda *_: scorer)


def neural_model(options: Options) -> Model:
    """The model of a folder: a reranker if it is an encoder with classes, else one of vectors.

    An encoder with classes is one of vectors where the folder or an option says how to pool.

    Raises:
      InputError: the folder holds neither, or an option is not for its kind of model.
    """
    check_size("batch", options.batch)
    path = str(options.model)
    cfg = read_cfg(path) if checkpoint_format(path) in ("run", "hf") else None
    scores = isinstance(cfg, EncoderConfig) and cfg.classes
    if scores and cfg.pooling is None and options.pooling is None:
        return reranker_model(options)
    return vector_model(options)  # which says what else there is


def vector_model(options: Options) -> Model:
    """A model whose score is 100 times the cosine of a query's and a document's vector, float32.

    Raises:
      InputError: the folder holds no such model, or neither it nor an option says how to pool.
    """
    path = str(options.model)
    with working(f"reading {path}"):
        model = open_text_encoder(
            path,
            pooling=options.pooling,
            attention=options.attention,
            pool_prefix=options.pool_prefix,
            max_length=options.max_length,
            tokenizer=options.tokenizer,
            how=How(dtype=options.dtype),
            by=_BY,
        )
    cfg = dataclasses.replace(model.cfg, prefix="", normalize=True)
    prefixes = _prefixes(options, model.cfg)
    about = _about(options, model.params, cfg, model.tokenizer, prefixes) | {
        "score": "cosine times 100"
    }

    def vectors(some: Sequence[tuple[str, str]]) -> Embeddings:
        return embed(
            model.params, [text for _, text in some], cfg=cfg, tokenizer=model.tokenizer,
            prefixes=[prefix for prefix, _ in some], batch=options.batch,
            max_length=options.max_length, how=model.how,
        )  # fmt: skip

    return Model(about, False, partial(_prepare_vectors, vectors, *prefixes))


def reranker_model(options: Options) -> Model:
    """A model that scores a query and a document together.

    By the official protocol the score is 100 times the sigmoid of the model's logit; otherwise it
    is the logit itself, which ranks the same, without ties where the sigmoid rounds to 0 or 1.

    Raises:
      InputError: the model has more than one score, or an option is for models of vectors.
    """
    path, official = str(options.model), options.protocol == "official"
    for name in ("attention", "pool_prefix"):
        if getattr(options, name) is not None:
            raise InputError(f"--{name.replace('_', '-')} is for decoders; {path} is a reranker")
    with working(f"reading {path}"):
        params, cfg, found = open_checkpoint(path, kind="encoder", by=_BY)
    if cfg.classes != 1:
        raise InputError(
            f"{path} scores {cfg.classes} classes; a reranker gives one score for a pair of texts"
        )
    tokenizer = load_tokenizer(options.tokenizer or found, checkpoint=path)
    prefixes = _prefixes(options, cfg)
    cfg = dataclasses.replace(cfg, prefix="")
    about = _about(options, params, cfg, tokenizer, prefixes) | {
        "score": "sigmoid of the logit, times 100" if official else "logit"
    }

    def logits(some: Sequence[tuple[str, str]]) -> Embeddings:
        return classify(
            params, some, cfg=cfg, tokenizer=tokenizer, batch=options.batch,
            max_length=options.max_length, how=How(dtype=options.dtype),
        )  # fmt: skip

    return Model(about, official, partial(_prepare_pairs, logits, *prefixes, official))


def _prefixes(options: Options, cfg: Any) -> tuple[str, str]:
    """The prefixes of queries and of documents."""
    asked = (options.query_prefix, options.document_prefix)
    query, document = (cfg.prefix if prefix is None else prefix for prefix in asked)
    return query, document


def _about(
    options: Options, params: Any, cfg: Any, tokenizer: Tokenizer, prefixes: tuple[str, str]
) -> dict[str, Any]:
    """What decides a model's outputs, whatever scores are then made of them."""
    return {
        "name": Path(str(options.model)).resolve().name,
        "parameters": content_hash(params),
        "config": to_json(cfg),
        "tokenizer": tokenizer.digest,
        "document_prefix": prefixes[1],
        "query_prefix": prefixes[0],
        "max_length": cut_length(cfg, options.max_length),
        "dtype": options.dtype,
    }


def _prepare_vectors(
    vectors_of: Callable,
    query_prefix: str,
    document_prefix: str,
    folder: Path,
    results: dict[str, Any],
    domain: str,
    visit: Callable[[Scorer], None],
    show: Show,
) -> Callable[[Part, Sequence], Scorer]:
    """Embeds each distinct text of a domain once; see `Model.prepare`."""
    prefixes = (query_prefix, document_prefix)
    wanted = wanted_texts(visit, prefixes)
    progress = partial(show, f"embedding {domain}, texts")
    places, vectors = embed_distinct(folder, results, domain, wanted, vectors_of, progress)
    scorer = Cosines(places, vectors, prefixes).scores
    return lambda part, rows: scorer


def _prepare_pairs(
    logits_of: Callable,
    query_prefix: str,
    document_prefix: str,
    official: bool,
    folder: Path,
    results: dict[str, Any],
    domain: str,
    visit: Callable[[Scorer], None],
    show: Show,
) -> Callable[[Part, Sequence], Scorer]:
    """Scores each distinct pair of a domain once; see `Model.prepare`."""
    wanted = set()

    def pairs(query: str, documents: Sequence[str]) -> list[tuple[str, str]]:
        return [(query_prefix + query, document_prefix + text) for text in documents]

    def note(query: str, documents: Sequence[str]) -> np.ndarray:
        wanted.update(pairs(query, documents))
        return np.zeros(len(documents))

    visit(note)
    progress = partial(show, f"scoring {domain}, pairs")
    places, logits = embed_distinct(folder, results, domain, wanted, logits_of, progress)

    def scores(query: str, documents: Sequence[str]) -> np.ndarray:
        found = logits[[places[pair] for pair in pairs(query, documents)], 0].astype(np.float64)
        with np.errstate(over="ignore"):
            return 100 / (1 + np.exp(-found)) if official else found

    return lambda part, rows: scores
