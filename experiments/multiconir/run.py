"""MultiConIR: does tuning on rule-made pairs help with many conditions, and where do poolings look?

Source: "MultiConIR", arXiv 2503.08046, which finds that models rank worse the more conditions a
query has, that mean pooling leans on early conditions and last-token pooling on late ones. It
releases no tuning; the pairs and the measure of places are ours.

    python tools/get_model.py minilm minilm
    python experiments/multiconir/run.py --preset gpu --model minilm --data MultiConIR \
      --records movies_unused.jsonl.xz --decoder smollm2

Tunes an encoder by InfoNCE on pairs made from records of films, once a seed, beside the same tuning
with shuffled pairs, the model as it was, BM25 and the documents' length; then measures, for ways
of pooling of the encoder, of a decoder, and of causal encoders trained here, what each place of a
query of ten conditions is worth. No record is in both training and test, and names that occur in
the test are mapped to others. Writes runs/<name>/report.md; a run that was stopped goes on where it
was, cell by cell.

Not reproduced here: the paper's models and its data, so no figure here stands beside its figures.
"""

import dataclasses
from collections.abc import Iterator, Sequence
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from experiments.multiconir.config import PRESETS, Experiment, causal_encoder
from experiments.multiconir.measure import (
    Rows,
    domains,
    measured,
    measured_model,
    positions,
    read_test,
)
from experiments.multiconir.report import write_report
from pangu_jax.cli.stopping import script
from pangu_jax.core.config import to_json
from pangu_jax.core.digest import json_digest, sha256
from pangu_jax.core.tree import content_hash
from pangu_jax.data import multiconir
from pangu_jax.data.encoder_inputs import encode_for_decoder, encode_for_encoder, stacked
from pangu_jax.data.multiconir_fact import Record, keep_apart, overlap, read_records, refuse_names
from pangu_jax.data.multiconir_pair import pair_batches, told_apart
from pangu_jax.eval import lexical
from pangu_jax.eval.text_encoder import TextEncoder
from pangu_jax.models import embedder, encoder
from pangu_jax.models.encoder import EncoderConfig
from pangu_jax.models.pooling import Pooling
from pangu_jax.nn.how import How
from pangu_jax.study import options
from pangu_jax.study.cells import begin, cell, say
from pangu_jax.task.language import text_encoder
from pangu_jax.task.model import Model, load
from pangu_jax.train.contrastive import contrastive_loss, text_vectors
from pangu_jax.train.loop import LoopConfig, train
from pangu_jax.train.optimizer import OptimizerConfig, make_optimizer


@dataclasses.dataclass(frozen=True)
class Run:
    """What every cell works on.

    Attributes:
      experiment: the settings.
      model: the encoder that is tuned, as it was.
      decoder: the decoder that is studied; None for none.
      rows: the test.
      records: to train on, apart from the test.
    """

    experiment: Experiment
    model: TextEncoder
    decoder: Model | None
    rows: Rows
    records: list[Record]


def main() -> None:
    given = _options()
    experiment, folder = options.chosen(given, PRESETS, "multiconir")
    rows = read_test(given.data, experiment.rows)
    read = read_records(given.records)
    run = prepare(experiment, rows, read, model=given.model, decoder=given.decoder)
    settings = {
        "model": _identity(run.model),
        "decoder": None if run.decoder is None else _identity(run.decoder),
        "data": {part.stem: multiconir.content_hash(part) for part in rows},
        "records": sha256(given.records),
    }
    cells = begin(folder, experiment, **settings)
    compute = partial(cell, cells, shown=_shown)
    everything = [row for own in rows.values() for row in own]
    compute("overlap", lambda: {**overlap(read, everything), "trained": len(run.records)})
    for name, scorer_of in _words().items():
        compute(name, partial(measured, rows, scorer_of))
    compute("base", lambda: _measured(run, run.model))
    for seed in experiment.seeds:
        for name in ("tuned", "shuffled"):
            compute(f"{name}/{seed}", lambda n=name, s=seed: _measured(run, _tuned(run, n, s)))
    for pooling in experiment.poolings:
        compute(f"pooling/encoder/{pooling}", partial(_studied, run, run.model, pooling))
    if run.decoder is not None:
        for pooling in experiment.decoder_poolings:
            model = text_encoder(run.decoder, pooling=pooling)
            compute(f"pooling/decoder/{pooling}", partial(_studied, run, model, pooling))
    for pooling in experiment.causal_poolings:
        for seed in experiment.seeds:
            compute(f"pooling/causal {pooling}/{seed}", partial(_causal, run, pooling, seed))
    say(f"{write_report(folder, experiment, cells.results)} is the report")


def _identity(model: TextEncoder | Model) -> list[str]:
    """What tells a model from another one: parameters, configuration and tokens."""
    cfg = json_digest(to_json(model.cfg))
    return [content_hash(model.params), cfg, getattr(model.tokenizer, "digest", "")]


def prepare(
    experiment: Experiment,
    rows: Rows,
    records: Sequence[Record],
    *,
    model: str | Path,
    decoder: str | Path | None = None,
) -> Run:
    """The models, and the records apart from the test.

    Raises:
      InputError: a model cannot be read, or records cannot be kept apart.
    """
    everything = [row for own in rows.values() for row in own]
    kept = keep_apart(records, everything, seed=0)
    refuse_names(kept, everything)  # whatever was done to keep them apart
    kept = told_apart(kept)
    opened = text_encoder(load(model, dtype="float32"))
    other = None if decoder is None else load(decoder, dtype="float32")
    return Run(experiment, opened, other, rows, kept)


