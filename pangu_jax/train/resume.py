"""Saves and restores a run's state, and explains failures."""

import contextlib
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp

from pangu_jax.checkpoint.store import NullStore, Store, template
from pangu_jax.core.errors import InputError
from pangu_jax.core.spec import abstract
from pangu_jax.core.tree import check_all_finite
from pangu_jax.sharding.layout import Layout
from pangu_jax.train.stages import StageSequence
from pangu_jax.train.step import TrainState, abstract_state, one_device, with_seeds


def save(store: Store | NullStore, number: int, state: TrainState, told: dict[str, Any]) -> None:
    """Saves the state after a step, with the metadata of `StageSequence.told`.

    Raises:
      InputError: the parameters are not finite.
    """
    # The loss and gradient that led here were finite; the update may still have overflowed.
    if not _finite(state.params):
        kept = last_saved(store)
        raise InputError(f"the parameters are not finite after step {number}; {kept}")
    store.save(number, state.params, beside_parameters(state) | told)


@jax.jit
def _finite(params: Any) -> jax.Array:
    return jnp.array([jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(params)]).all()


def last_saved(store: Store | NullStore) -> str:
    """Describes the last saved step, for error messages."""
    kept = store.latest()
    return "no checkpoint was saved before" if kept is None else f"step {kept} is saved"


def beside_parameters(state: TrainState) -> dict[str, Any]:
    """The part of a checkpoint besides the parameters."""
    rest = {"step": state.step, "opt_state": state.opt_state}
    return rest if state.best is None else {**rest, "best": state.best}


def restore(
    store: Store, step: int, spec: Any, plan: StageSequence, keeps_best: bool
) -> TrainState:
    """The state after a saved step.

    Args:
      store: the run's checkpoints.
      step: its number.
      spec: tree of `Spec` of the parameters.
      plan: the run's stages.
      keeps_best: whether the best parameters are part of the state.

    Raises:
      InputError: it is of other stages, of a longer run, or not finite.
    """
    if step > plan.cfg.steps:
        raise InputError(
            f"{store.folder} holds step {step}, the run has {plan.cfg.steps} steps alone"
        )
    seeds, layout, index = len(plan.cfg.seeds), plan.layout, plan.stage_of(step)
    state = abstract_state(
        spec,
        plan.optimizer(index),
        layout=layout,
        trainable=plan.trainable,
        seeds=seeds,
        keeps_best=keeps_best,
    )
    stacked = with_seeds(spec, seeds)
    params = template(abstract(stacked), stacked, layout)
    told = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), plan.told(index))
    params, rest = store.restore(step, params, on_device(beside_parameters(state) | told, layout))
    where = str(store.folder / str(step))
    check_all_finite(params, where)
    check_all_finite(rest, where)
    if told and rest["stage"] != index + 1:
        raise InputError(
            f"{where} is of stage {int(rest['stage'])}, by the run's stages step {step} is of "
            f"stage {index + 1}"
        )
    return TrainState(rest["step"], params, rest["opt_state"], rest.get("best"))


def on_device(shapes: Any, layout: Layout | None) -> Any:
    """Shapes placed on the default device, unless they have a sharding of a layout."""
    if layout is not None:
        return shapes
    where = one_device()
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where), shapes)


@contextlib.contextmanager
def explained(store: Store | NullStore) -> Iterator[None]:
    """Explains the failure of something that several processes do together.

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
            f"{last_saved(store)}; start all {jax.process_count()} processes again to go on"
        ) from error
