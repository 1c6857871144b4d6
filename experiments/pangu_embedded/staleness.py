"""Pangu Embedded: what a bound on staleness buys, measured beside simulated, and what it costs.

Source: "Pangu Embedded", arXiv 2505.22375, whose reinforcement learning tolerates latency; the
scheduler and the task are our own.

    python -m experiments.pangu_embedded.staleness --preset smoke

Speed: for each seed of log-normal lengths a decoder writes answers that are told to be so long, and
is trained on them, in one process on one device, at several bounds. What a token takes is taken
from the synchronous run, what an update takes from each run (correcting for older weights costs a
forward pass), and the simulator says from it what they should take (`Costs.shared`).

Learning: for each seed a small decoder learns sums from solutions until some of the held-out
questions are right, and goes on by rewards: synchronous; at a bound of 4, corrected; and
at a bound of 8, not corrected. Slots are as many as answers may be under way, so that ages come up
to the bound.

Writes runs/<name>/results.json and report.md with plots, and prints the tables. A run that was
stopped keeps the cells that it has, and goes on within training by rewards; a base's training and a
measurement of speed begin again. --minutes ends it after the cell that goes beyond them, --part
takes one of the two, --seeds some of the seeds; the report has the seeds that are whole.
"""

import dataclasses
import time
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import jax
import numpy as np

from experiments.pangu_embedded.arithmetic import LENGTH, STOP, Questions, accuracy, learn, model
from experiments.pangu_embedded.config import ARMS, LONGEST, STALENESS, Learning, Speed
from experiments.pangu_embedded.staleness_report import text, write_report
from pangu_jax.cli.stopping import script
from pangu_jax.core.errors import InputError
from pangu_jax.core.spec import init
from pangu_jax.core.tree import flatten
from pangu_jax.losses.policy import GRPO
from pangu_jax.models import decoder
from pangu_jax.nn.how import How
from pangu_jax.reasoning.rl import train
from pangu_jax.reasoning.rl_config import RlConfig
from pangu_jax.reasoning.sampler import LocalSampler
from pangu_jax.reasoning.schedule_simulate import lognormal
from pangu_jax.reasoning.schedule_state import ScheduleConfig
from pangu_jax.study import options, report
from pangu_jax.study.cells import Cells, begin, cell, in_time, say
from pangu_jax.train.optimizer import make_optimizer
from pangu_jax.train.optimizer_config import OptimizerConfig

LENGTHS = (12, 28, 60, 124, 252, LONGEST)  # of a batch's longest answer: one for each program


def main() -> None:
    parser = options.parser(
        __doc__,
        STALENESS,
        data=None,
        seeds="of those of the preset",
        minutes="no cell is begun after so long",
    )
    parser.add_argument("--part", choices=("speed", "learning"), help="what is computed now")
    given = parser.parse_args()
    experiment, folder = options.chosen(given, STALENESS, "pangu_embedded_staleness")
    has = {"speed": experiment.speed.seeds, "learning": experiment.learning.seeds}
    has = [has[given.part]] if given.part else has.values()
    if unknown := set(given.seeds or ()) - set().union(*has):
        raise InputError(f"--seeds {min(unknown)}: the preset has {sorted(set().union(*has))}")
    cells = begin(folder, experiment, device=report.machine())
    for name, make in in_time(cells, _all(experiment, folder, cells, given), given.minutes):
        cell(cells, name, make, shown=lambda found: f"{found['shown']:.3f}")
    print(text(experiment, cells.results))
    say(f"{write_report(folder, experiment, cells.results)} is the report")


def _all(experiment: Any, folder: Path, cells: Cells, given: Any):
    """The name of every cell to compute now, and what computes it."""
    speed, learning = experiment.speed, experiment.learning
    run = Timed(speed)
    for seed in _seeds(speed, given) if given.part != "learning" else ():
        for bound in speed.bounds:
            yield f"speed/{bound}/{seed}", partial(run.measure, bound, seed)
    for seed in _seeds(learning, given) if given.part != "speed" else ():
        yield f"base/{seed}", partial(_base, learning, folder, seed)
        for arm in ARMS:
            yield f"{arm}/{seed}", partial(_arm, learning, folder, cells, arm, seed)


def _seeds(part: Speed | Learning, given: Any) -> list[int]:
    return [seed for seed in part.seeds if given.seeds is None or seed in given.seeds]


class Told(LocalSampler):
    """Answers of told lengths: as many tokens as `lengths(group, sample)` says."""

    def __init__(self, lengths: Any, params: Any, **rest: Any):
        super().__init__(params, **rest)
        self._lengths = lengths

    def start(self, group: int, sample: int, request: Any) -> None:
        """See `LocalSampler`."""
        tokens = self._lengths(group, sample)
        super().start(group, sample, dataclasses.replace(request, max_new_tokens=tokens))


