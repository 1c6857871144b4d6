"""The training loop: restores, steps, logs, checkpoints, and stops on a signal."""

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from pangu_jax.checkpoint.store import NullStore, Store
from pangu_jax.core.errors import InputError
from pangu_jax.core.run_folder import Claim
from pangu_jax.sharding.launch import first_process
from pangu_jax.sharding.layout import Layout, batch_sharding
from pangu_jax.train import early_stopping
from pangu_jax.train.early_stopping import StopRule
from pangu_jax.train.loop_config import LoopConfig
from pangu_jax.train.metrics import MetricLog, ProgressLine
from pangu_jax.train.profile import Profiler
from pangu_jax.train.resume import explained, last_saved, restore, save
from pangu_jax.train.stages import Stage, StageSequence, sequence
from pangu_jax.train.step import BatchLoss, Loss, TrainState, make_step
from pangu_jax.train.stop_signal import Stopped, StopRequest, stop_requests


def train(
    loss: Loss | BatchLoss,
    spec: Any,
    batches: Callable[[int], Iterator[Any]],
    *,
    cfg: LoopConfig,
    optimizer: optax.GradientTransformation,
    folder: str | Path | Claim | None,
    schedule: optax.Schedule | None = None,
    frozen: Any = None,
    params: Any = None,
    trainable: str | None = None,
    evaluate: Callable[[Any], dict[str, Any]] | None = None,
    rule: StopRule | None = None,
    should_stop: Callable[[], bool] | None = None,
    unit: str = "tokens",
    label: str | None = "train",
    on_metrics: Callable[[dict[str, Any]], None] | None = None,
    layout: Layout | None = None,
    profile: Profiler | None = None,
) -> TrainState:
    """Trains from the last checkpoint in `folder`, or from the start, to `cfg.steps`.

    A run of one stage; see `train_stages` for the result and exceptions.

    Args:
      loss: `loss(params, frozen, batch, key) -> (sum, weight, {name: sum})`, or a `BatchLoss`.
      spec: tree of `Spec` of the parameters.
      batches: `batches(step)` yields the batches from that step on, numpy arrays.
      cfg: length and checkpoints.
      optimizer: transforms gradients into updates, such as one of `optimizer.make_optimizer`.
      folder: the run's folder, or the caller's claim on it: metrics.jsonl and checkpoints/ go
        there. None saves nothing, and leaves signals alone.
      schedule: the learning rate by step, for metrics.
      frozen: arrays that the loss reads but are not trained; see `Stage`.
      params: initial values, as in `train_stages`; so are all that follow.
      trainable: the leaves to train.
      evaluate: evaluation during training.
      rule: early stopping.
      should_stop: whether to stop after an evaluation.
      unit: the unit that the loss's weight counts.
      label: label of the progress line.
      on_metrics: is called with every line of metrics.
      layout: placement of the arrays.
      profile: traces some steps.
    """
    stage = Stage(cfg.steps, loss, batches, optimizer, schedule, frozen)
    return train_stages(
        [stage],
        spec,
        cfg=cfg,
        folder=folder,
        params=params,
        trainable=trainable,
        evaluate=evaluate,
        rule=rule,
        should_stop=should_stop,
        unit=unit,
        label=label,
        on_metrics=on_metrics,
        layout=layout,
        profile=profile,
    )


