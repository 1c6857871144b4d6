"""One optimizer step: gradients of a summed loss, divided once."""

import dataclasses
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import jax
import jax.numpy as jnp
import optax
from einops import rearrange
from flax import struct

from pangu_jax.core.errors import InputError
from pangu_jax.core.platform import target
from pangu_jax.core.spec import abstract, is_spec
from pangu_jax.core.tree import join, split
from pangu_jax.sharding.layout import Layout, init, shardings
from pangu_jax.train.early_stopping import Best, begin

SMALL = 2**20  # elements of a leaf that is quickly copied

# loss(params, frozen, batch, key) -> (sum, weight, {name: sum})
Loss = Callable[[Any, Any, Any, jax.Array], tuple[jax.Array, jax.Array, dict[str, jax.Array]]]


@dataclasses.dataclass(frozen=True)
class BatchLoss:
    """A loss that does not add up over microbatches, as every row is compared with every other.

    Accumulating then caches gradients instead: microbatches are embedded one by one, all embeddings
    are compared at once, and backward embeds each microbatch again. So the gradient is that of the
    whole batch, in the memory of one microbatch and all embeddings.

    Attributes:
      embed: `embed(params, frozen, batch, key)` returns a tree of arrays, one row for each of the
        batch; rows do not see each other.
      compare: `compare(embeddings, frozen, batch) -> (sum, weight, {name: sum})`, of the whole
        batch.

    Source: arXiv 2101.06983, section 3.2.
    """

    embed: Callable[[Any, Any, Any, jax.Array], Any]
    compare: Callable[[Any, Any, Any], tuple[jax.Array, jax.Array, dict[str, jax.Array]]]


@struct.dataclass
class TrainState:
    """Everything a run resumes from.

    Where several seeds are trained, all leaves but `step` have a leading axis of them.

    Attributes:
      step: int32 scalar, steps done.
      params: the parameters, trained or not.
      opt_state: the optimizer's state of the trained parameters.
      best: the best parameters so far, if a stop rule keeps them.
    """

    step: jax.Array
    params: Any
    opt_state: Any
    best: Best | None = None


def init_state(
    spec: Any,
    optimizer: optax.GradientTransformation,
    *,
    key: jax.Array,
    params: Any = None,
    layout: Layout | None = None,
    trainable: str | None = None,
) -> TrainState:
    """A state at step 0, split as `layout` says.

    Args:
      spec: tree of `Spec`.
      optimizer: the optimizer of the state.
      key: for initial values; an array of keys, one per seed, for several.
      params: parameters to start from, those of several seeds stacked; None draws them.
      layout: placement of the arrays; None is one device.
      trainable: see `make_step`.
    """
    seeds = key.size
    if params is None:
        params = draw(spec, key, layout)
    where = None if layout is None else _like_params(optimizer, spec, layout, trainable)
    start = jax.jit(_initializer(optimizer, trainable, seeds), out_shardings=where)
    state = TrainState(jnp.int32(0), params, start(params))
    held = {x.sharding for x in jax.tree.leaves(params) if isinstance(x, jax.Array)}
    if layout is not None or len(held) != 1:
        return state
    (place,) = held
    # Bound to its device as a restored state is: else a step is compiled again after a restart.
    one = isinstance(place, jax.sharding.SingleDeviceSharding)
    return jax.device_put(state, place) if one else state


def one_device() -> jax.sharding.SingleDeviceSharding:
    """The placement of arrays without a layout: this process's first device."""
    return jax.sharding.SingleDeviceSharding(jax.local_devices()[0])


def draw(spec: Any, key: jax.Array, layout: Layout | None = None) -> Any:
    """Initial values; several keys add a leading axis, each entry as for that key alone."""
    if key.size == 1:
        return init(spec, key=key.reshape(()), layout=layout)
    return jax.vmap(lambda one: init(spec, key=one))(key)


def abstract_state(
    spec: Any,
    optimizer: optax.GradientTransformation,
    *,
    layout: Layout | None = None,
    trainable: str | None = None,
    seeds: int = 1,
    keeps_best: bool = False,
) -> TrainState:
    """The state's shapes, types and shardings without its values: the template to restore into."""
    params = abstract(with_seeds(spec, seeds))
    opt_state = jax.eval_shape(_initializer(optimizer, trainable, seeds), params)
    best = jax.eval_shape(lambda p: begin(p, seeds), params) if keeps_best else None
    state = TrainState(jax.ShapeDtypeStruct((), jnp.int32), params, opt_state, best)
    if layout is None:
        return state
    whole = jax.sharding.NamedSharding(layout.mesh, jax.sharding.PartitionSpec())
    where = TrainState(
        whole,
        shardings(spec, layout),
        _like_params(optimizer, spec, layout, trainable),
        Best(shardings(spec, layout), whole, whole, whole) if keeps_best else None,
    )
    return jax.tree.map(
        lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), state, where
    )


