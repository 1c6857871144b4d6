"""Measures whether a model still ranks right when queries have many conditions (MultiConIR)."""

import dataclasses
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np

from pangu_jax.checkpoint.open import open_checkpoint
from pangu_jax.cli.embed import configured
from pangu_jax.cli.multiconir_report import compare_runs, load_table, write_report
from pangu_jax.cli.progress import Show, progress, working
from pangu_jax.core.cells import compute, open_results
from pangu_jax.core.config import check_size, to_json
from pangu_jax.core.digest import seal, sha256
from pangu_jax.core.errors import InputError
from pangu_jax.core.tree import content_hash
from pangu_jax.data import multiconir as data
from pangu_jax.data.multiconir import Part, find_parts, read_rows
from pangu_jax.data.tokenizer import load_tokenizer
from pangu_jax.eval import lexical, retrieval
from pangu_jax.eval.embedding import embed
from pangu_jax.eval.embedding_cache import embed_distinct
from pangu_jax.eval.lexical import Collection, Scorer
from pangu_jax.eval.multiconir import (
    Table,
    figures,
    oracle_graded,
    oracle_growing,
    score_graded,
    score_growing,
    texts,
    write_scores,
)
from pangu_jax.eval.retrieval import Protocol
from pangu_jax.models.encoder import Pooling
from pangu_jax.nn.how import How

BM25 = "bm25"
FLOORS: dict[str, Scorer | None] = {
    "length": lexical.length,
    "overlap": lexical.overlap,
    "constant": lexical.constant,
    "oracle": None,
}


@dataclass(frozen=True)
class Options:
    """Which model on which files, and how; or which two runs to compare."""

    model: str | None = None
    """"bm25", or a folder that holds an encoder: a run of ours or in the Hugging Face layout."""
    data: str | None = None
    """MultiConIR's folder, or one with its .csv files, possibly .gz or .xz."""
    out: str | None = None
    """The run folder, which goes on where it was stopped; with --compare the picture to draw."""
    protocol: Protocol = "collection"
    """"official" does as the released code, faults included: BM25 indexes just the documents that
    are compared, and a missing text ends it; "collection" gives BM25 the statistics of all
    positives, and leaves out what has a missing text."""
    compare: tuple[str, str] | None = None
    """Two run folders: the first's figures less the second's, on the same rows."""
    rows: int | None = None
    """How many rows of each file; None is all."""
    seed: int = 0
    """Of the intervals and tests."""
    query_prefix: str | None = None
    """What is put before every query; None is what the folder says."""
    document_prefix: str | None = None
    """What is put before every document; None is what the folder says."""
    pooling: Pooling | None = None
    """Which hidden states make a vector; None is what the folder says."""
    batch: int = 32
    """Texts computed at once."""
    max_length: int | None = None
    """Tokens that a text is cut to, special ones among them; None is what the folder says."""
    tokenizer: str | None = None
    """A tokenizer.json; None takes the checkpoint's own."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Type of the activations."""


@dataclass(frozen=True)
class Model:
    """What is measured.

    Attributes:
      about: what decides its scores, as JSON values.
      pairs_only: see `score_growing`.
      prepare: of a run's folder and results, a domain, its parts and progress, gives what gives
        the scorer of a part and its rows.
    """

    about: dict[str, Any]
    pairs_only: bool
    prepare: Callable[..., Callable[[Part, Sequence], Scorer]]


def main(options: Options) -> None:
    """Writes scores, results.json and report.md, and prints the single figures; or compares."""
    check_size("seed", options.seed, least=0)
    if options.compare is not None:
        _check(options, refused=("model", "data", "rows"), needed=("out",), by="--compare")
        print(compare_runs(*options.compare, str(options.out), seed=options.seed))
        return
    _check(options, needed=("model", "data", "out"), by="a run")
    if options.rows is not None:
        check_size("rows", options.rows)
    parts = find_parts(str(options.data))
    model = _bm25(options) if options.model == BM25 else _encoder(options)
    settings = _settings(options, model, parts)
    folder = Path(str(options.out))
    results = open_results(folder, settings)
    hashes = {name: seal(settings[name]) for name in ("model", "data", "protocol")}
    compute(folder, results, "hashes", lambda: hashes)
    with progress() as show:
        _measure(folder, results, options, model, parts, show)
    print(write_report(folder, settings, results))


def _check(options: Options, *, needed: tuple = (), refused: tuple = (), by: str) -> None:
    for name in (*needed, *refused):
        if (getattr(options, name) is None) == (name in needed):
            raise InputError(f"{by} {'needs' if name in needed else 'takes no'} --{name}")


def _settings(options: Options, model: Model, parts: list[Part]) -> dict[str, Any]:
    with working("reading the data"):
        hashes = {part.stem: data.content_hash(part) for part in parts}
    protocol = {
        "name": options.protocol,
        "comparison": "strictly greater; a tie is no win",
        "missing texts": "refused" if options.protocol == "official" else "left out",
        "rows": options.rows,
        "intervals": f"{retrieval.COVERAGE:.0%}, {retrieval.DRAWS} resamples of rows",
        "seed": options.seed,
    }
    return {"model": model.about, "data": hashes, "protocol": protocol}


