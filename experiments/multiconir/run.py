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
was, cell by cell, and several processes may share the cells (--workers).

Not reproduced here: the paper's models and its data, so no figure here stands beside its figures.
"""

import argparse
import dataclasses
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, cast

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
from pangu_jax.core.digest import sha256
from pangu_jax.core.errors import InputError
from pangu_jax.data import multiconir
from pangu_jax.data.encoder_inputs import encode_for_decoder, encode_for_encoder, stacked
from pangu_jax.data.multiconir_fact import Record, keep_apart, overlap, read_records, refuse_names
from pangu_jax.data.multiconir_pair import pair_batches, told_apart
from pangu_jax.eval import lexical
from pangu_jax.eval.text_encoder import TextEncoder
from pangu_jax.models import embedder, encoder
from pangu_jax.models.encoder import EncoderConfig
from pangu_jax.models.pooling_config import Pooling
from pangu_jax.nn.how import How
from pangu_jax.study import options
from pangu_jax.study.cells import say
from pangu_jax.study.workers import begin, collect, share, work
from pangu_jax.task.language import text_encoder
from pangu_jax.task.model import Model, load
from pangu_jax.train.contrastive import contrastive_loss, text_vectors
from pangu_jax.train.loop import train
from pangu_jax.train.loop_config import LoopConfig
from pangu_jax.train.optimizer import make_optimizer
from pangu_jax.train.optimizer_config import OptimizerConfig


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
    if given.worker:
        _work(given, experiment, folder, rows)
        return
    settings = {
        "model": _files(given.model),
        "decoder": None if given.decoder is None else _files(given.decoder),
        "data": {part.stem: multiconir.content_hash(part) for part in rows},
        "records": sha256(given.records),
    }
    begin(folder, {**to_json(experiment), **settings})
    if given.workers == 1:
        _work(given, experiment, folder, rows)
    else:  # this process leaves the device alone
        share(folder, "experiments.multiconir.run", given.workers, seconds=given.seconds)
    results, names = collect(folder), cell_names(experiment, decoder=given.decoder is not None)
    done = sum(name in results for name in names)
    say(f"{done} of {len(names)} cells are done")
    if done == len(names):
        say(f"{write_report(folder, experiment, results)} is the report")


def cell_names(experiment: Experiment, *, decoder: bool) -> list[str]:
    """All cells, in the order in which they are taken."""
    found = ["overlap", "base"]
    found += [f"{name}-{seed}" for seed in experiment.seeds for name in ("tuned", "shuffled")]
    found += [
        f"pooling-causal-{pooling}-{seed}"
        for seed in experiment.seeds
        for pooling in experiment.causal_poolings
    ]
    if decoder:
        found += [f"pooling-decoder-{pooling}" for pooling in experiment.decoder_poolings]
    found += [f"pooling-encoder-{pooling}" for pooling in experiment.poolings]
    return [*found, *_words()]


def _work(given: Any, experiment: Experiment, folder: Path, rows: Rows) -> None:
    """Computes cells until none is left that nobody has taken."""
    read = read_records(given.records)
    run = prepare(experiment, rows, read, model=given.model, decoder=given.decoder)

    def make(name: str, *_: Any) -> dict[str, Any]:
        began = time.monotonic()
        return {**_cell(run, read, name), "seconds": time.monotonic() - began}

    names = cell_names(experiment, decoder=run.decoder is not None)
    work(folder, {name: partial(make, name) for name in names}, shown=_shown, seconds=given.seconds)


def _cell(run: Run, read: Sequence[Record], name: str) -> dict[str, Any]:
    """What the cell of that name is: JSON values."""
    words = _words()
    if name in words:
        return measured(run.rows, words[name])
    if name == "overlap":
        everything = [row for own in run.rows.values() for row in own]
        return {**overlap(read, everything), "trained": len(run.records)}
    kind, *rest = name.split("-")
    if kind == "base":
        return _measured(run, run.model)
    if kind != "pooling":
        model, seen = _tuned(run, kind, int(rest[0]))
        return {**_measured(run, model), "training_texts": seen}
    pooling = cast(Pooling, rest[1])
    if rest[0] == "causal":
        return _causal(run, pooling, int(rest[2]))
    if rest[0] == "encoder":
        return _studied(run, run.model, pooling)
    assert run.decoder is not None  # its cells are named only where there is one
    return _studied(run, text_encoder(run.decoder, pooling=pooling), pooling)


def _files(path: str) -> dict[str, str]:
    """What tells a model from another one without the device: the hashes of its files."""
    if not Path(path).exists():
        raise InputError(f"{path} does not exist; give a model's folder or file")
    files = [Path(path)] if Path(path).is_file() else sorted(Path(path).rglob("*"))
    return {str(file.relative_to(path)): sha256(file) for file in files if file.is_file()}


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
    run: Run,
    model: TextEncoder,
    *,
    seed: int,
    shuffled: bool,
    step: int = 0,
    seen: Counter[str] | None = None,
) -> Iterator[dict[str, Any]]:
    """What is trained on from a step on, as `contrastive_loss` wants it.

    Counts into `seen` the "texts" that were prepared, and those of them that were "cut".
    """
    experiment, counted = run.experiment, Counter() if seen is None else seen

    def encode(texts: Sequence[str]) -> dict[str, Any]:
        if isinstance(model.cfg, EncoderConfig):
            found = encode_for_encoder(model.tokenizer, texts, experiment.length)
        else:
            prefixes = [""] * len(texts)
            found = encode_for_decoder(model.tokenizer, texts, experiment.length, prefixes=prefixes)
        found = list(found)
        counted.update(texts=len(found), cut=sum(text.cut for text in found))
        return stacked(found, experiment.length)

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
) -> tuple[TextEncoder, dict[str, int]]:
    """The model after its training from these parameters, or None for fresh ones; texts seen."""
    experiment, cfg = run.experiment, model.cfg
    seen = Counter(texts=0, cut=0)
    room = encoder if isinstance(cfg, EncoderConfig) else embedder
    # The step gives the memory of its parameters away, and other cells start from the same ones.
    own = None if params is None else jax.tree.map(jnp.copy, params)
    state = train(
        _loss(cfg, experiment.temperature, experiment.dtype),
        room.spec(cfg),
        lambda step: batches(run, model, seed=seed, shuffled=shuffled, step=step, seen=seen),
        cfg=LoopConfig(steps, accumulate=experiment.accumulate, seed=seed),
        optimizer=_optimizer(optimizer, steps),
        folder=None,
        params=own,
        unit="pairs",
        label=label,
    )
    return dataclasses.replace(model, params=state.params), dict(seen)


@lru_cache(maxsize=8)
def _loss(cfg: Any, temperature: float, dtype: str):
    """One loss, so that trainings of the same model share a compilation."""
    return contrastive_loss(text_vectors(cfg, how=How(dtype=dtype)), temperature=temperature)


@lru_cache(maxsize=8)
def _optimizer(cfg: OptimizerConfig, steps: int):
    return make_optimizer(cfg, steps)


def _tuned(run: Run, name: str, seed: int) -> tuple[TextEncoder, dict[str, int]]:
    return _trained(
        run,
        run.model,
        run.model.params,
        label=f"{name}-{seed}",
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
    model, seen = _trained(
        run,
        model,
        None,
        label=f"causal-{pooling}-{seed}",
        seed=seed,
        steps=experiment.causal_steps,
        optimizer=experiment.causal_training,
    )
    tested = {"measured": _measured(run, model), "training_texts": seen}
    return {**_studied(run, model, pooling), **tested}


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
    parser = options.parser(__doc__, PRESETS, data=None, seeds="the preset's if left out")
    parser.add_argument("--data", required=True, help="MultiConIR's folder, or its files in one")
    parser.add_argument("--records", required=True, help="records of films to train on, .jsonl")
    parser.add_argument("--model", required=True, help="the encoder that is tuned, a folder")
    parser.add_argument("--decoder", help="a decoder to study: a folder, or a GGUF file")
    parser.add_argument("--steps", type=options.positive, help="of the tuning; the preset's")
    parser.add_argument(
        "--workers", type=options.positive, default=1, help="processes that share the device"
    )
    parser.add_argument(
        "--seconds", type=float, help="after so long no cell is begun, and workers are ended"
    )
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    return parser.parse_args()


if __name__ == "__main__":
    script(main)
