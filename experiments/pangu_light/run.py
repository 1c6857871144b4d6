"""Pangu Light: how a model that loses layers and width should be re-initialised before recovery.

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

import argparse
import dataclasses
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from config import PRESETS, STARTS, Experiment
from report import write_report

from pangu_jax.checkpoint.open import open_checkpoint
from pangu_jax.cli.stopping import script
from pangu_jax.core.cells import compute, open_results
from pangu_jax.core.config import to_json
from pangu_jax.core.errors import InputError
from pangu_jax.data.calibration import cut_windows
from pangu_jax.data.packing import PackedTokens, tokenise
from pangu_jax.data.pipeline import drawn_batches
from pangu_jax.data.text import documents, split_documents, take
from pangu_jax.data.tokenizer import load_tokenizer
from pangu_jax.eval.perplexity import measure_windows
from pangu_jax.models import decoder
from pangu_jax.nn.how import How
from pangu_jax.pruning import axes
from pangu_jax.pruning.absorb import absorb
from pangu_jax.pruning.allocate import Limits, parse
from pangu_jax.pruning.compress import Recipe, compress
from pangu_jax.pruning.stats import SweepConfig, moments_type
from pangu_jax.train.distill import distill_loss
from pangu_jax.train.language import train_language
from pangu_jax.train.loop import LoopConfig, train
from pangu_jax.train.optimizer import OptimizerConfig, make_optimizer, schedule


@dataclasses.dataclass(frozen=True)
class Run:
    """What every cell works on: the dense model, and disjoint windows for each purpose."""

    experiment: Experiment
    folder: Path
    params: Any
    cfg: decoder.DecoderConfig
    training: PackedTokens
    calibration: np.ndarray
    measured: np.ndarray


def main() -> None:
    options = _options()
    experiment = PRESETS[options.preset]
    experiment = dataclasses.replace(experiment, data=options.data or experiment.data)
    folder = Path(options.out or f"runs/pangu_light-{options.preset}")
    results = open_results(folder, {**to_json(experiment), "checkpoint": options.checkpoint})
    run = _prepare(experiment, folder, options)
    _cell(folder, results, "dense", lambda: _dense(run))
    for name in experiment.starts:
        _cell(folder, results, f"start/{name}", partial(_start, run, name))
        for seed in experiment.seeds:
            _cell(folder, results, f"recover/{name}/seed{seed}", partial(_recover, run, name, seed))
    report = write_report(folder, experiment, results)
    print(f"{report} is the report", file=sys.stderr)


def _cell(folder: Path, results: dict, name: str, make: Callable[[], dict[str, Any]]) -> None:
    """Computes a cell that is not there yet, with the time that it took, and says what came out."""
    if not compute(folder, results, name, make, timed=True):
        return
    shown, seconds = results[name]["perplexity"], results[name]["seconds"]
    print(f"{name}: {shown:.3f} ({seconds:.0f} s)", file=sys.stderr, flush=True)


def _dense(run: Run) -> dict[str, Any]:
    """The dense model, and what absorbing its sandwich norms costs without any pruning."""
    found = {
        "perplexity": _perplexity(run, run.params, run.cfg),
        "parameters": axes.parameters(run.cfg),
    }
    return {**found, **_absorbed(run, run.params, run.cfg)}


def _start(run: Run, name: str) -> dict[str, Any]:
    found = _prune(run, name)
    return {
        "perplexity": _perplexity(run, found.params, found.cfg),
        "parameters": axes.parameters(found.cfg),
        "flops": axes.flops(found.cfg, run.experiment.length)
        / axes.flops(run.cfg, run.experiment.length),
        "layers": [part.layer for part in found.plan.layers],
        "moved": sum(len(part.moved) for part in found.plan.layers),
        "width": found.cfg.width,
        "sizes": repr(axes.sizes(found.cfg.layers[0])),
    }


def _recover(run: Run, name: str, seed: int) -> dict[str, Any]:
    """Distils one start; perplexity on the way goes to metrics.jsonl."""
    experiment, found = run.experiment, _prune(run, name)
    optimizer = OptimizerConfig(learning_rate=experiment.recover_rate, weight_decay=0.0)
    state = train(
        distill_loss(run.cfg, found.cfg, how=How(dtype=experiment.dtype)),
        decoder.spec(found.cfg),
        lambda step: drawn_batches(
            run.training, batch=experiment.batch, seed=1 + seed, start_step=step
        ),
        cfg=LoopConfig(
            experiment.recover_steps,
            checkpoint_every=500,
            keep=1,
            evaluate_every=max(1, experiment.recover_steps // 5),
        ),
        optimizer=make_optimizer(optimizer, experiment.recover_steps),
        schedule=schedule(optimizer, experiment.recover_steps),
        folder=run.folder / "recover" / f"{name}-seed{seed}",
        params=jax.tree.map(lambda x: x.astype(jnp.float32), found.params),
        evaluate=lambda params: {"perplexity": _perplexity(run, params, found.cfg)},
        label=name,
        frozen=run.params,
    )
    tokens = experiment.recover_steps * experiment.batch * experiment.length
    result = {"perplexity": _perplexity(run, state.params, found.cfg), "tokens": tokens}
    return {**result, **_absorbed(run, state.params, found.cfg)}


def _prune(run: Run, name: str):
    start = STARTS[name]
    return compress(
        run.params,
        run.calibration,
        cfg=run.cfg,
        target=parse(run.experiment.target),
        recipe=Recipe(
            method="pangu-light",
            clap=start.clap,
            norm=start.norm,
            repair=start.repair,
            propagate="dense",
        ),
        limits=Limits(multiple=1),  # meet the target to the parameter, whatever hardware likes
        sweep_cfg=SweepConfig(moments=moments_type(run.cfg)),
        how=How(dtype=run.experiment.dtype),
    )


def _absorbed(run: Run, params, cfg) -> dict[str, Any]:
    if not any(layer.norm_place == "sandwich" for layer in cfg.layers):
        return {}
    new, new_cfg, errors = absorb(
        params, run.calibration, cfg=cfg, max_rel_err=run.experiment.max_rel_err
    )
    folded = sum(layer.norm_place == "pre" for layer in new_cfg.layers)
    return {
        "absorbed": {
            "perplexity": _perplexity(run, new, new_cfg),
            "layers": folded,
            "of": len(cfg.layers),
            "errors": errors,
        }
    }


def _perplexity(run: Run, params, cfg) -> float:
    how = How(dtype=run.experiment.dtype)
    return measure_windows(params, run.measured, cfg=cfg, how=how).perplexity


def _prepare(experiment: Experiment, folder: Path, options) -> Run:
    """The dense model, trained or opened, and all windows."""
    if experiment.model is None and options.checkpoint is None:
        raise InputError(f"the preset {options.preset} needs --checkpoint")
    opened = None
    if options.checkpoint is not None:
        opened = open_checkpoint(options.checkpoint, kind="decoder", by="this experiment")
    tokenizer = load_tokenizer("bytes" if opened is None else opened[2])
    training, kept = split_documents(documents(experiment.data), experiment.held_out, halve=True)
    training, kept = take(training, 200_000_000), take(kept, 2_000_000)
    source = PackedTokens(tokenise(training, tokenizer), experiment.length)
    if opened is None:
        params, cfg = _train(experiment, source, folder / "base"), experiment.model
    else:
        params, cfg, _ = opened
    windows = cut_windows(tokenise(kept, tokenizer), experiment.length)
    if len(windows) < experiment.windows + 8:
        raise InputError(
            f"the held-out text fills {len(windows)} windows of {experiment.length} tokens, "
            f"{experiment.windows} are for calibration and more to measure on; give more text"
        )
    measured = windows[experiment.windows :][: experiment.eval_windows]
    return Run(experiment, folder, params, cfg, source, windows[: experiment.windows], measured)


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
    parser.add_argument("--out", help="the run's folder")
    return parser.parse_args()


if __name__ == "__main__":
    script(main)
