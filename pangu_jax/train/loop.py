"""The training loop: restores, steps, logs, saves, and stops when it is told to."""

import contextlib
import dataclasses
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from pangu_jax.checkpoint.store import Store, template
from pangu_jax.core.claim import Claim
from pangu_jax.core.errors import InputError
from pangu_jax.core.spec import abstract
from pangu_jax.core.tree import check_all_finite
from pangu_jax.sharding.launch import first_process
from pangu_jax.sharding.layout import Layout, batch_sharding
from pangu_jax.train.metrics import MetricLog, ProgressLine
from pangu_jax.train.optimizer import OptimizerConfig, make_optimizer, schedule
from pangu_jax.train.profile import Profiler
from pangu_jax.train.step import Loss, TrainState, abstract_state, init_state, make_step
from pangu_jax.train.stop import Stopped, stop_requests


@dataclasses.dataclass(frozen=True)
class LoopConfig:
    """How long a run is and what it leaves behind.

    Attributes:
      steps: optimiser steps.
      accumulate: microbatches a step.
      seed: of initial values and of the keys that losses get.
      checkpoint_every: steps between checkpoints; the last step is always saved.
      keep: latest checkpoints kept.
      evaluate_every: steps between evaluations; 0 for none before the end.
    """

    steps: int
    accumulate: int = 1
    seed: int = 0
    checkpoint_every: int = 500
    keep: int = 2
    evaluate_every: int = 0

    def __post_init__(self):
        for name in ("steps", "accumulate", "checkpoint_every", "keep"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} must be at least 1, got {getattr(self, name)}")


def train(
    loss: Loss,
    spec: Any,
    batches: Callable[[int], Iterator[Any]],
    *,
    cfg: LoopConfig,
    optimizer: OptimizerConfig,
    folder: str | Path | Claim,
    params: Any = None,
    evaluate: Callable[[Any], dict[str, float]] | None = None,
    label: str = "train",
    layout: Layout | None = None,
    profile: Profiler | None = None,
    context: Any = None,
) -> TrainState:
    """Trains from the last checkpoint in `folder`, or from the start, to `cfg.steps`.

    The same run in one piece or in several ends in the same bits: the state is saved whole, and
    `batches` is entered at the step where it goes on.

    Args:
      loss: `loss(params, batch, key) -> (sum, weight, {name: sum})`.
      spec: tree of `Spec` of the parameters.
      batches: `batches(step)` gives the batches from that step on, numpy arrays.
      cfg: length and checkpoints.
      optimizer: AdamW and its schedule.
      folder: the run's folder, or the claim of it that the caller holds: metrics.jsonl and
        checkpoints/ go there.
      params: parameters to start from; None draws them. Not used where a checkpoint is found.
      evaluate: called with the parameters every `evaluate_every` steps and at the end; what it
        returns goes to metrics.jsonl under "eval_" names.
      label: what the progress line says.
      layout: where arrays live; None is the default device.
      profile: traces some of the steps.
      context: see `step.make_step`.

    Returns:
      The state after the last step.

    Raises:
      InputError: the loss is not finite (names the step), or something cannot be written.
      Stopped: SIGTERM or SIGINT came; the step was finished and saved.
    """
    tx = make_optimizer(optimizer, cfg.steps)
    step = make_step(
        loss,
        tx,
        accumulate=cfg.accumulate,
        schedule=schedule(optimizer, cfg.steps),
        context=context,
    )
    if profile is not None:
        step = profile.watch(step)
    init_key, key = jax.random.split(jax.random.key(cfg.seed))
    with Store(folder, keep=cfg.keep) as store, stop_requests() as stop, _together(store):
        latest = store.latest()
        if latest is None:
            state = init_state(spec, tx, key=init_key, params=params, layout=layout)
        else:
            state = _restore(store, latest, spec, tx, layout)
        first = int(state.step)
        path = store.folder.parent / "metrics.jsonl"
        log = MetricLog(path, start_step=first, writes=first_process())
        line = ProgressLine(label, cfg.steps, first, shows=first_process())
        stream = batches(first) if first < cfg.steps else iter(())
        pending = None  # the metrics of the step before, fetched while the next one runs
        try:
            for number in range(first + 1, cfg.steps + 1):
                state, metrics = step(state, _place(next(stream), layout), key)
                if pending is not None:
                    _report(number - 1, pending, log, line, store)
                pending = metrics
                # Asked once a step: a signal that comes later is for the next.
                last, stopping = number == cfg.steps, stop.reached(number)
                saves = last or stopping or number % cfg.checkpoint_every == 0
                evaluates = last or (cfg.evaluate_every and number % cfg.evaluate_every == 0)
                if saves or evaluates:
                    _report(number, pending, log, line, store)
                    pending = None
                if evaluate is not None and evaluates:
                    scores = evaluate(state.params)
                    log.write(number, {f"eval_{n}": v for n, v in scores.items()})
                if saves:
                    _save(store, number, state)
                if stopping and not last:
                    store.wait()
                    raise Stopped(number, 128 + stop.signal)
            store.wait()
        finally:
            if profile is not None:
                profile.close()
            line.close()
            log.close()
    return state


