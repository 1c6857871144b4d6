"""SlimLLM: which units of a language model can go, and what its regression repairs.

Source: "SlimLLM: Accurate Structured Pruning for Large Language Models", arXiv 2505.22689.

Claim examined: choosing whole heads by Pearson similarity (with greedy swaps) and FFN channels by
PCA-weighted norms, and refitting the cut projections, beats other one-shot structured methods at
equal size. Added by us: a ridge least-squares repair, given to every method alike, so that choosing
and repairing are told apart.

    python experiments/slimllm/run.py --preset smoke                      a minute on two CPU cores
    python experiments/slimllm/run.py --preset cpu --checkpoint STORIES --data tinystories.txt
    python experiments/slimllm/run.py --preset gpu --other wikitext.txt   one H100

Trains the model (or takes --checkpoint), prunes it by every method, target and calibration draw,
measures perplexity at two context lengths on held-out text (and on --other), recovers the best
methods at the hardest target by distillation for equal tokens, times dense and pruned prefill, and
writes runs/<name>/report.md. A run that was stopped goes on where it was, cell by cell.

Not reproduced here: LLaMA-7B, its benchmarks and LoRA; perplexities here compare with one another
and with nothing published.
"""

import argparse
import dataclasses
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from config import PRESETS, Experiment
from report import write_report

from pangu_jax.checkpoint.open import open_checkpoint
from pangu_jax.cli.stopping import script
from pangu_jax.core.cells import compute, open_results
from pangu_jax.core.config import to_json
from pangu_jax.core.errors import InputError
from pangu_jax.data.calibration import cut_windows
from pangu_jax.data.choice import Question, questions
from pangu_jax.data.packing import PackedTokens, tokenise
from pangu_jax.data.pipeline import drawn_batches
from pangu_jax.data.text import documents, split_documents, take
from pangu_jax.data.tokenizer import Tokenizer, load_tokenizer
from pangu_jax.eval.choice import choice_accuracy
from pangu_jax.eval.perplexity import measure_windows
from pangu_jax.models import decoder
from pangu_jax.nn.how import How
from pangu_jax.pruning import axes
from pangu_jax.pruning.allocate import Limits, parse
from pangu_jax.pruning.compress import Recipe, compress
from pangu_jax.pruning.stats import SweepConfig, moments_type
from pangu_jax.train.distill import distill_loss
from pangu_jax.train.language import train_language
from pangu_jax.train.loop import LoopConfig, train
from pangu_jax.train.optimizer import OptimizerConfig, make_optimizer, schedule


@dataclasses.dataclass(frozen=True)
class Run:
    """What every cell works on.

    Attributes:
      experiment: the settings.
      folder: of the run.
      params: the dense model.
      cfg: its configuration.
      training: windows to train and recover on.
      texts: {name: {length: windows to measure}}.
      draws: calibration windows of each draw.
      questions: {name: questions with choices}, asked of every model.
      tokenizer: of the model.
    """

    experiment: Experiment
    folder: Path
    params: Any
    cfg: decoder.DecoderConfig
    training: PackedTokens
    texts: dict[str, dict[int, np.ndarray]]
    draws: list[np.ndarray]
    questions: dict[str, list[Question]]
    tokenizer: Tokenizer


def main() -> None:
    options = _options()
    experiment = PRESETS[options.preset]
    experiment = dataclasses.replace(experiment, data=options.data or experiment.data)
    folder = Path(options.out or f"runs/slimllm-{options.preset}")
    settings = {name: getattr(options, name) for name in ("checkpoint", "other", "questions")}
    results = open_results(folder, {**to_json(experiment), **settings})
    run = _prepare(experiment, folder, options)
    _cell(folder, results, "dense", lambda: _measured(run, run.params, run.cfg))
    for target in experiment.targets:
        for method, repair in experiment.methods:
            for draw in range(experiment.draws):
                name = f"{target}/{method}/{repair}/draw{draw}"
                make = partial(_pruned, run, target, method, repair, draw)
                _cell(folder, results, name, make)
    for name in best(results, experiment):
        _cell(folder, results, f"recover/{name}", partial(_recovered, run, name))
    report = write_report(folder, experiment, results)
    print(f"{report} is the report", file=sys.stderr)