def train_stages(
    stages: Sequence[Stage],
    spec: Any,
    *,
    cfg: LoopConfig,
    folder: str | Path | Claim | None,
    params: Any = None,
    trainable: str | None = None,
    evaluate: Callable[[Any], dict[str, Any]] | None = None,
    rule: StopRule | None = None,
    should_stop: Callable[[], bool] | None = None,
    unit: str = "tokens",
    label: str | None = "train",
    on_metrics: Callable[[dict[str, Any]], None] | None = None,
    layout: Layout | None = None,
    profile: Profiler | None = None,
) -> TrainState:
    """Trains one stage after another, from the last checkpoint in `folder`, or from the start.

    A run ends in the same bits whether or not it was interrupted: the state is saved whole, and a
    stage's batches are entered at the step where it resumes.

    Args:
      stages: together of `cfg.steps` steps.
      spec: tree of `Spec` of the parameters.
      cfg: length and checkpoints.
      folder: as in `train`.
      params: parameters to start from, whose buffers the training takes over, those of several
        seeds stacked; None draws them. Not used where a checkpoint is found.
      trainable: a regular expression that trained leaves' full paths match; None trains all.
      evaluate: called with the parameters every `evaluate_every` steps and at the end; what it
        returns, numbers or for several seeds a list of them, goes to metrics.jsonl under "eval_"
        names.
      rule: early stopping; the best parameters are the state's `best`.
      should_stop: asked after every evaluation; True stops the run there, as a signal would.
      unit: the unit that the loss's weight counts, in the plural.
      label: label of the progress line; None shows none.
      on_metrics: called with every line of metrics, those from before the run was stopped first.
      layout: placement of the arrays; None is the default device.
      profile: traces some of the first steps.

    Returns:
      The state after the last step.

    Raises:
      InputError: the loss is not finite (names the step), the run in the folder is of other stages,
        or something cannot be written.
      Stopped: on SIGTERM or SIGINT, or when `should_stop` returned True; the step was finished and
        saved.
    """
    timeline = sequence(stages, cfg, trainable, layout)
    if rule is not None and evaluate is None:
        raise InputError(f"the stop rule wants {rule.metric}, but nothing is evaluated")
    init_key, key = _keys(cfg)
    place = NullStore() if folder is None else Store(folder, keep=cfg.keep)
    listens = stop_requests() if folder is not None else contextlib.nullcontext(StopRequest())
    with place as store, listens as stop, explained(store):
        latest = store.latest()
        if latest is None:
            state = timeline.start(0, spec, init_key, params)
            if rule is not None:
                state = state.replace(best=early_stopping.begin(state.params, len(cfg.seeds)))
        else:
            state = restore(store, latest, spec, timeline, rule is not None)
        first = int(state.step)
        path = None if isinstance(store, NullStore) else store.folder.parent / "metrics.jsonl"
        shows = first_process()
        log = MetricLog(path, start_step=first, writes=shows, on_metrics=on_metrics)
        line = ProgressLine(
            label or "", cfg.steps, first, unit=unit, shows=shows and label is not None
        )
        run = _Run(
            timeline, spec, key, store, stop, log, line, unit, evaluate, rule, should_stop, profile
        )
        try:
            for index in range(timeline.stage_of(first), len(stages)):
                state = _run_stage(run, index, state)
            store.wait()
        finally:
            if profile is not None:
                profile.close()
            line.close()
            log.close()
    return state


@dataclasses.dataclass(frozen=True)
class _Run:
    """The constants of a run."""

    timeline: StageSequence
    spec: Any
    key: jax.Array
    store: Store | NullStore
    stop: StopRequest
    log: MetricLog
    line: ProgressLine
    unit: str
    evaluate: Callable[[Any], dict[str, Any]] | None
    rule: StopRule | None
    should_stop: Callable[[], bool] | None
    profile: Profiler | None


def _keys(cfg: LoopConfig) -> tuple[jax.Array, jax.Array]:
    """Keys of the initial values and of the losses; arrays of them for several seeds."""
    pairs = [jax.random.split(jax.random.key(seed)) for seed in cfg.seeds]
    if len(pairs) == 1:
        return pairs[0][0], pairs[0][1]
    both = jnp.stack(pairs, 1)
    return both[0], both[1]


def _run_stage(run: _Run, index: int, state: TrainState) -> TrainState:
    """The remaining steps of a stage."""
    timeline, stage, end = run.timeline, run.timeline.stages[index], run.timeline.ends[index]
    begin, number = end - stage.steps, int(state.step)
    if number == end or _is_over(run, state):
        return state
    if number == begin and index and stage.optimizer is not None:
        fresh = timeline.start(index, run.spec, run.key, state.params)
        state = state.replace(opt_state=fresh.opt_state)
    steps = {count: _make_step(run, index, count) for count in {1, timeline.cfg.chunk}}
    stream = stage.batches(number - begin)
    pending = None  # the metrics of the steps before, fetched while the next ones run
    while number < end:
        left = timeline.boundary(number, end) - number
        count = timeline.cfg.chunk if left >= timeline.cfg.chunk else 1  # two compilations, no more
        batch = _batch(stream, count, timeline.layout)
        state, metrics = steps[count](state, batch, run.key, stage.frozen)
        if pending is not None:
            _report(run, *pending)
        pending, number = (number, count, metrics), number + count
        # Asked once per call: a later signal is handled by the next one.
        stopping = run.stop.reached(number)
        evaluates, saves = timeline.due(number)
        if evaluates or saves or stopping or number == end:
            _report(run, *pending)
            pending = None
        if evaluates:
            state = _evaluated(run, state, number)
        over = number == timeline.cfg.steps or _is_over(run, state)
        should_stop = evaluates and not over and run.should_stop is not None and run.should_stop()
        if saves or over or stopping or should_stop:
            save(run.store, number, state, timeline.told(index))
        if over:
            break
        if stopping or should_stop:
            run.store.wait()
            raise Stopped(number, 128 + run.stop.signal if stopping else 0, state)
    return state


