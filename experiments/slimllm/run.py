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

import dataclasses
import time
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.slimllm.config import PRESETS, Experiment
from experiments.slimllm.report import write_report
from pangu_jax.cli.stopping import script
from pangu_jax.data.calibration import cut_windows
from pangu_jax.data.multiple_choice import Question, questions
from pangu_jax.data.packing import tokenize
from pangu_jax.data.text import documents
from pangu_jax.eval.multiple_choice import choice_accuracy
from pangu_jax.models import decoder
from pangu_jax.pruning import axes
from pangu_jax.pruning.recipe import Recipe
from pangu_jax.study import options
from pangu_jax.study.cells import begin, cell, say
from pangu_jax.study.language import (
    Base,
    add_checkpoint,
    kept_windows,
    open_base,
    perplexity,
    prune,
    recover,
)


@dataclasses.dataclass(frozen=True)
class Run:
    """What every cell works on.

    Attributes:
      base: the dense model.
      texts: {name: {length: windows to measure}}.
      draws: calibration windows of each draw.
      questions: {name: questions with choices}, asked of every model.
    """

    base: Base
    texts: dict[str, dict[int, np.ndarray]]
    draws: list[np.ndarray]
    questions: dict[str, list[Question]]


def main() -> None:
    given = _options()
    experiment, folder = options.chosen(given, PRESETS, "slimllm")
    settings = {name: getattr(given, name) for name in ("checkpoint", "other", "questions")}
    cells = begin(folder, experiment, **settings)
    run = _prepare(experiment, folder, given)
    compute = partial(cell, cells, shown=_shown)
    compute("dense", lambda: _measured(run, run.base.params, run.base.cfg))
    for target in experiment.targets:
        for method, repair in experiment.methods:
            for draw in range(experiment.draws):
                name = f"{target}/{method}/{repair}/draw{draw}"
                compute(name, partial(_pruned, run, target, method, repair, draw))
    for name in best(cells.results, experiment):
        compute(f"recover/{name}", partial(_recovered, run, name))
    say(f"{write_report(folder, experiment, cells.results)} is the report")


def best(results: dict[str, Any], experiment: Experiment) -> list[str]:
    """The best methods at the last target by mean perplexity over draws, "method/repair"."""
    scores = {}
    for method, repair in experiment.methods:
        cells = [
            results[f"{experiment.targets[-1]}/{method}/{repair}/draw{d}"]
            for d in range(experiment.draws)
        ]
        scores[f"{method}/{repair}"] = np.mean([c["own"][-1] for c in cells])
    # The same units with another repair are hardly another start: one entry per method.
    ranked, seen = [], set()
    for name in sorted(scores, key=scores.__getitem__):
        if name.split("/")[0] not in seen:
            ranked.append(name)
            seen.add(name.split("/")[0])
    return ranked[: experiment.recover]


def _shown(found: dict[str, Any]) -> str:
    return ", ".join(f"{x:.3f}" for x in found.get("own", []))


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
    recipe = Recipe(method=method, repair=repair, prunable_axes=("groups", "ffn"), seed=draw)
    return prune(run.base, run.draws[draw], target, recipe)


def _recovered(run: Run, name: str) -> dict[str, Any]:
    """Distils the best methods' models from the dense one, for equal tokens."""
    experiment, (method, repair) = run.base.experiment, name.split("/")
    found = _prune(run, experiment.targets[-1], method, repair, 0)
    params = recover(run.base, found, name.replace("/", "-"), label=name)
    return {**_measured(run, params, found.cfg), "tokens": experiment.recover_tokens}


def _measured(run: Run, params, cfg) -> dict[str, Any]:
    """Perplexity at each length on each text, sizes, and times of a prefill, dense and pruned."""
    base, experiment = run.base, run.base.experiment
    found: dict[str, Any] = {
        text: [perplexity(base, params, cfg, windows) for windows in by_length.values()]
        for text, by_length in run.texts.items()
    }
    for name, asked in run.questions.items():
        score = choice_accuracy(
            *(params, asked), cfg=cfg, tokenizer=base.tokenizer, batch=128, how=experiment.how
        )
        found[f"{name}_accuracy"] = score.normalized
        found[f"{name}_chance"] = score.chance
    dense_ms, prefill_ms = _latency([(base.params, base.cfg), (params, cfg)], experiment)
    return {
        **found,
        "parameters": axes.parameters(cfg),
        "flops": axes.flops(cfg, experiment.latency[1]),
        "prefill_ms": prefill_ms,
        "dense_prefill_ms": dense_ms,
    }


def _latency(models: list[tuple[Any, Any]], experiment: Experiment) -> list[float]:
    """Least of ten prefills of each model, milliseconds, compiling left out.

    In turn, as a machine's speed changes while an experiment runs.
    """
    batch, length = experiment.latency
    how = experiment.how
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


def _prepare(experiment: Experiment, folder: Path, given) -> Run:
    """The dense model, trained or opened, and all windows."""
    dtype = None if given.preset == "paper" else "float32"
    base = open_base(experiment, folder, given, dtype=dtype)
    needed, length = experiment.windows * experiment.draws, experiment.window_length
    draws = kept_windows(base, length, needed, size=max(20 * needed * length, 2_000_000))
    # Measured text comes first, calibration after it, so that draws leave it alone.
    flat = draws[: len(draws) - needed, 1:].reshape(-1)
    texts = {"own": _measured_windows(flat, draws[0, 0], experiment)}
    if given.other is not None:
        other = cut_windows(tokenize(documents(given.other), base.tokenizer), 1024)
        texts["other"] = _measured_windows(other[:, 1:].reshape(-1), draws[0, 0], experiment)
    calibration = draws[len(draws) - needed :].reshape(experiment.draws, experiment.windows, -1)
    files = [Path(name) for name in given.questions or ()]
    asked = {file.name.split(".")[0]: questions(file) for file in files}
    return Run(base, texts, list(calibration), asked)


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


def _options():
    parser = options.parser(__doc__, PRESETS)
    add_checkpoint(parser)
    parser.add_argument("--other", help="text of another kind to measure on too")
    parser.add_argument("--questions", nargs="+", help="files of questions with choices to ask")
    return parser.parse_args()


if __name__ == "__main__":
    script(main)