def best(results: dict[str, Any], experiment: Experiment) -> list[str]:
    """The best methods at the last target by mean perplexity over draws, "method/repair"."""
    scores = {}
    for method, repair in experiment.methods:
        cells = [
            results[f"{experiment.targets[-1]}/{method}/{repair}/draw{d}"]
            for d in range(experiment.draws)
        ]
        scores[f"{method}/{repair}"] = np.mean([c["own"][-1] for c in cells])
    # The same units with another repair are hardly another start: one entry a method.
    ranked, seen = [], set()
    for name in sorted(scores, key=scores.__getitem__):
        if name.split("/")[0] not in seen:
            ranked.append(name)
            seen.add(name.split("/")[0])
    return ranked[: experiment.recover]


def _cell(folder: Path, results: dict, name: str, make: Callable[[], dict[str, Any]]) -> None:
    """Computes a cell that is not there yet, with the time that it took, and says what came out."""
    if not compute(folder, results, name, make, timed=True):
        return
    shown = ", ".join(f"{x:.3f}" for x in results[name].get("own", []))
    print(f"{name}: {shown} ({results[name]['seconds']:.0f} s)", file=sys.stderr, flush=True)


def _pruned(run: Run, target: str, method: str, repair: str, draw: int) -> dict[str, Any]:
    found = _prune(run, target, method, repair, draw)
    sites = found.sites.values()
    return {
        **_measured(run, found.params, found.cfg),
        "cut": float(np.mean([s.cut / max(s.output, 1e-30) for s in sites])),
        "repaired": float(np.mean([s.repaired / max(s.output, 1e-30) for s in sites])),
        "ridge": [s.ridge for s in sites],
    }


def _prune(run: Run, target: str, method: str, repair: str, draw: int):
    return compress(
        run.params,
        run.draws[draw],
        cfg=run.cfg,
        target=parse(target),
        recipe=Recipe(method=method, repair=repair, free=("groups", "ffn"), seed=draw),
        limits=Limits(multiple=1),  # meet the target to the parameter, whatever hardware likes
        sweep_cfg=SweepConfig(moments=moments_type(run.cfg)),
        how=How(dtype=run.experiment.dtype),
    )


def _recovered(run: Run, name: str) -> dict[str, Any]:
    """Distils the best methods' models from the dense one, for equal tokens."""
    experiment, (method, repair) = run.experiment, name.split("/")
    found = _prune(run, experiment.targets[-1], method, repair, 0)
    optimizer = OptimizerConfig(learning_rate=experiment.recover_rate, weight_decay=0.0)
    state = train(
        distill_loss(run.cfg, found.cfg, how=How(dtype=experiment.dtype)),
        decoder.spec(found.cfg),
        lambda step: drawn_batches(run.training, batch=experiment.batch, seed=1, start_step=step),
        cfg=LoopConfig(experiment.recover_steps, checkpoint_every=500, keep=1),
        optimizer=make_optimizer(optimizer, experiment.recover_steps),
        schedule=schedule(optimizer, experiment.recover_steps),
        folder=run.folder / "recover" / name.replace("/", "-"),
        params=jax.tree.map(lambda x: x.astype(jnp.float32), found.params),
        label=name,
        frozen=run.params,
    )
    tokens = experiment.recover_steps * experiment.batch * experiment.length
    return {**_measured(run, state.params, found.cfg), "tokens": tokens}


def _measured(run: Run, params, cfg) -> dict[str, Any]:
    """Perplexity at each length on each text, sizes, and times of a prefill, dense and pruned."""
    found: dict[str, Any] = {}
    for text, by_length in run.texts.items():
        found[text] = [
            measure_windows(
                params, windows, cfg=cfg, how=How(dtype=run.experiment.dtype)
            ).perplexity
            for windows in by_length.values()
        ]
    for name, asked in run.questions.items():
        score = choice_accuracy(
            *(params, asked),
            cfg=cfg,
            tokenizer=run.tokenizer,
            batch=128,
            how=How(dtype=run.experiment.dtype),
        )
        found[f"{name}_accuracy"] = score.normalized
        found[f"{name}_chance"] = score.chance
    length = run.experiment.latency[1]
    dense_ms, prefill_ms = _latency([(run.params, run.cfg), (params, cfg)], run.experiment)
    return {
        **found,
        "parameters": axes.parameters(cfg),
        "flops": axes.flops(cfg, length),
        "prefill_ms": prefill_ms,
        "dense_prefill_ms": dense_ms,
    }


