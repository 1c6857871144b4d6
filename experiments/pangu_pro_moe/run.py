"""Pangu Pro MoE: what choosing experts inside groups buys, and what it costs.

Source: "Pangu Pro MoE: Mixture of Grouped Experts for Efficient Sparsity", arXiv 2505.21411.

Claim examined: when every token takes the same number of experts from every group, devices that
hold whole groups get the same load for any batch (imbalance score 0), at no loss of quality against
an ordinary top-k router of equal total and equal active parameters.

    python experiments/pangu_pro_moe/run.py --preset demo      about five minutes on two CPU cores
    python experiments/pangu_pro_moe/run.py --preset cpu --data my/texts --tokenizer tokenizer.json

Trains both routers on the same text in the same order, measures bits per byte on held-out documents
beside a byte model of the best order fitted to the same bytes, measures the balance over 2, 4 and 8
devices, and writes runs/<name>/report.md with a table and plots. A run that was stopped goes on
where it was: by checkpoint inside a training, cell by cell between them.

Not reproduced here: the 72 B model and its 13 T tokens, its benchmark scores, and anything measured
on Ascend hardware. The devices of the imbalance score are counted, not timed.
"""

import dataclasses
import hashlib
import os
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import jax
import numpy as np

from experiments.pangu_pro_moe.config import PRESETS, Experiment
from experiments.pangu_pro_moe.report import write_report
from pangu_jax.cli.stopping import script
from pangu_jax.core.cells import compute, save_results
from pangu_jax.core.errors import InputError
from pangu_jax.core.files import atomic_write
from pangu_jax.core.spec import count
from pangu_jax.data.packing import PackedTokens, Tokens, tokenize
from pangu_jax.data.pipeline import batches
from pangu_jax.data.text import Document, documents, split_documents, take
from pangu_jax.data.tokenizer import ByteTokenizer, Tokenizer, load_tokenizer
from pangu_jax.decode.generate import generate
from pangu_jax.decode.sampling_config import SamplingConfig
from pangu_jax.eval.load_balance import expert_load, over_batches, uniform_choices, variation
from pangu_jax.eval.ngram import bits_per_byte, fit_best
from pangu_jax.eval.perplexity import measure
from pangu_jax.eval.routing import chosen_experts
from pangu_jax.models import decoder
from pangu_jax.models.presets import as_topk
from pangu_jax.nn.how import How
from pangu_jax.study import options
from pangu_jax.study.cells import begin, say
from pangu_jax.study.timing import timed
from pangu_jax.train.language import train_language
from pangu_jax.train.loop_config import LoopConfig
from pangu_jax.train.metrics import read_metrics


@dataclass(frozen=True)
class Text:
    """What models and control see."""

    tokenizer: Tokenizer
    training: Tokens
    testing: Tokens
    training_bytes: list[bytes]
    testing_bytes: list[bytes]


def main() -> None:
    """Runs every cell that is not done yet, then writes the report."""
    began, given = time.monotonic(), _options()
    experiment, folder = options.chosen(given, PRESETS, "pangu_pro_moe")
    _check_memory(experiment)
    text = _read(experiment, given.tokenizer)
    models = _models(experiment, text.tokenizer)
    cells = begin(folder, experiment, free=("seeds",), tokenizer=given.tokenizer)
    say(f"{len(text.training.ids):,} training tokens of {text.training.bytes:,} bytes")
    try:
        compute(folder, cells.results, "byte model", partial(_control, text))
        for seed in experiment.seeds:
            for name, cfg in models.items():
                part = f"{name}-seed{seed}"
                make = partial(_cell, experiment, cfg, text, folder / part, seed)
                compute(folder, cells.results, part, make)
        cells.results["uniform"] = _uniform(experiment)
    finally:  # where it was stopped, too
        cells.results["seconds"] = cells.results.get("seconds", 0) + time.monotonic() - began
        save_results(folder, cells.results)
    part = f"{next(iter(models))}-seed{experiment.seeds[0]}"
    say(
        f"{write_report(folder, experiment, models, cells.results)} is the report; "
        f"try: .venv/bin/pangu-jax generate {folder / part} "
        f'--prompt "{experiment.prompt.splitlines()[-1]}" --temperature 0.8'
    )


def _options():
    parser = options.parser(
        __doc__, PRESETS, default="demo", seeds="every model is trained once per seed"
    )
    add = parser.add_argument
    add("--tokenizer", default="bytes", help='"bytes", or a Hugging Face tokenizer.json')
    add("--steps", type=options.positive, help="of each model; the preset's if left out")
    return parser.parse_args()


