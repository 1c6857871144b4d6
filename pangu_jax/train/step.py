"""One optimiser step: gradients of a summed loss, divided once."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from einops import rearrange
from flax import struct

from pangu_jax.core.errors import InputError
from pangu_jax.core.spec import abstract
from pangu_jax.sharding.layout import Layout, init, shardings

# loss(params, batch, key) -> (sum, weight, {name: sum})
Loss = Callable[[Any, Any, jax.Array], tuple[jax.Array, jax.Array, dict[str, jax.Array]]]


@struct.dataclass
class TrainState:
    """Everything a run goes on from.

    Attributes:
      step: int32 scalar, steps done.
      params: the parameters.
      opt_state: the optimiser's state.
    """

    step: jax.Array
    params: Any
    opt_state: Any


def init_state(
    spec: Any,
    optimizer: optax.GradientTransformation,
    *,
    key: jax.Array,
    params: Any = None,
    layout: Layout | None = None,
) -> TrainState:
    """A state at step 0, split as `layout` says.

    Args:
      spec: tree of `Spec`.
      optimizer: whose state is made.
      key: for initial values.
      params: parameters to start from; None draws them.
      layout: where arrays live; None is one device.
    """
    if params is None:
        params = init(spec, key=key, layout=layout)
    where = None if layout is None else _like_params(optimizer, spec, layout)
    opt_state = jax.jit(optimizer.init, out_shardings=where)(params)
    return TrainState(jnp.int32(0), params, opt_state)


def abstract_state(
    spec: Any, optimizer: optax.GradientTransformation, *, layout: Layout | None = None
) -> TrainState:
    """The state's shapes, types and shardings without its values: the template to restore into."""
    params = abstract(spec)
    opt_state = jax.eval_shape(optimizer.init, params)
    state = TrainState(jax.ShapeDtypeStruct((), jnp.int32), params, opt_state)
    if layout is None:
        return state
    where = TrainState(
        jax.sharding.NamedSharding(layout.mesh, jax.sharding.PartitionSpec()),
        shardings(spec, layout),
        _like_params(optimizer, spec, layout),
    )
    return jax.tree.map(
        lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), state, where
    )


def make_step(
    loss: Loss,
    optimizer: optax.GradientTransformation,
    *,
    accumulate: int = 1,
    schedule: optax.Schedule | None = None,
    context: Any = None,
) -> Callable[[TrainState, Any, jax.Array], tuple[TrainState, dict[str, jax.Array]]]:
    """The jitted step: `state, metrics = step(state, batch, key)`; the old state is given up.

    The batch is cut into `accumulate` microbatches whose loss sums, weights and gradients add up;
    one division by the summed weight at the end makes every token count the same however they are
    spread over microbatches. Metrics that the loss names are sums and are divided alike.

    Args:
      loss: `loss(params, batch, key) -> (sum, weight, {name: sum})`.
      optimizer: what turns gradients into updates.
      accumulate: number of microbatches; it divides every leaf's first dimension.
      schedule: reported as learning_rate, if given.
      context: arrays that the loss reads and nobody trains, such as a teacher's parameters: it
        finds them in the batch under "context". They are arguments of the compiled step, where
        arrays that a loss closes over would be copied into the program.

    Returns:
      The step. Its metrics are float32 scalars: loss, weight, grad_norm, and those of the loss.
    """

    def total(params, batch, key, context):
        batch = batch if context is None else {**batch, "context": context}
        value, weight, metrics = loss(params, batch, key)
        return value, {"weight": weight, **metrics}

    grad = jax.value_and_grad(total, has_aux=True)

    def gradients(params, batch, key, context):
        if accumulate == 1:
            return grad(params, batch, key, context)
        micro = jax.tree.map(lambda x: _cut(x, accumulate), batch)

        def add(sums, inputs):
            return jax.tree.map(jnp.add, sums, grad(params, *inputs, context)), None

        keys = jax.random.split(key, accumulate)
        first = jax.tree.map(lambda x: x[0], (micro, keys))
        shapes = jax.eval_shape(lambda p, x: grad(p, *x, context), params, first)
        zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
        return jax.lax.scan(add, zeros, (micro, keys))[0]

    def step(state: TrainState, batch: Any, key: jax.Array, context: Any = None):
        key = jax.random.fold_in(key, state.step)
        (value, sums), grads = gradients(state.params, batch, key, context)
        weight = sums.pop("weight")
        by = 1 / jnp.maximum(weight, 1e-9)
        grads = jax.tree.map(lambda g: g * by.astype(g.dtype), grads)
        with jax.named_scope("optimizer"):
            updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
            params = optax.apply_updates(state.params, updates)
        metrics = {"loss": value * by, **{name: x * by for name, x in sums.items()}}
        metrics |= {"weight": weight, "grad_norm": optax.tree.norm(grads)}
        if schedule is not None:
            metrics["learning_rate"] = jnp.asarray(schedule(state.step), jnp.float32)
        return TrainState(state.step + 1, params, opt_state), metrics

    compiled = jax.jit(step, donate_argnums=0)
    if context is None:
        return compiled
    return lambda state, batch, key: compiled(state, batch, key, context)


def _cut(x: Any, parts: int) -> Any:
    if x.shape[0] % parts:
        raise InputError(f"accumulate {parts} must divide the batch of {x.shape[0]}")
    return rearrange(x, "(part b) ... -> part b ...", part=parts)


def _like_params(optimizer, spec, layout) -> Any:
    """Shardings of the optimiser's state: moments as their parameters, the rest whole."""
    whole = jax.sharding.NamedSharding(layout.mesh, jax.sharding.PartitionSpec())
    opt_state = jax.eval_shape(optimizer.init, abstract(spec))
    return optax.tree.map_params(
        optimizer,
        lambda _, s: s,
        opt_state,
        shardings(spec, layout),
        transform_non_params=lambda _: whole,
    )