@contextlib.contextmanager
def _together(store: Store) -> Iterator[None]:
    """Says what it means when what several processes do together fails.

    Raises:
      InputError: a computation failed, which with several processes is mostly that one has ended.
    """
    try:
        yield
    except (jax.errors.JaxRuntimeError, InputError) as error:
        if jax.process_count() == 1:
            raise
        store.abandon()  # nobody would answer
        if isinstance(error, InputError):
            raise
        reason = str(error).strip().splitlines()[0][:200]
        raise InputError(
            f"another process of the run has ended, or cannot be reached ({reason}); "
            f"{_kept(store)}; start all {jax.process_count()} processes again to go on"
        ) from error


def _save(store: Store, number: int, state: TrainState) -> None:
    # The loss and gradient that led here were finite; the update may still have overflowed.
    if not _finite(state.params):
        kept = _kept(store)
        raise InputError(f"the parameters are not finite after step {number}; {kept}")
    store.save(number, state.params, _rest(state))


@jax.jit
def _finite(params: Any) -> jax.Array:
    return jnp.array([jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(params)]).all()


def _kept(store: Store) -> str:
    kept = store.latest()
    return "no checkpoint was saved before" if kept is None else f"step {kept} is saved"


def _rest(state: TrainState) -> dict[str, Any]:
    return {"step": state.step, "opt_state": state.opt_state}


def _restore(store: Store, step: int, spec: Any, tx: Any, layout: Layout | None) -> TrainState:
    state = abstract_state(spec, tx, layout=layout)
    params = template(abstract(spec), spec, layout)
    params, rest = store.restore(step, params, _on_device(_rest(state), layout))
    where = str(store.folder / str(step))
    check_all_finite(params, where)
    check_all_finite(rest, where)
    return TrainState(rest["step"], params, rest["opt_state"])


def _on_device(shapes: Any, layout: Layout | None) -> Any:
    if layout is not None:
        return shapes
    where = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where), shapes)


def _place(batch: Any, layout: Layout | None) -> Any:
    if layout is None:
        return jax.tree.map(jnp.asarray, batch)
    return jax.tree.map(
        lambda x: jax.make_array_from_process_local_data(
            batch_sharding(np.shape(x), layout), np.asarray(x)
        ),
        batch,
    )


def _report(
    number: int, metrics: dict[str, jax.Array], log: MetricLog, line: ProgressLine, store: Store
) -> None:
    values = {name: float(value) for name, value in jax.device_get(metrics).items()}
    if not math.isfinite(values["loss"]) or not math.isfinite(values["grad_norm"]):
        store.wait()  # what is being written is of an earlier step, and good
        what = "gradient" if math.isfinite(values["loss"]) else "loss"
        raise InputError(
            f"the {what} is not finite at step {number}: loss {values['loss']}, gradient norm "
            f"{values['grad_norm']}; {_kept(store)}"
        )
    speed = line.update(number, values["loss"], values["weight"])
    log.write(number, {**values, "tokens_per_s": round(speed, 1)})