def _latency(models: list[tuple[Any, Any]], experiment: Experiment) -> list[float]:
    """Least of ten prefills of each model, milliseconds, compiling left out.

    In turn, as a machine's speed changes while an experiment runs.
    """
    batch, length = experiment.latency
    how = How(dtype=experiment.dtype)
    tokens = jnp.zeros((batch, length), jnp.int32)
    runs = []
    for params, cfg in models:
        forward = jax.jit(lambda p, t, cfg=cfg: decoder.apply(p, t, cfg=cfg, how=how).hidden)
        runs.append(partial(forward, jax.tree.map(lambda x: x.astype(how.dtype), params), tokens))
        runs[-1]().block_until_ready()
    times = [[] for _ in runs]
    for _ in range(10):
        for run, found in zip(runs, times, strict=True):
            began = time.perf_counter()
            run().block_until_ready()
            found.append(time.perf_counter() - began)
    return [1000 * min(found) for found in times]


def _prepare(experiment: Experiment, folder: Path, options) -> Run:
    """The dense model, trained or opened, and all windows."""
    if experiment.model is None and options.checkpoint is None:
        raise InputError(f"the preset {options.preset} needs --checkpoint")
    dtype = None if options.preset == "paper" else "float32"
    opened = None
    if options.checkpoint is not None:
        opened = open_checkpoint(
            options.checkpoint, kind="decoder", by="this experiment", dtype=dtype
        )
    tokenizer = load_tokenizer("bytes" if opened is None else opened[2])
    training, kept = split_documents(documents(experiment.data), experiment.held_out, halve=True)
    training = take(training, 200_000_000)
    source = PackedTokens(tokenise(training, tokenizer), experiment.length)
    if opened is None:
        params, cfg = _train(experiment, source, folder / "base"), experiment.model
    else:
        params, cfg, _ = opened
    needed = experiment.windows * experiment.draws
    kept = take(kept, max(20 * needed * experiment.window_length, 2_000_000))
    draws = cut_windows(tokenise(kept, tokenizer), experiment.window_length)
    if len(draws) < needed + 8:
        raise InputError(
            f"the held-out text fills {len(draws)} windows of {experiment.window_length} tokens, "
            f"{needed} are for calibration and more to measure on; give more text"
        )
    # Measured text comes first, calibration after it, so that draws leave it alone.
    flat = draws[: len(draws) - needed, 1:].reshape(-1)
    texts = {"own": _measured_windows(flat, draws[0, 0], experiment)}
    if options.other is not None:
        other = cut_windows(tokenise(documents(options.other), tokenizer), 1024)
        texts["other"] = _measured_windows(other[:, 1:].reshape(-1), draws[0, 0], experiment)
    calibration = draws[len(draws) - needed :].reshape(experiment.draws, experiment.windows, -1)
    files = [Path(name) for name in options.questions or ()]
    asked = {file.name.split(".")[0]: questions(file) for file in files}
    return Run(experiment, folder, params, cfg, source, texts, list(calibration), asked, tokenizer)


def _measured_windows(flat, boundary, experiment: Experiment) -> dict[int, np.ndarray]:
    """The same text at every length: as many tokens as `eval_windows` of the shortest take."""
    total = experiment.eval_windows * (min(experiment.eval_lengths) - 1)
    found = {}
    for length in experiment.eval_lengths:
        number = max(1, min(total, len(flat)) // (length - 1))
        body = flat[: number * (length - 1)].reshape(number, -1)
        head = np.full((number, 1), boundary, np.int32)
        found[length] = np.concatenate([head, body], 1)
    return found


def _train(experiment: Experiment, source: PackedTokens, folder: Path):
    return train_language(
        experiment.model,
        lambda step: drawn_batches(source, batch=experiment.batch, start_step=step),
        folder,
        loop=LoopConfig(experiment.steps, checkpoint_every=500, keep=1),
        optimizer=experiment.optimizer,
        label="base",
        how=How(dtype=experiment.dtype),
    )


def _options() -> argparse.Namespace:
    # argparse, so that the script runs without tyro too.
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--preset", default="smoke", choices=PRESETS)
    parser.add_argument("--checkpoint", help="a dense checkpoint instead of training one")
    parser.add_argument("--data", help="a file or folder of text; the preset's if left out")
    parser.add_argument("--other", help="text of another kind to measure on too")
    parser.add_argument("--questions", nargs="+", help="files of questions with choices to ask")
    parser.add_argument("--out", help="the run's folder")
    return parser.parse_args()


if __name__ == "__main__":
    script(main)