def _make_step(run: _Run, index: int, count: int) -> Callable:
    timeline, stage = run.timeline, run.timeline.stages[index]
    step = make_step(
        stage.loss,
        timeline.optimizer(index),
        accumulate=timeline.cfg.accumulate,
        schedule=stage.schedule,
        trainable=timeline.trainable,
        seeds=len(timeline.cfg.seeds),
        chunk=count,
        layout=timeline.layout,
    )
    watches = run.profile is not None and index == 0 and count == timeline.cfg.chunk
    return run.profile.watch(step) if watches else step


def _batch(stream: Iterator[Any], count: int, layout: Layout | None) -> Any:
    """The next batch; for several steps, with a leading axis."""
    if count == 1:
        return _place(next(stream), layout)
    taken = [next(stream) for _ in range(count)]
    return _place(jax.tree.map(lambda *rows: np.stack(rows), *taken), layout, leading=1)


def _evaluated(run: _Run, state: TrainState, number: int) -> TrainState:
    """Evaluates, logs the result, and keeps the parameters that a stop rule prefers."""
    if run.evaluate is None:
        return state
    scores = run.evaluate(state.params)
    run.log.write(number, {f"eval_{name}": value for name, value in scores.items()})
    if run.rule is None:
        return state
    if run.rule.metric not in scores:
        raise InputError(
            f"the stop rule wants {run.rule.metric}, evaluated are {', '.join(scores)}"
        )
    score = scores[run.rule.metric]
    if not np.isfinite(score).all():
        raise InputError(
            f"the evaluated {run.rule.metric} is not finite at step {number}: {score}; "
            f"{last_saved(run.store)}"
        )
    return state.replace(
        best=early_stopping.judge(state.best, state.params, score, number, run.rule)
    )


def _is_over(run: _Run, state: TrainState) -> bool:
    return run.rule is not None and early_stopping.is_over(state.best, run.rule)


def _place(batch: Any, layout: Layout | None, leading: int = 0) -> Any:
    """The batch on its devices; the dimension that is split comes after the leading ones."""
    if layout is None:
        return jax.tree.map(jnp.asarray, batch)

    def put(x: Any) -> jax.Array:
        where = batch_sharding(np.shape(x)[leading:], layout)
        spec = jax.sharding.PartitionSpec(*[None] * leading, *where.spec)
        where = jax.sharding.NamedSharding(layout.mesh, spec)
        return jax.make_array_from_process_local_data(where, np.asarray(x))

    return jax.tree.map(put, batch)


def _report(run: _Run, before: int, count: int, metrics: dict[str, jax.Array]) -> None:
    """Writes and shows the metrics of the steps after `before`."""
    found = jax.device_get(metrics)
    if count == 1:
        found = {name: value[None] for name, value in found.items()}
    rows = [{name: value[i].tolist() for name, value in found.items()} for i in range(count)]
    for number, row in enumerate(rows, start=before + 1):
        _refuse_nonfinite(run, number, row)
    loss, weight = np.mean(rows[-1]["loss"]), sum(np.sum(row["weight"]) for row in rows)
    speed = round(run.line.update(before + count, float(loss), float(weight)), 1)
    index = run.timeline.stage_of(before + count)
    stage = {"stage": index + 1} if len(run.timeline.stages) > 1 else {}
    for number, row in enumerate(rows, start=before + 1):
        run.log.write(number, {**row, **stage, f"{run.unit}_per_s": speed})


def _refuse_nonfinite(run: _Run, number: int, row: dict[str, Any]) -> None:
    loss, norm = row["loss"], row["grad_norm"]
    if np.isfinite(loss).all() and np.isfinite(norm).all():
        return
    run.store.wait()  # what is being written is of an earlier step, and good
    what = "gradient" if np.isfinite(loss).all() else "loss"
    raise InputError(
        f"the {what} is not finite at step {number}: loss {loss}, gradient norm {norm}; "
        f"{last_saved(run.store)}"
    )
