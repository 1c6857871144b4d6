"""The tuned lens: an affine map per layer, fitted so that the head can read its states.

The logit lens treats a layer's state as the last one's. A model may encode the same thing in
another basis in between, which the head cannot read. The tuned lens learns that basis: each layer's
state x becomes x + x A + b before the final norm and the head, and A and b minimize the KL
divergence of the head's prediction from that for the last layer.

Source: arXiv 2303.08112, section 3; the optimizer and its length are our own.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import struct

from pangu_jax.core.errors import InputError
from pangu_jax.models import decoder, transformer

STEPS, RATE, BATCH = 300, 1e-2, 64


@struct.dataclass
class TunedLens:
    """Affine maps of L layers' states.

    Attributes:
      kernel: A, float32 [L, D, D]; zero for the last layer.
      bias: b, float32 [L, D], zero for the last layer, too.
    """

    kernel: Any
    bias: Any


def fit(
    params: dict[str, Any],
    states: np.ndarray,
    *,
    cfg: decoder.DecoderConfig,
    steps: int = STEPS,
    seed: int = 0,
) -> TunedLens:
    """Fits the maps for a model to states of some texts.

    Args:
      params: tree of `decoder.spec(cfg)`.
      states: float [states, L, D], after every layer, before the final norm.
      cfg: the model.
      steps: of Adam, whose rate falls to 0; with 0 steps it is the logit lens.
      seed: of the batches.

    Raises:
      InputError: no states.
    """
    if not len(states):
        raise InputError("a tuned lens needs states to be fitted to")
    layers, width = states.shape[1:]
    lens = TunedLens(jnp.zeros((layers, width, width)), jnp.zeros((layers, width)))
    if not steps:
        return lens
    rng = np.random.default_rng(seed)
    order = rng.integers(0, len(states), (steps, min(BATCH, len(states)))).astype(np.int32)
    return _fit(params, jnp.asarray(states, jnp.float32), order, lens, cfg=cfg)


def translated(
    params: dict[str, Any], lens: TunedLens, states: np.ndarray, *, cfg: decoder.DecoderConfig
) -> np.ndarray:
    """States translated for the head, after the final norm: float32 [states, L, D].

    Args:
      params: tree of `decoder.spec(cfg)`.
      lens: of `fit`.
      states: float [states, L, D], before the final norm.
      cfg: the model.
    """
    return np.asarray(_translated(params, lens, jnp.asarray(states, jnp.float32), cfg=cfg))


@partial(jax.jit, static_argnames="cfg")
def _translated(params, lens, states, *, cfg):
    moved = states + jnp.einsum("nld,lde->nle", states, lens.kernel) + lens.bias
    return transformer.final_norm(params, moved, cfg=cfg)


@partial(jax.jit, static_argnames="cfg")
def _fit(params, states, order, lens, *, cfg):
    steps = order.shape[0]
    optimizer = optax.adam(optax.linear_schedule(RATE, 0.0, steps))
    # The last layer is the reference for the others: its map stays zero.
    free = (jnp.arange(states.shape[1]) < states.shape[1] - 1).astype(jnp.float32)

    def loss(lens, batch):
        logits = decoder.logits(params, _translated(params, lens, batch, cfg=cfg), cfg=cfg)
        told = jax.nn.log_softmax(logits.astype(jnp.float32))  # [B, L, V]
        last = jax.lax.stop_gradient(told[:, -1:])
        apart = (jnp.exp(last) * (last - told)).sum(-1)  # KL from what the last layer says
        return (apart * free).sum(-1).mean()

    def step(carry, chosen):
        lens, state = carry
        grads = jax.grad(loss)(lens, states[chosen])
        grads = jax.tree.map(lambda g: g * free.reshape(-1, *[1] * (g.ndim - 1)), grads)
        updates, state = optimizer.update(grads, state)
        return (optax.apply_updates(lens, updates), state), None

    (lens, _), _ = jax.lax.scan(step, (lens, optimizer.init(lens)), order)
    return lens
