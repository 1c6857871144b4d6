"""Pangu Light: how a model that loses layers and width should be re-initialized before recovery.

Source: "Pangu Light: Weight Re-Initialization for Pruning and Accelerating LLMs", arXiv 2505.20155.

Claim examined: handing a removed layer's best KV groups to the layer before (CLAP), and re-scaling
RMSNorm gains to the cut width (SLNP), start recovery by distillation at a lower loss than plain
depth and width cutting, and keep the lead at equal tokens; and sandwich norms can then be folded
away (Post-RMSNorm absorption).

    python experiments/pangu_light/run.py --preset smoke              a minute on two CPU cores
    python experiments/pangu_light/run.py --preset cpu                an hour on two CPU cores
    python experiments/pangu_light/run.py --preset gpu                one H100
    python experiments/pangu_light/run.py --preset smollm2 --checkpoint smollm2 --data valid.txt \
        --questions csqa_test.jsonl.gz --workers 6

Trains a model with sandwich norms (or takes --checkpoint), prunes it to every target from every
start, measures held-out perplexity before, during and after distillation, and the accuracy of
--questions before and after it, absorbs the norms, and writes runs/<name>/report.md. A run that was
stopped goes on where it was, cell by cell (a file each in cells/).

Not reproduced here: the 38 B model, its benchmarks, and Ascend throughput. The paper could only be
read in part: that SLNP keeps the gain's L2 norm and that CLAP moves KV groups one layer down is
its; importance scores, the merge's ranking, the gain corrections and the constants of absorption
are our reading.
"""

import dataclasses
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from experiments.pangu_light.config import PRESETS, STARTS, Experiment
from experiments.pangu_light.report import name_of, write_report
from pangu_jax.cli.stopping import script
from pangu_jax.core.config import to_json
from pangu_jax.data.multiple_choice import Question
from pangu_jax.pruning import axes
from pangu_jax.pruning.absorb import absorb
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
    """What every cell works on: the dense model, and disjoint windows for each purpose.

    Attributes:
      base: the dense model.
      calibration: windows of every seed.
      measured: windows of the perplexity.
      questions: {name: questions with choices}, asked of every model.
    """

    base: Base
    calibration: dict[int, np.ndarray]
    measured: np.ndarray
    questions: dict[str, list[Question]]


def main() -> None:
    given = _options()
    check_workers(given)
    experiment, folder = options.chosen(given, PRESETS, "pangu_light")
    settings = {name: getattr(given, name) for name in ("checkpoint", "questions")}
    results = workers.run(
        folder,
        {**to_json(experiment), **settings},
        "experiments.pangu_light.run",
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


def _options():
    parser = options.parser(__doc__, PRESETS, workers=True)
    add_checkpoint(parser)
    add_questions(parser)
    return parser.parse_args()


def _plan(experiment: Experiment) -> list[tuple[str, str, int]]:
    """(target, start, seed) of every pruned model; all of a seed before the next.

    Models of a target share their programs, so workers that begin together take different targets.
    """
    return [
        (target, start, seed)
        for seed in experiment.seeds
        for start in experiment.starts
        for target in experiment.targets
    ]


def _cells(experiment: Experiment, folder: Path, given) -> workers.Makes:
    run = _prepare(experiment, folder, given)
    found = {"dense": lambda *_: _dense(run)}
    return found | {name_of(*place): partial(_pruned, run, place) for place in _plan(experiment)}


def _shown(found: dict[str, Any]) -> str:
    after = found.get("recovered")
    text = f"{found['perplexity']:.3f}"
    return text + (f"; recovered {after['perplexity']:.3f}" if after else "")


def _dense(run: Run) -> dict[str, Any]:
    """The dense model, and what absorbing its sandwich norms costs without any pruning."""
    params, cfg = run.base.params, run.base.cfg
    return _absorbed(run, params, cfg) | {"parameters": axes.parameters(cfg)}


def _pruned(run: Run, place: tuple[str, str, int], folder: Path, stop) -> dict[str, Any]:
    """Prunes, measures, distills and measures again; "curve" is the perplexity on the way."""
    target, start, seed = place
    chosen = STARTS[start]
    recipe = Recipe(
        method="pangu-light",
        clap=chosen.clap,
        norm=chosen.norm,
        repair=chosen.repair,
        propagate="dense",
    )
    experiment = run.base.experiment
    found = prune(run.base, run.calibration[seed], target, recipe)
    flops = axes.flops(found.cfg, experiment.length) / axes.flops(run.base.cfg, experiment.length)
    cell = {
        **_quality(run, found.params, found.cfg),
        "parameters": axes.parameters(found.cfg),
        "flops": flops,
        "layers": [part.layer for part in found.plan.layers],
        "moved": sum(len(part.moved) for part in found.plan.layers),
        "width": found.cfg.width,
        "sizes": repr(axes.sizes(found.cfg.layers[0])),
    }
    lines: list[dict[str, Any]] = []
    params = recover(
        run.base,
        found,
        None if experiment.brief else folder,
        label=name_of(*place),
        seed=seed,
        evaluate=lambda params: {"perplexity": _perplexity(run, params, found.cfg)},
        on_metrics=lines.append,
    )
    cell["curve"] = [(x["step"], x["eval_perplexity"]) for x in lines if "eval_perplexity" in x]
    tokens = {"tokens": experiment.recover_tokens}
    return {**cell, "recovered": _absorbed(run, params, found.cfg) | tokens}


def _absorbed(run: Run, params, cfg) -> dict[str, Any]:
    """Quality, also the perplexity with sandwich norms absorbed where there are some."""
    found: dict[str, Any] = _quality(run, params, cfg)
    if not any(layer.norm_place == "sandwich" for layer in cfg.layers):
        return found
    windows = next(iter(run.calibration.values()))
    new, new_cfg, errors = absorb(
        params, windows, cfg=cfg, max_rel_err=run.base.experiment.max_rel_err
    )
    found["absorbed"] = {
        "perplexity": _perplexity(run, new, new_cfg),
        "layers": sum(layer.norm_place == "pre" for layer in new_cfg.layers),
        "of": len(cfg.layers),
        "errors": errors,
    }
    return found


def _quality(run: Run, params, cfg) -> dict[str, Any]:
    asked = ask(run.base, run.questions, params, cfg)
    return {"perplexity": _perplexity(run, params, cfg), **asked}


def _perplexity(run: Run, params, cfg) -> float:
    return perplexity(run.base, params, cfg, run.measured)


def _prepare(experiment: Experiment, folder: Path, given) -> Run:
    """The dense model, trained or opened, and all windows."""
    base = open_base(experiment, folder, given)
    count = experiment.windows
    windows = kept_windows(base, experiment.length, count * len(experiment.seeds))
    calibration = {
        seed: windows[count * i : count * (i + 1)] for i, seed in enumerate(experiment.seeds)
    }
    measured = windows[count * len(experiment.seeds) :][: experiment.eval_windows]
    return Run(base, calibration, measured, open_questions(given.questions))


if __name__ == "__main__":
    script(main)
