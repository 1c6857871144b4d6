"""Cross-entropy over a vocabulary, in chunks, so that the logits are never all in memory."""

from functools import partial

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from pangu_jax.losses.chunked import cut_tokens, join_tokens, tokens_at_once
from pangu_jax.ops.soft_cap import soft_cap
from pangu_jax.sharding.layout import Layout, batch_axes


def cross_entropy(
    hidden: jax.Array,
    kernel: jax.Array,
    labels: jax.Array,
    weights: jax.Array,
    *,
    softcap: float | None = None,
    chunk: int | None = None,
    layout: Layout | None = None,
) -> tuple[jax.Array, jax.Array]:
    """Summed negative log-likelihood of the labels, in nats, and the sum of the weights.

    Tokens are taken `chunk` at a time, so the largest array is [chunk, V]: a chunk's logits are
    computed in float32, used and discarded. Where gradients are wanted they are taken from the same
    logits at once: the backward pass only scales them, and computes no logits again.

    Args:
      hidden: [B, T, D], any float type.
      kernel: [D, V], cast to the type of `hidden`.
      labels: int32 [B, T].
      weights: float32 [B, T]; 0 where there is nothing to predict.
      softcap: bound of the logits, by tanh; None for none.
      chunk: tokens per chunk, of each device among which the batch is split; None as
        `tokens_at_once` says.
      layout: how the batch is split: each device takes its own tokens.

    Returns:
      Two float32 scalars: sum of weights * nats, and sum of weights.
    """
    kernel, labels = kernel.astype(hidden.dtype), labels.astype(jnp.int32)
    chunk = tokens_at_once(chunk, kernel.shape[1])
    total = _summed(softcap, chunk, layout, hidden, kernel, labels, weights)
    return total, weights.sum()


def token_log_probs(
    hidden: jax.Array,
    kernel: jax.Array,
    labels: jax.Array,
    *,
    softcap: float | None = None,
    temperature: float = 1.0,
    chunk: int | None = None,
    layout: Layout | None = None,
) -> jax.Array:
    """Log-probability of each label, in chunks like `cross_entropy`.

    Args:
      hidden: [B, T, D], any float type.
      kernel: [D, V], cast to the type of `hidden`.
      labels: int32 [B, T].
      softcap: bound of the logits, by tanh; None for none.
      temperature: what the logits are divided by, above 0.
      chunk: tokens per chunk; None as `tokens_at_once` says.
      layout: where arrays live; each device takes the tokens that it has.

    Returns:
      float32 [B, T].
    """
    arrays = (hidden, kernel.astype(hidden.dtype), labels.astype(jnp.int32))
    chunk = tokens_at_once(chunk, kernel.shape[1])
    return _on_devices(partial(_log_probs, softcap, temperature, chunk), layout, arrays)


def _log_probs(softcap, temperature, chunk, hidden, kernel, labels):
    @jax.checkpoint
    def piece(inputs):
        x, label = inputs
        logits = soft_cap(jnp.dot(x, kernel, preferred_element_type=jnp.float32), softcap)
        logits = logits / temperature
        found = jnp.take_along_axis(logits, label[:, None], axis=-1)[:, 0]
        return found - jax.nn.logsumexp(logits, axis=-1)

    found = jax.lax.map(piece, cut_tokens(hidden, labels, chunk=chunk))
    return join_tokens(found, labels.shape)


@partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def _summed(softcap, chunk, layout, *arrays):
    """The sum of weights * nats."""
    return _on_devices(partial(_values, softcap, chunk), layout, arrays)[0].sum()


def _forward(softcap, chunk, layout, *arrays):
    run = partial(_values_and_gradients, softcap, chunk)
    total, dkernel, dx, nats = _on_devices(run, layout, arrays)
    return total.sum(), (dx, dkernel.sum(0).astype(arrays[1].dtype), nats)


def _backward(softcap, chunk, layout, saved, by):
    del softcap, chunk, layout
    dx, dkernel, nats = ((by * x).astype(x.dtype) for x in saved)
    return dx, dkernel, None, nats


_summed.defvjp(_forward, _backward)


def _on_devices(run, layout, arrays):
    """`run` on each device's own tokens; its sums get a leading device axis.

    Left to itself the compiler would gather the tokens of all devices to take them in turns, and
    add up the kernel's gradient over the devices with every chunk.
    """
    axes = batch_axes(arrays[0].shape[0], layout)
    if not axes:
        return run(*arrays)
    rows, whole = PartitionSpec(axes), PartitionSpec()
    return jax.shard_map(
        run,
        mesh=layout.mesh,
        in_specs=(rows, whole, *[rows] * (len(arrays) - 2)),
        out_specs=rows,
        axis_names=set(axes),
        check_vma=False,
    )(*arrays)


def _values(softcap, chunk, hidden, kernel, labels, weights):
    """The sum, [1]."""

    def piece(total, inputs):
        x, label, weight = inputs
        nats, _, _ = _nats(softcap, x, kernel, label)
        return total + (weight * nats).sum(), None

    pieces = cut_tokens(hidden, labels, weights, chunk=chunk)
    return (jax.lax.scan(piece, jnp.float32(0), pieces)[0][None],)


def _values_and_gradients(softcap, chunk, hidden, kernel, labels, weights):
    """The sum, [1], its gradients in the kernel, [1, D, V], and in hidden, and all nats."""

    def piece(sums, inputs):
        x, label, weight = inputs
        nats, logits, log_sum = _nats(softcap, x, kernel, label)
        hit = jnp.arange(logits.shape[1], dtype=label.dtype) == label[:, None]
        d = weight[:, None] * (jnp.exp(logits - log_sum[:, None]) - hit)
        if softcap is not None:
            d = d * (1 - (logits / softcap) ** 2)
        d = d.astype(x.dtype)
        total, dkernel = sums
        dkernel += jnp.dot(x.T, d, preferred_element_type=jnp.float32)
        return (total + (weight * nats).sum(), dkernel), (jnp.dot(d, kernel.T), nats)

    start = jnp.float32(0), jnp.zeros(kernel.shape, jnp.float32)
    pieces = cut_tokens(hidden, labels, weights, chunk=chunk)
    (total, dkernel), found = jax.lax.scan(piece, start, pieces)
    return total[None], dkernel[None], *(join_tokens(x, labels.shape) for x in found)


def _nats(softcap, x, kernel, label):
    """For one chunk: the labels' nats, float32 [t]; logits, float32 [t, V]; their log-sum-exp."""
    logits = soft_cap(jnp.dot(x, kernel, preferred_element_type=jnp.float32), softcap)
    log_sum = jax.nn.logsumexp(logits, axis=-1)
    return log_sum - jnp.take_along_axis(logits, label[:, None], axis=-1)[:, 0], logits, log_sum