def _measure(
    folder: Path,
    results: dict[str, Any],
    options: Options,
    model: Model,
    parts: list[Part],
    show: Show,
) -> None:
    """Fills the cells that are not there, domain by domain, so that texts of one are held."""
    cells = [(who, part, task) for part in parts for who in ("model", *FLOORS)
             for task in _tasks(part)]  # fmt: skip
    for domain in sorted({part.domain for part in parts}):
        wanted = [cell for cell in cells if cell[1].domain == domain]
        if all(_name(*cell) in results for cell in wanted):
            continue
        rows = {part: _rows(part, options) for part in parts if part.domain == domain}
        scorer_of = model.prepare(folder, results, domain, rows, show)
        for part, group in itertools.groupby(wanted, key=lambda cell: cell[1]):
            scorer = scorer_of(part, rows[part])
            for who, _, task in group:
                make = partial(
                    _cell, folder, results, (who, part, task), rows[part], scorer, options, model
                )
                compute(folder, results, _name(who, part, task), make)
                show("scoring, cells", sum(_name(*cell) in results for cell in cells), len(cells))


def _cell(
    folder: Path,
    results: dict[str, Any],
    cell: tuple[str, Part, int],
    rows: list,
    scorer: Scorer,
    options: Options,
    model: Model,
) -> dict[str, Any]:
    """Writes the scores of a scorer in a task, and gives their figures."""
    who, part, task = cell
    table = _table(who, task, rows, scorer, pairs_only=model.pairs_only)
    file = f"scores/{who}/{part.stem}_task{task}_results.csv"
    write_scores(folder / file, table)
    listed = load_table(folder, results, _name(who, part, 2)) if task == 3 else None
    found = figures(task, table, options.protocol, listed=listed, seed=options.seed)
    about = {"task": task, "domain": part.domain, "length": part.length}
    return {**about, "file": file, "sha256": sha256(folder / file), **found}


def _table(who: str, task: int, rows: list, scorer: Scorer, *, pairs_only: bool) -> Table:
    if who == "oracle":
        return oracle_growing(len(rows)) if task == 1 else oracle_graded(len(rows))
    floor = FLOORS.get(who)
    if task == 1:
        return score_growing(rows, floor or scorer, pairs_only=pairs_only or floor is not None)
    return score_graded(rows, floor or scorer, natural=task == 3)


def _tasks(part: Part) -> tuple[int, ...]:
    return (2, 3) if part.task == 2 else (part.task,)


def _name(who: str, part: Part, task: int) -> str:
    return f"{who}/{part.stem}/task{task}"


def _rows(part: Part, options: Options) -> list:
    rows = read_rows(part, missing=options.protocol == "collection")
    return list(itertools.islice(rows, options.rows))


def _bm25(options: Options) -> Model:
    """BM25 as the protocol has it."""
    for name in ("query_prefix", "document_prefix", "pooling", "max_length", "tokenizer"):
        if getattr(options, name) is not None:
            raise InputError(f"--{name.replace('_', '-')} is for encoders; bm25 reads words")
    alone = options.protocol == "official"
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


def _encoder(options: Options) -> Model:
    """An encoder: the cosine of a query's and a document's vector, times 100, in float32."""
    path = str(options.model)
    with working(f"reading {path}"):
        params, cfg, found = open_checkpoint(
            path, kind="encoder", by=f"`pangu-jax multiconir --model` ({BM25!r} aside)"
        )
    cfg, _ = configured(cfg, path, options.pooling)
    tokenizer = load_tokenizer(options.tokenizer or found, checkpoint=path)
    prefixes = [cfg.prefix if prefix is None else prefix
                for prefix in (options.document_prefix, options.query_prefix)]  # fmt: skip
    cfg = dataclasses.replace(cfg, prefix="", normalise=True)
    about = {
        "name": Path(path).resolve().name,
        "parameters": content_hash(params),
        "config": to_json(cfg),
        "tokenizer": tokenizer.digest,
        "document_prefix": prefixes[0],
        "query_prefix": prefixes[1],
        "max_length": options.max_length or cfg.text_length or cfg.max_length,
        "dtype": options.dtype,
        "score": "cosine times 100",
    }
    how = How(dtype=options.dtype)
    compute_vectors = partial(
        *(embed, params), cfg=cfg, tokenizer=tokenizer, batch=options.batch,
        max_length=options.max_length, how=how,
    )  # fmt: skip

    def prepare(folder: Path, results: dict, domain: str, rows: dict[Part, list], show: Show):
        wanted = (prefixes[query] + text for part in rows.values() for row in part
                  for text, query in texts(row) if text is not None)  # fmt: skip
        places, vectors = embed_distinct(
            *(folder, results, domain, wanted, compute_vectors),
            progress=partial(show, f"embedding {domain}, texts"),
        )

        def scores(query: str, documents: Sequence[str]) -> np.ndarray:
            at = [places[prefixes[0] + text] for text in documents]
            one = vectors[places[prefixes[1] + query]].astype(np.float64)
            return (100 * (vectors[at] * one).sum(1)).astype(np.float32).astype(np.float64)

        return lambda part, rows: scores

    return Model(about, False, prepare)