def with_seeds(spec: Any, seeds: int) -> Any:
    """The spec of one or more models; several have a leading axis."""
    if seeds == 1:
        return spec
    return jax.tree.map(
        lambda s: dataclasses.replace(s, shape=(seeds, *s.shape), axes=(None, *s.axes)),
        spec,
        is_leaf=is_spec,
    )


@lru_cache(maxsize=8)
def make_step(
    loss: Loss | BatchLoss,
    optimizer: optax.GradientTransformation,
    *,
    accumulate: int = 1,
    schedule: optax.Schedule | None = None,
    trainable: str | None = None,
    seeds: int = 1,
    chunk: int = 1,
    layout: Layout | None = None,
) -> Callable[..., tuple[TrainState, dict[str, jax.Array]]]:
    """The jitted step: `state, metrics = step(state, batch, key[, frozen])`; `state` is donated.

    The batch is cut into `accumulate` microbatches whose loss sums, weights and gradients add up;
    one division by the summed weight at the end makes every token count the same however they are
    spread over microbatches. Metrics that the loss names are sums and are divided alike. Trainings
    of the same loss and optimizer share a compilation.

    `frozen` holds arrays that the loss reads but are not trained, such as a teacher's parameters.
    They are arguments of the compiled step, where arrays that a loss closes over would be copied
    into the program.

    Args:
      loss: `loss(params, frozen, batch, key) -> (sum, weight, {name: sum})`, or a `BatchLoss`.
      optimizer: the transformation of gradients into updates.
      accumulate: number of microbatches; it divides every leaf's first dimension.
      schedule: reported as learning_rate, if given.
      trainable: a regular expression that the whole paths of trained leaves match; the others get
        neither gradients nor moments. None trains all.
      seeds: number of models trained at once. With several, the state, the keys and every leaf
        of the batch have a leading axis of them, and so have the metrics.
      chunk: number of steps per call. With more than one the batch has a leading axis of
        them, and so have the metrics.
      layout: placement of the arrays; None is one device.

    Returns:
      The step. Its metrics are float32: loss, weight, grad_norm, and those of the loss.
    """
    gradients = _gradients(loss, accumulate)

    def update(number, params, opt_state, batch, key, frozen):
        key = jax.random.fold_in(key, number)
        part, rest = split(params, trainable)
        (value, sums), grads = gradients(part, rest, frozen, batch, key)
        weight = sums.pop("weight")
        by = 1 / jnp.maximum(weight, 1e-9)
        grads = jax.tree.map(lambda g: g * by.astype(g.dtype), grads)
        with jax.named_scope("optimizer"):
            updates, opt_state = optimizer.update(grads, opt_state, part)
            part = optax.apply_updates(part, updates)
        metrics = {"loss": value * by, **{name: x * by for name, x in sums.items()}}
        metrics |= {"weight": weight, "grad_norm": _norm(grads, layout)}
        return join(part, rest), opt_state, metrics

    if seeds > 1:
        update = jax.vmap(update, in_axes=(None, 0, 0, 0, 0, None))

    def step(state: TrainState, batch: Any, key: jax.Array, frozen: Any = None):
        found = update(state.step, state.params, state.opt_state, batch, key, frozen)
        params, opt_state, metrics = found
        if schedule is not None:
            metrics["learning_rate"] = jnp.asarray(schedule(state.step), jnp.float32)
        state = state.replace(step=state.step + 1, params=params, opt_state=opt_state)
        return state, metrics

    return jax.jit(step if chunk == 1 else _repeated(step), donate_argnums=0)


def _norm(grads: Any, layout: Layout | None) -> jax.Array:
    """The norm of all gradients together.

    On one GPU small leaves are joined first: it takes longer to start a sum for each leaf of a
    forecaster than to do all of Adam. A CPU would copy them; split over devices they would be
    gathered.
    """
    leaves = jax.tree.leaves(grads)
    if layout is None and target() == "gpu":
        small = [x.reshape(-1) for x in leaves if x.size <= SMALL]
        leaves = [x for x in leaves if x.size > SMALL]
        leaves += [jnp.concatenate(small)] if small else []
    return optax.tree.norm(leaves)


