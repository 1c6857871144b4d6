"""Latent chain of thought: written chains, none, internalized ones, pauses and thoughts compared.

Source: "Reasoning Beyond Language: A Comprehensive Survey on Latent Chain-of-Thought Reasoning",
arXiv 2505.16782, of which these methods are examples: Coconut (2412.06769), stepwise
internalization (2405.14838), pause tokens (2310.02226), CODI (2502.21074), planning tokens
(2310.05707), looped layers (2502.17416), adaptive depth (our reading).

Claim examined: hidden states that are fed back can stand in for written steps, and do more than as
many slots that are fed nothing.

    python experiments/latent_cot/run.py --preset smoke                  two minutes on two cores
    python experiments/latent_cot/run.py --preset cpu                    two cores
    python experiments/latent_cot/run.py --preset gpu --data FOLDER      one GPU
    python experiments/latent_cot/run.py --preset gpu --data FOLDER --workers 4 --gpus 2
                                                                         two, with two cells on each
    python experiments/latent_cot/run.py --preset smollm2 --model SMOLLM2 --data FOLDER
                                                                         one GPU, a trained model

Trains every method for as many steps on the same task, from scratch (smollm2: from a checkpoint,
until each has read as many tokens and thoughts), and measures accuracy, slots,
tokens, floating-point operations and time of an answer, and what is left of the accuracy when
thoughts are exchanged for zeros, noise, another problem's or pauses. --only takes some of the
cells, such as mult4x4/icot, --seeds others; a run goes on where it was stopped, in the middle of a
cell, too. --seconds stops it as a signal would, at the end of a step.

Not reproduced: published runs begin with GPT-2, and have other sizes and lengths of training.
"""

import dataclasses
import os
import signal
import threading
import time
from collections.abc import Callable
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import jax

from experiments.latent_cot.budget import phases_for, read_in_training
from experiments.latent_cot.config import PRESETS, Experiment, Plan
from experiments.latent_cot.report import name_of, write_report
from experiments.latent_cot.start import Start, begin_with
from pangu_jax.cli.stopping import script
from pangu_jax.core.config import to_json
from pangu_jax.core.errors import InputError
from pangu_jax.core.spec import count
from pangu_jax.models import decoder, registry
from pangu_jax.models.thinker import ThinkerConfig, from_decoder, written_out
from pangu_jax.nn.how import How
from pangu_jax.reasoning.latent import train as latent
from pangu_jax.reasoning.latent.answer import solve
from pangu_jax.reasoning.latent.config import MethodConfig
from pangu_jax.reasoning.latent.curriculum import Phase
from pangu_jax.reasoning.latent.method import Method
from pangu_jax.reasoning.latent.registry import METHODS
from pangu_jax.reasoning.latent.score import Score, scores
from pangu_jax.reasoning.latent.slots import Encoded, Markers
from pangu_jax.study import options, workers
from pangu_jax.study.cells import say
from pangu_jax.study.timing import timed
from pangu_jax.train.loop_config import LoopConfig


def main() -> None:
    parser = options.parser(
        __doc__, PRESETS, data=None, seeds="of initial values and problems", workers=True
    )
    parser.add_argument("--data", help="a folder with the test files; without it tests are drawn")
    parser.add_argument("--model", help="for smollm2: a decoder to start from")
    parser.add_argument("--tokens", type=options.positive, help="for smollm2: what each reads")
    parser.add_argument("--only", nargs="+", help="cells to compute now, such as mult4x4/icot")
    given = parser.parse_args()
    experiment, folder = options.chosen(given, PRESETS, "latent_cot")
    if given.tokens and not PRESETS[given.preset].tokens:
        raise InputError(f"the preset {given.preset} counts steps, not --tokens")
    if (given.model is None) == any(not plan.model for plan in experiment.plans):
        raise InputError("the preset smollm2 needs --model, a decoder; the others take none")
    settings = to_json(dataclasses.replace(experiment, seeds=()))  # as each seed has cells
    settings |= {"data": given.data, "model": given.model}
    if given.seconds is not None and given.workers == 1:  # several are told by the first process
        _stop_after(given.seconds)
    results = workers.run(
        folder,
        settings,
        "experiments.latent_cot.run",
        given,
        partial(_cells, experiment, given),
        shown=lambda found: f"{found['accuracy']:.1%}",
    )
    if results is not None:
        say(f"{write_report(folder, experiment, results)} is the report")


