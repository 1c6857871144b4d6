"""The linear recurrence h_t = a_t * h_{t-1} + b_t, returning every state.

| form | steps | loop-free | for |
|---|---|---|---|
| loop | T | no | the oracle |
| associative | log T | no | running |
| log_step | log T | yes | export: only pads, slices, products and sums |

The backward pass is the same recurrence run from the end, written out: it needs `a` and the states,
both of which exist already, where differentiating the log-depth forms would keep every level.
"""

from functools import partial

import jax
import jax.numpy as jnp
from einops import rearrange

FORMS = ("loop", "associative", "log_step")


@partial(jax.custom_vjp, nondiff_argnums=(3,))
def linear_scan(a: jax.Array, b: jax.Array, start: jax.Array, form: str) -> jax.Array:
    """All states of the recurrence along axis 1.

    Args:
      a: float [B, T, ...], the decay.
      b: float [B, T, ...], the input.
      start: float [B, ...], the state before the first step.
      form: one of `FORMS`.

    Returns:
      [B, T, ...]: the state after each step.
    """
    return _solve(a, b, start, form)


def _forward(a, b, start, form):
    states = _solve(a, b, start, form)
    return states, (a, start, states)


def _backward(form, saved, dstates):
    a, start, states = saved
    # lam_t = dh_t + a_{t+1} * lam_{t+1}: from the last step back, where nothing follows.
    later = jnp.concatenate([a[:, 1:], jnp.zeros_like(a[:, :1])], axis=1)
    flip = partial(jnp.flip, axis=1)
    lam = flip(_solve(flip(later), flip(dstates), jnp.zeros_like(start), form))
    before = jnp.concatenate([start[:, None], states[:, :-1]], axis=1)
    return lam * before, lam, a[:, 0] * lam[:, 0]


linear_scan.defvjp(_forward, _backward)


def _solve(a, b, start, form):
    if form == "loop":
        return _loop(a, b, start)
    b = jnp.concatenate([b[:, :1] + (a[:, 0] * start)[:, None], b[:, 1:]], axis=1)
    return _associative(a, b) if form == "associative" else _log_step(a, b)


def _loop(a, b, start):
    def step(state, inputs):
        state = inputs[0] * state + inputs[1]
        return state, state

    inputs = tuple(rearrange(x, "b t ... -> t b ...") for x in (a, b))
    _, states = jax.lax.scan(step, start, inputs)
    return rearrange(states, "t b ... -> b t ...")


def _associative(a, b):
    def combine(left, right):
        return left[0] * right[0], right[0] * left[1] + right[1]

    return jax.lax.associative_scan(combine, (a, b), axis=1)[1]


def _log_step(a, b):
    """Doubling: after the round of stride s, a state covers the 2 s steps up to its own."""
    stride = 1
    while stride < a.shape[1]:
        b = b + a * _delay(b, stride, 0)
        a = a * _delay(a, stride, 1)
        stride *= 2
    return b


def _delay(x, steps, fill):
    """`x` shifted `steps` later along axis 1, filled with `fill`."""
    pad = [(0, 0, 0)] * x.ndim
    pad[1] = (steps, -steps, 0)
    return jax.lax.pad(x, jnp.asarray(fill, x.dtype), pad)