def _gradients(loss: Loss | BatchLoss, accumulate: int) -> Callable:
    """`gradients(part, rest, frozen, batch, key) -> ((sum, sums), grads of part)`."""
    whole = isinstance(loss, BatchLoss)
    summed = _cached(loss, accumulate) if whole else loss

    def total(part, rest, frozen, batch, key):
        value, weight, metrics = summed(join(part, rest), frozen, batch, key)
        return value, {"weight": weight, **metrics}

    grad = jax.value_and_grad(total, has_aux=True)
    if accumulate == 1 or whole:
        return grad

    def gradients(part, rest, frozen, batch, key):
        micro = _micro(batch, key, accumulate)

        def add(sums, inputs):
            return jax.tree.map(jnp.add, sums, grad(part, rest, frozen, *inputs)), None

        first = jax.tree.map(lambda x: x[0], micro)
        shapes = jax.eval_shape(lambda p, x: grad(p, rest, frozen, *x), part, first)
        zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
        return jax.lax.scan(add, zeros, micro)[0]

    return gradients


def _cached(loss: BatchLoss, accumulate: int) -> Loss:
    """The loss as a function of parameters; backward holds one microbatch at a time."""

    def summed(params, frozen, batch, key):
        if accumulate == 1:
            return loss.compare(loss.embed(params, frozen, batch, key), frozen, batch)

        @jax.checkpoint
        def embed(inputs):
            return loss.embed(params, frozen, *inputs)

        rows = jax.lax.map(embed, _micro(batch, key, accumulate))
        rows = jax.tree.map(lambda x: rearrange(x, "part b ... -> (part b) ..."), rows)
        return loss.compare(rows, frozen, batch)

    return summed


def _repeated(step: Callable) -> Callable:
    """Several steps in one call, as many as there are batches.

    Their number is known to the compiler: on a GPU, a loop that ends at an argument asks the device
    after each step whether it is over.
    """
    inner = jax.jit(step)  # traced once, for the shapes of its metrics and for the loop

    def run(state: TrainState, batches: Any, key: jax.Array, frozen: Any = None):
        first = jax.tree.map(lambda x: x[0], batches)
        shapes = jax.eval_shape(inner, state, first, key, frozen)[1]
        seeds = shapes["loss"].shape

        def body(state, batch):
            state, found = inner(state, batch, key, frozen)
            # In one array: one write per step, not one per metric.
            return state, jnp.stack([jnp.broadcast_to(found[name], seeds) for name in shapes], -1)

        state, seen = jax.lax.scan(body, state, batches)
        alike = {name: x.shape == seeds for name, x in shapes.items()}  # the learning rate is not
        return state, {
            name: seen[..., i] if alike[name] else seen[:, 0, i] for i, name in enumerate(shapes)
        }

    return run


def _micro(batch: Any, key: jax.Array, parts: int) -> tuple[Any, jax.Array]:
    """Microbatches and their keys, with a leading axis of them."""
    return jax.tree.map(lambda x: _cut(x, parts), batch), jax.random.split(key, parts)


def _cut(x: Any, parts: int) -> Any:
    if x.shape[0] % parts:
        raise InputError(f"accumulate {parts} must divide the batch of {x.shape[0]}")
    return rearrange(x, "(part b) ... -> part b ...", part=parts)


def _initializer(optimizer, trainable: str | None, seeds: int) -> Callable[[Any], Any]:
    """A function from parameters to the optimizer's state of the trained ones."""

    def start(params):
        return optimizer.init(split(params, trainable)[0])

    return start if seeds == 1 else jax.vmap(start)


def _like_params(optimizer, spec, layout, trainable) -> Any:
    """Shardings of the optimizer's state: moments as their parameters, the rest whole."""
    whole = jax.sharding.NamedSharding(layout.mesh, jax.sharding.PartitionSpec())
    opt_state = jax.eval_shape(_initializer(optimizer, trainable, 1), abstract(spec))
    return optax.tree.map_params(
        optimizer,
        lambda _, s: s,
        opt_state,
        split(shardings(spec, layout), trainable)[0],
        transform_non_params=lambda _: whole,
    )