def _cells(experiment: Experiment, given: Any) -> workers.Makes:
    """What computes each of the cells that are asked for, by name."""
    starts = lru_cache(maxsize=2)(begin_with)  # one with planning tokens, one without
    found = {}
    for plan in experiment.plans:
        for seed in experiment.seeds:
            for method in plan.methods:
                if given.only and not {plan.task, f"{plan.task}/{method}"} & set(given.only):
                    continue
                name = name_of(plan, method, seed)
                plans = MethodConfig().plans if METHODS[method].plans else 0
                start = partial(starts, plan, seed, given.data, given.model, plans)
                found[name] = partial(_cell, experiment, plan, method, seed, start)
    return found


def _cell(
    experiment: Experiment,
    plan: Plan,
    method: str,
    seed: int,
    begin: Callable[[], Start],
    folder: Path,
    stop: workers.Stop,
) -> dict[str, Any]:
    del stop  # a signal ends training
    start = begin()
    ids, model = start.ids, METHODS[method].model(start.model, MethodConfig())
    begin_from = start.params
    if begin_from is not None and isinstance(model, ThinkerConfig):
        begin_from = from_decoder(begin_from, model, key=jax.random.key(seed))
    given = plan, method, ids.training, ids.markers
    phases = phases_for(experiment.tokens, *given)
    steps = sum(phase.steps for phase in phases)
    how = How(dtype=experiment.dtype)
    train = partial(
        latent.train,
        ids.training,
        phases,
        method=method,
        markers=ids.markers,
        model=model,
        params=begin_from,
        loop=LoopConfig(steps, seed=seed, checkpoint_every=2000),
        batch=plan.batch,
        optimizer=plan.optimizer(method),
        folder=folder,
        label=f"{plan.task} {method}",
        how=how,
    )
    state, trained_s = timed(train, folder, steps)
    params, cfg = written_out(state.params, model)
    asked = {
        "method": METHODS[method],
        "phase": phases[-1],
        "markers": ids.markers,
        "cfg": cfg,
        "max_new_tokens": start.longest + 8,
        "how": how,
    }
    figures = scores(params, ids.testing, batch=64, **asked)
    found = figures.pop("")
    ask, timings = partial(solve, params, **asked), ids.testing[: experiment.timed]
    return {
        **dataclasses.asdict(found),
        "parameters": count(registry.spec(model)),
        "flops": _flops(cfg, METHODS[method], phases[-1], ids.markers, ids.testing, found),
        "seconds_per_answer": _seconds(ask, timings) if timings else None,
        "ablations": {kind: one.accuracy for kind, one in figures.items()},
        "steps": steps,
        "read_in_training": read_in_training(plan, method, phases, *given[2:], seed),
        "train_seconds": trained_s,
        "larger": start.larger,
        "device": jax.devices()[0].device_kind,
    }


def _flops(
    cfg: decoder.DecoderConfig,
    method: Method,
    phase: Phase,
    markers: Markers,
    problems: list[Encoded],
    found: Score,
) -> float:
    """Floating-point operations of an answer: two for each weight and each slot that is computed.

    These are what is given, thoughts, and all tokens but the last, which nothing follows.
    """
    rows = [method.slots(x, phase, markers, 0) for x in problems]
    given = sum(len(row.prefix) + row.given for row in rows) / len(rows)
    slots = given + method.thoughts(phase) + found.tokens - 1
    head = cfg.vocab * cfg.width
    weights = count(decoder.spec(cfg)) - head * (1 if cfg.tied else 2)
    weights = head + weights * found.layers / len(cfg.layers)  # those that are skipped left out
    return 2 * weights * slots


def _stop_after(seconds: float) -> None:
    """Has the process told to stop, as by `kill`, after so long."""
    timer = threading.Timer(seconds, os.kill, (os.getpid(), signal.SIGTERM))
    timer.daemon = True
    timer.start()


def _seconds(ask: Any, problems: list) -> float:
    """Seconds of an answer, one at a time, after all shapes were compiled."""
    ask(problems, batch=1)
    began = time.monotonic()
    ask(problems, batch=1)
    return (time.monotonic() - began) / len(problems)


if __name__ == "__main__":
    script(main)