def batches(
    run: Run, model: TextEncoder, *, seed: int, shuffled: bool, step: int = 0
) -> Iterator[dict[str, Any]]:
    """What is trained on from a step on, as `contrastive_loss` wants it."""
    experiment = run.experiment

    def encode(texts: Sequence[str]) -> dict[str, Any]:
        if isinstance(model.cfg, EncoderConfig):
            found = encode_for_encoder(model.tokenizer, texts, experiment.length)
        else:
            prefixes = [""] * len(texts)
            found = encode_for_decoder(model.tokenizer, texts, experiment.length, prefixes=prefixes)
        return stacked(list(found), experiment.length)

    return pair_batches(
        run.records,
        encode,
        batch=experiment.batch,
        negatives=experiment.negatives,
        seed=seed,
        shuffled=shuffled,
        start_step=step,
    )


def _trained(
    run: Run,
    model: TextEncoder,
    params: Any,
    *,
    label: str,
    seed: int,
    shuffled: bool = False,
    steps: int,
    optimizer: OptimizerConfig,
) -> TextEncoder:
    """The model after its training from these parameters, or None for fresh ones."""
    experiment, cfg = run.experiment, model.cfg
    room = encoder if isinstance(cfg, EncoderConfig) else embedder
    # The step gives the memory of its parameters away, and other cells start from the same ones.
    own = None if params is None else jax.tree.map(jnp.copy, params)
    state = train(
        _loss(cfg, experiment.temperature, experiment.dtype),
        room.spec(cfg),
        lambda step: batches(run, model, seed=seed, shuffled=shuffled, step=step),
        cfg=LoopConfig(steps, accumulate=experiment.accumulate, seed=seed),
        optimizer=_optimizer(optimizer, steps),
        folder=None,
        params=own,
        unit="pairs",
        label=label,
    )
    return dataclasses.replace(model, params=state.params)


@lru_cache(maxsize=8)
def _loss(cfg: Any, temperature: float, dtype: str):
    """One loss, so that trainings of the same model share a compilation."""
    return contrastive_loss(text_vectors(cfg, how=How(dtype=dtype)), temperature=temperature)


@lru_cache(maxsize=8)
def _optimizer(cfg: OptimizerConfig, steps: int):
    return make_optimizer(cfg, steps)


def _tuned(run: Run, name: str, seed: int) -> TextEncoder:
    return _trained(
        run,
        run.model,
        run.model.params,
        label=f"{name}/{seed}",
        seed=seed,
        shuffled=name == "shuffled",
        steps=run.experiment.steps,
        optimizer=run.experiment.tuning,
    )


def _measured(run: Run, model: TextEncoder) -> dict[str, Any]:
    return measured_model(model, run.rows, batch=run.experiment.measured_batch)


def _studied(run: Run, model: TextEncoder, pooling: Pooling) -> dict[str, Any]:
    """What each place is worth by that pooling, by domain."""
    pooled = dataclasses.replace(model, cfg=dataclasses.replace(model.cfg, pooling=pooling))
    experiment, found = run.experiment, {}
    for domain in domains(run.rows):
        part = next(part for part in run.rows if part.domain == domain and part.task == 1)
        found[domain] = positions(
            pooled, run.rows[part], orders=experiment.orders, batch=experiment.measured_batch
        )
    return found


def _causal(run: Run, pooling: Pooling, seed: int) -> dict[str, Any]:
    """The same of a causal encoder that is trained here with that pooling, and how good it is."""
    experiment = run.experiment
    cfg = causal_encoder(experiment, run.model.tokenizer, pooling)
    model = TextEncoder({}, cfg, run.model.tokenizer)
    model = _trained(
        run,
        model,
        None,
        label=f"causal {pooling}/{seed}",
        seed=seed,
        steps=experiment.causal_steps,
        optimizer=experiment.causal_training,
    )
    return {**_studied(run, model, pooling), "measured": _measured(run, model)}


def _words() -> dict[str, Any]:
    """Scorers of words, by name: of a file and its rows each gives the scorer."""

    def collection(part: multiconir.Part, rows: list) -> lexical.Scorer:
        first = (row.positive if part.task == 1 else row.documents[0] for row in rows)
        return lexical.CollectionBM25(text for text in first if text is not None).scores

    return {
        "bm25": collection,
        "bm25 official": lambda part, rows: lexical.candidate_bm25,
        "length": lambda part, rows: lexical.length,
    }


def _shown(found: dict[str, Any]) -> str:
    tests = found.get("measured", found)
    said = [
        f"{name} WR_10 {value['task1']['win_rate'][-1]:.3f}"
        for name, value in tests.items()
        if isinstance(value, dict) and "task1" in value
    ]
    said += [
        f"{name} lean {lean:.3f}"
        for name, value in found.items()
        if isinstance(value, dict) and "shuffled" in value
        if (lean := value["shuffled"]["lean"]["value"]) is not None
    ]
    return ", ".join(said) or "done"


def _options():
    parser = options.parser(__doc__, PRESETS, data=None)
    parser.add_argument("--data", required=True, help="MultiConIR's folder, or its files in one")
    parser.add_argument("--records", required=True, help="records of films to train on, .jsonl")
    parser.add_argument("--model", required=True, help="the encoder that is tuned, a folder")
    parser.add_argument("--decoder", help="a decoder to study: a folder, or a GGUF file")
    parser.add_argument("--steps", type=options.positive, help="of the tuning; the preset's")
    parser.add_argument("--seeds", nargs="+", type=int, help="the preset's if left out")
    return parser.parse_args()


if __name__ == "__main__":
    script(main)
