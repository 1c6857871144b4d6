"""SlimLLM: which units of a language model can go, and what its regression repairs.

Source: "SlimLLM: Accurate Structured Pruning for Large Language Models", arXiv 2505.22689.

Claim examined: choosing whole heads by Pearson similarity (with greedy swaps) and FFN channels by
PCA-weighted norms, and refitting the cut projections, beats other one-shot structured methods at
equal size. Added by us: a ridge least-squares repair, given to every method alike, so that choosing
and repairing are told apart.

    python experiments/slimllm/run.py --preset smoke                      a minute on two CPU cores
    python experiments/slimllm/run.py --preset cpu --checkpoint STORIES --data tinystories.txt
    python experiments/slimllm/run.py --preset gpu --other wikitext.txt   one H100

    python experiments/slimllm/run.py --preset smollm2 --checkpoint smollm2 --data valid.txt \
        --other test.txt --questions csqa_test.jsonl.gz --workers 6

Trains the model (or takes --checkpoint), prunes it by every method, target and calibration draw,
measures perplexity at two context lengths on held-out text (and on --other) and the accuracy of
--questions, recovers the pruned models by distillation for equal tokens and measures them again,
and writes runs/<name>/report.md. With one worker the prefill of dense and pruned models is timed.
A run that was stopped goes on where it was, cell by cell (a file each in cells/).

Not reproduced here: LLaMA-7B, its benchmarks and LoRA; perplexities here compare with one another
and with nothing published.
"""

import dataclasses
import time
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.slimllm.config import PRESETS, Experiment
from experiments.slimllm.report import name_of, write_report
from pangu_jax.cli.stopping import script
from pangu_jax.core.config import to_json
from pangu_jax.data.calibration import cut_windows
from pangu_jax.data.multiple_choice import Question
from pangu_jax.data.packing import tokenize
from pangu_jax.data.text import documents
from pangu_jax.models import decoder
from pangu_jax.pruning import axes
from pangu_jax.pruning.recipe import Recipe
from pangu_jax.study import options, workers
from pangu_jax.study.cells import say
from pangu_jax.study.language import (
    Base,
    add_checkpoint,
    add_questions,
    ask,
    check_workers,
    kept_windows,
    open_base,
    open_questions,
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
      timed: whether prefills are timed; several workers share a device.
    """

    base: Base
    texts: dict[str, dict[int, np.ndarray]]
    draws: list[np.ndarray]
    questions: dict[str, list[Question]]
    timed: bool


def main() -> None:
    given = _options()
    check_workers(given)
    experiment, folder = options.chosen(given, PRESETS, "slimllm")
    settings = {name: getattr(given, name) for name in ("checkpoint", "other", "questions")}
    results = workers.run(
        folder,
        {**to_json(experiment), **settings},
        "experiments.slimllm.run",
        given,
        partial(_cells, experiment, folder, given),
        shown=_shown,
        whole=experiment.brief,
    )
    if results is None:
        return
    say(f"{len(results)} of {1 + len(_plan(experiment))} cells are done")
    if "dense" in results:
        say(f"{write_report(folder, experiment, results)} is the report")


def _plan(experiment: Experiment) -> list[tuple[str, str, str, int]]:
    """(target, method, repair, draw) of every pruned model; all of a draw before the next.

    Models of a target share their programs, so workers that begin together take different targets.
    """
    return [
        (target, method, repair, draw)
        for draw in range(experiment.draws)
        for method, repair in experiment.methods
        for target in experiment.targets
    ]


def _cells(experiment: Experiment, folder: Path, given) -> workers.Makes:
    run = _prepare(experiment, folder, given)
    found = {"dense": lambda *_: _measured(run, run.base.params, run.base.cfg)}
    return found | {name_of(*place): partial(_pruned, run, place) for place in _plan(experiment)}


def _shown(found: dict[str, Any]) -> str:
    after = found.get("recovered", {}).get("own", [])
    text = ", ".join(f"{x:.3f}" for x in found["own"])
    return text + ("; recovered " + ", ".join(f"{x:.3f}" for x in after) if after else "")


def _pruned(run: Run, place: tuple[str, str, str, int], folder: Path, stop) -> dict[str, Any]:
    """Prunes, measures, recovers for equal tokens where that is asked for, measures again."""
    experiment, (target, method, repair, draw) = run.base.experiment, place
    recipe = Recipe(method=method, repair=repair, prunable_axes=("groups", "ffn"), seed=draw)
    found = prune(run.base, run.draws[draw], target, recipe)
    sites = found.sites.values()
    cell = {
        **_measured(run, found.params, found.cfg),
        "error_cut": float(np.mean([s.cut / max(s.output, 1e-30) for s in sites])),
        "error_repaired": float(np.mean([s.repaired / max(s.output, 1e-30) for s in sites])),
        "ridge": [s.ridge for s in sites],
    }
    if target in experiment.recover and draw < experiment.recover_draws:
        kept = None if experiment.brief else folder
        params = recover(run.base, found, kept, label=name_of(*place))
        tokens = {"tokens": experiment.recover_tokens}
        cell["recovered"] = _quality(run, params, found.cfg) | tokens
    return cell


def _measured(run: Run, params, cfg) -> dict[str, Any]:
    """Quality, sizes, and, where they are timed, milliseconds of a prefill, dense and pruned."""
    base, experiment = run.base, run.base.experiment
    found = {
        **_quality(run, params, cfg),
        "parameters": axes.parameters(cfg),
        "flops": axes.flops(cfg, experiment.latency[1]),
    }
    if run.timed:
        times = _latency([(base.params, base.cfg), (params, cfg)], experiment)
        found["dense_prefill_ms"], found["prefill_ms"] = times
    return found


def _quality(run: Run, params, cfg) -> dict[str, Any]:
    """Perplexity at each length on each text, and the accuracy of each set of questions."""
    found: dict[str, Any] = {
        text: [perplexity(run.base, params, cfg, windows) for windows in by_length.values()]
        for text, by_length in run.texts.items()
    }
    return found | ask(run.base, run.questions, params, cfg)


def _latency(models: list[tuple[Any, Any]], experiment: Experiment) -> list[float]:
    """Least of ten prefills of each model, milliseconds, compiling left out.

    In turn, as a machine's speed changes while an experiment runs.
    """
    batch, length = experiment.latency
    how = experiment.how
    tokens = jnp.zeros((batch, length), jnp.int32)
    runs = []
    for params, cfg in models:
        forward = _prefill(cfg, how)
        runs.append(partial(forward, jax.tree.map(lambda x: x.astype(how.dtype), params), tokens))
        runs[-1]().block_until_ready()
    times = [[] for _ in runs]
    for _ in range(10):
        for run, found in zip(runs, times, strict=True):
            began = time.perf_counter()
            run().block_until_ready()
            found.append(time.perf_counter() - began)
    return [1000 * min(found) for found in times]


@lru_cache(maxsize=8)
def _prefill(cfg, how):
    """The compiled prefill, which models of equal sizes share."""
    return jax.jit(lambda params, tokens: decoder.apply(params, tokens, cfg=cfg, how=how).hidden)


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
    asked = open_questions(given.questions)
    return Run(base, texts, list(calibration), asked, given.workers == 1)


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
    parser = options.parser(__doc__, PRESETS, workers=True)
    add_checkpoint(parser)
    add_questions(parser)
    parser.add_argument("--other", help="text of another kind to measure on too")
    return parser.parse_args()


if __name__ == "__main__":
    script(main)
