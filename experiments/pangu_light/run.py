"""Pangu Light: how a model that loses layers and width should be re-initialized before recovery.

Source: "Pangu Light: Weight Re-Initialization for Pruning and Accelerating LLMs", arXiv 2505.20155.

Claim examined: handing a removed layer's best KV groups to the layer before (CLAP), and re-scaling
RMSNorm gains to the cut width (SLNP), start recovery by distillation at a lower loss than plain
depth and width cutting, and keep the lead at equal tokens; and sandwich norms can then be folded
away (Post-RMSNorm absorption).

    python experiments/pangu_light/run.py --preset smoke              a minute on two CPU cores
    python experiments/pangu_light/run.py --preset cpu                an hour on two CPU cores
    python experiments/pangu_light/run.py --preset gpu                one H100

Trains a model with sandwich norms (or takes --checkpoint), prunes it to one target from every
start, measures held-out perplexity before, during and after distillation, absorbs the norms, and
writes runs/<name>/report.md. A run that was stopped goes on where it was, cell by cell.

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
from experiments.pangu_light.report import write_report
from pangu_jax.cli.stopping import script
from pangu_jax.pruning import axes
from pangu_jax.pruning.absorb import absorb
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
    """What every cell works on: the dense model, and disjoint windows for each purpose."""

    base: Base
    calibration: np.ndarray
    measured: np.ndarray


def main() -> None:
    parser = options.parser(__doc__, PRESETS)
    add_checkpoint(parser)
    given = parser.parse_args()
    experiment, folder = options.chosen(given, PRESETS, "pangu_light")
    cells = begin(folder, experiment, checkpoint=given.checkpoint)
    run = _prepare(experiment, folder, given)
    compute = partial(cell, cells, shown=lambda found: f"{found['perplexity']:.3f}")
    compute("dense", partial(_dense, run))
    for name in experiment.starts:
        compute(f"start/{name}", partial(_start, run, name))
        for seed in experiment.seeds:
            compute(f"recover/{name}/seed{seed}", partial(_recover, run, name, seed))
    say(f"{write_report(folder, experiment, cells.results)} is the report")


def _dense(run: Run) -> dict[str, Any]:
    """The dense model, and what absorbing its sandwich norms costs without any pruning."""
    params, cfg = run.base.params, run.base.cfg
    return _measured(run, params, cfg) | {"parameters": axes.parameters(cfg)}


def _start(run: Run, name: str) -> dict[str, Any]:
    found, length = _prune(run, name), run.base.experiment.length
    return {
        "perplexity": _perplexity(run, found.params, found.cfg),
        "parameters": axes.parameters(found.cfg),
        "flops": axes.flops(found.cfg, length) / axes.flops(run.base.cfg, length),
        "layers": [part.layer for part in found.plan.layers],
        "moved": sum(len(part.moved) for part in found.plan.layers),
        "width": found.cfg.width,
        "sizes": repr(axes.sizes(found.cfg.layers[0])),
    }


def _recover(run: Run, name: str, seed: int) -> dict[str, Any]:
    """Distils one start; perplexity on the way goes to metrics.jsonl."""
    found = _prune(run, name)
    params = recover(
        run.base,
        found,
        f"{name}-seed{seed}",
        label=name,
        seed=seed,
        evaluate=lambda params: {"perplexity": _perplexity(run, params, found.cfg)},
    )
    tokens = {"tokens": run.base.experiment.recover_tokens}
    return _measured(run, params, found.cfg) | tokens


def _prune(run: Run, name: str):
    start = STARTS[name]
    recipe = Recipe(
        method="pangu-light",
        clap=start.clap,
        norm=start.norm,
        repair=start.repair,
        propagate="dense",
    )
    return prune(run.base, run.calibration, run.base.experiment.target, recipe)


def _measured(run: Run, params, cfg) -> dict[str, Any]:
    """Perplexity, also with sandwich norms absorbed where there are some."""
    found: dict[str, Any] = {"perplexity": _perplexity(run, params, cfg)}
    if not any(layer.norm_place == "sandwich" for layer in cfg.layers):
        return found
    new, new_cfg, errors = absorb(
        params, run.calibration, cfg=cfg, max_rel_err=run.base.experiment.max_rel_err
    )
    found["absorbed"] = {
        "perplexity": _perplexity(run, new, new_cfg),
        "layers": sum(layer.norm_place == "pre" for layer in new_cfg.layers),
        "of": len(cfg.layers),
        "errors": errors,
    }
    return found


def _perplexity(run: Run, params, cfg) -> float:
    return perplexity(run.base, params, cfg, run.measured)


def _prepare(experiment: Experiment, folder: Path, given) -> Run:
    """The dense model, trained or opened, and all windows."""
    base = open_base(experiment, folder, given)
    windows = kept_windows(base, experiment.length, experiment.windows)
    measured = windows[experiment.windows :][: experiment.eval_windows]
    return Run(base, windows[: experiment.windows], measured)


if __name__ == "__main__":
    script(main)