def _models(experiment: Experiment, tokenizer: Tokenizer) -> dict[str, decoder.DecoderConfig]:
    cfg = experiment.model
    if not isinstance(tokenizer, ByteTokenizer):
        cfg = dataclasses.replace(cfg, vocab=-(-tokenizer.vocab_size // 8) * 8)
    return {"moge": cfg, "topk": as_topk(cfg)}


def _read(experiment: Experiment, tokenizer_name: str) -> Text:
    tokenizer = load_tokenizer(tokenizer_name)
    training, testing = split_documents(documents(experiment.data), experiment.held_out)
    if not training or not testing:
        raise InputError(
            f"{experiment.data} has {len(training)} training and {len(testing)} held-out "
            "documents; both parts need one: give more files, or .jsonl with one text per line"
        )
    wanted = experiment.steps * experiment.batch * experiment.length
    training = take(_shuffled(training), wanted, in_bytes=True)
    testing = take(_shuffled(testing), experiment.evaluate_bytes, in_bytes=True)
    return Text(
        tokenizer,
        tokenize(training, tokenizer),
        tokenize(testing, tokenizer),
        [d.text.encode() for d in training],
        [d.text.encode() for d in testing],
    )


def _shuffled(found: list[Document]) -> list[Document]:
    """Documents in the order of their names' hashes."""
    return sorted(found, key=lambda d: hashlib.sha256(d.name.encode()).digest())


def _control(text: Text) -> dict:
    say("fitting the byte model")
    model = fit_best(text.training_bytes)
    return {
        "order": model.order,
        "bits_per_byte": bits_per_byte(model, text.testing_bytes),
        "training_bytes": text.training.bytes,
        "testing_bytes": text.testing.bytes,
    }


def _cell(experiment, cfg, text: Text, folder: Path, seed: int) -> dict:
    """Trains one model and measures it."""
    source = PackedTokens(text.training, experiment.length)
    how = How(remat=experiment.remat, dtype=experiment.dtype)
    train = partial(
        train_language,
        cfg,
        lambda step: batches(source, batch=experiment.batch, seed=seed, start_step=step),
        folder,
        loop=LoopConfig(experiment.steps, seed=seed, checkpoint_every=500, keep=1),
        optimizer=experiment.optimizer,
        label=folder.name,
        aux_weight=experiment.aux_weight,
        documents=source.most_documents,
        how=how,
    )
    params, seconds = timed(train, folder, experiment.steps)
    if text.tokenizer.name != "bytes":
        with atomic_write(folder / "tokenizer.json", "wb") as file:
            file.write(Path(text.tokenizer.name).read_bytes())
    log = read_metrics(folder / "metrics.jsonl")
    say(f"measuring {folder.name}")
    score = measure(
        params,
        text.testing,
        cfg=cfg,
        length=experiment.length,
        stride=experiment.length // 2,
        batch=16,
        how=how,
    )
    return {
        "parameters": count(decoder.spec(cfg)),
        "active": decoder.count_active(cfg),
        "bits_per_byte": score.bits_per_byte,
        "protocol": score.protocol,
        "training_s": seconds,
        # As logged: of the last piece, where the training was done in several.
        "tokens_per_s": [x for x in log if "tokens_per_s" in x][-1]["tokens_per_s"],
        "layers": _balance(experiment, cfg, text, params, how),
        "samples": _samples(experiment, cfg, text.tokenizer, params, how),
    }


def _balance(experiment, cfg, text: Text, params, how) -> list[dict]:
    """Balance of each routed layer on held-out text."""
    source = PackedTokens(text.testing, experiment.length)
    rows = min(len(source), -(-experiment.routing_tokens // experiment.length))
    stream = batches(source, batch=min(16, rows), shuffle=True, epochs=1)
    chosen = [b for b, _ in zip(stream, range(max(1, rows // 16)), strict=False)]
    layers = []
    for layer, ids in zip(
        (x for x in cfg.layers if x.moe is not None),
        chosen_experts(params, chosen, cfg=cfg, how=how),
        strict=True,
    ):
        experts = layer.moe.experts
        load = expert_load(ids, experts=experts)
        layers.append(
            {
                "load": load.tolist(),
                # Inside the groups of the grouped model, for both, so that they compare.
                "variation": variation(load.reshape(experiment.model.layers[0].moe.groups, -1)),
                "balance": _balances(experiment, ids, experts),
            }
        )
    return layers


def _balances(experiment: Experiment, ids: np.ndarray, experts: int) -> list[dict]:
    return [
        dataclasses.asdict(over_batches(ids, experts=experts, devices=devices, tokens=tokens))
        for devices in experiment.devices
        for tokens in experiment.batch_sizes
        if tokens <= len(ids)
    ]


def _uniform(experiment: Experiment) -> list[dict]:
    """What an ordinary router would give if it used all experts equally."""
    moe = experiment.model.layers[0].moe
    ids = uniform_choices(100_000, experts=moe.experts, active=moe.groups * moe.top_k)
    return _balances(experiment, ids, moe.experts)


def _samples(experiment, cfg, tokenizer: Tokenizer, params, how) -> list[str]:
    """Three, as what a small model likes best is a run of blanks, and one may be just that."""
    prompt = [tokenizer.boundary, *tokenizer.encode(experiment.prompt)]
    out = generate(
        params,
        [prompt] * 3,
        cfg=cfg,
        max_new_tokens=160,
        sampling=SamplingConfig(temperature=0.8, top_p=0.95),
        stop_ids=tokenizer.eos_ids,
        key=jax.random.key(0),
        how=how,
    )
    return [tokenizer.decode([*prompt[1:], *row]) for row in out.rows()]


def _check_memory(experiment: Experiment) -> None:
    """Refuses before the start what cannot fit: parameters, gradients and two moments, float32."""
    needed = 16 * count(decoder.spec(experiment.model))
    stats = jax.devices()[0].memory_stats()
    if stats and "bytes_limit" in stats:
        there, where = stats["bytes_limit"], "the device"
    else:
        there = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        where = "this machine"
    if needed > there:
        raise InputError(
            f"training this model takes at least {needed / 1e9:,.0f} GB, {where} has "
            f"{there / 1e9:,.0f}; choose a smaller preset"
        )


if __name__ == "__main__":
    script(main)