class Timed:
    """Runs at several bounds that share their programs."""

    def __init__(self, experiment: Speed):
        self._cfg, self._warm = experiment, False
        self._model = model(experiment.layers, experiment.width)
        settings = OptimizerConfig(learning_rate=1e-5, schedule="constant", weight_decay=0.0)
        self._optimizer = make_optimizer(settings, experiment.updates)
        self._draw = lognormal(experiment.mean, experiment.sigma, LONGEST)
        self._of_group = lru_cache(self._lengths)

    def lengths(self, seed: int, group: int, sample: int) -> int:
        """The same as the simulator's."""
        return int(self._of_group(seed, group)[sample])

    def _lengths(self, seed: int, group: int) -> np.ndarray:
        rngs = (np.random.default_rng([seed, group]), np.random.default_rng([seed, group, 0]))
        return self._draw(*rngs, self._cfg.group)

    def measure(self, bound: int, seed: int) -> dict[str, Any]:
        """Seconds of a run, once its programs are compiled."""
        if not self._warm:
            for tokens in LENGTHS:
                for stale in (0, 1):  # corrected or not
                    # Twice: what comes of an update may be of another program.
                    self._run(stale, 2, lambda group, sample, n=tokens: n)
            self._warm = True
        began = time.monotonic()
        seen = self._run(bound, self._cfg.updates, partial(self.lengths, seed))
        seconds = time.monotonic() - began
        trained = sum(line["seconds"] * (1 - line["trainer_idle"]) for line in seen)
        ages = np.bincount([age for line in seen for age in line["ages"]]).tolist()
        idle = float(np.mean([line["generator_idle"] for line in seen]))
        return {
            "seconds_of_run": seconds,
            "trained": trained,
            "generator_idle": idle,
            "ages": ages,
            "shown": seconds,
        }

    def _run(self, bound: int, updates: int, lengths: Any) -> list[dict[str, Any]]:
        cfg, seen = self._cfg, []
        plan = ScheduleConfig(bound, batch=cfg.batch, group=cfg.group, slots=cfg.slots)
        params = init(decoder.spec(self._model), key=jax.random.key(0))
        train(
            params,
            lambda number: [1, 2],
            lambda number, found: [float(np.mean(answer.ids < 8)) for answer in found],
            model=self._model,
            cfg=RlConfig(plan, GRPO, updates, length=512, max_new_tokens=LONGEST),
            optimizer=self._optimizer,
            on_update=seen.append,
            sampler=partial(Told, lengths),
            how=How(dtype=cfg.dtype),
        )
        return seen


def _base(experiment: Learning, folder: Path, seed: int) -> dict[str, Any]:
    params, right, steps = learn(experiment, seed, How(dtype=experiment.dtype))
    np.savez(folder / f"base-{seed}.npz", **jax.device_get(flatten(params)))
    return {"right": right, "steps": steps, "shown": right}


def _opened(experiment: Learning, folder: Path, seed: int) -> Any:
    """The base of a seed, as it was saved."""
    spec = decoder.spec(model(experiment.layers, experiment.width))
    params = init(spec, key=jax.random.key(seed))
    with np.load(folder / f"base-{seed}.npz") as saved:
        leaves = [jax.numpy.asarray(saved[name]) for name in flatten(params)]
    return jax.tree.unflatten(jax.tree.structure(params), leaves)


def _arm(experiment: Learning, folder: Path, cells: Cells, arm: str, seed: int) -> dict[str, Any]:
    setting, how = ARMS[arm], How(dtype=experiment.dtype)
    cfg = model(experiment.layers, experiment.width)
    bound, rows = setting["staleness"], experiment.batch * experiment.group
    plan = ScheduleConfig(
        bound, batch=experiment.batch, group=experiment.group, slots=(bound + 1) * rows
    )
    settings = OptimizerConfig(
        learning_rate=experiment.learning_rate, schedule="constant", weight_decay=0.0
    )
    questions, seen = Questions(experiment.digits, seed), []
    state = train(
        _opened(experiment, folder, seed),
        questions.prompt,
        questions.reward,
        model=cfg,
        cfg=RlConfig(
            plan,
            GRPO,
            experiment.updates,
            length=LENGTH,
            max_new_tokens=6,
            stop_ids=(STOP,),
            corrected=setting["corrected"],
            save_every=50,
            seed=seed,
        ),
        optimizer=make_optimizer(settings, experiment.updates),
        folder=folder / f"rl-{bound}-{seed}",
        on_update=seen.append,
        how=how,
    )
    right = accuracy(state.params, cfg, experiment.digits, experiment.questions, how)
    ages = [age for line in seen for age in line["ages"]]
    return {
        "right": right,
        "gain": right - cells.results[f"base/{seed}"]["right"],
        "rewards": [line["reward"] for line in seen[:: max(1, experiment.updates // 20)]],
        "mean_age": float(np.mean(ages)),
        "largest_age": max(ages),
        # Of all stretches of a run that was stopped, but for what came to no update.
        "run_seconds": sum(line["seconds"] for line in seen),
        "shown": right,
    }


if __name__ == "__main__":
    script(main)
