"""What surrounds the kernels of the selective scan: shapes that fit, and the backward pass."""

import math
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

LANES = 128


class Settings(NamedTuple):
    """What a kernel is compiled for.

    Attributes:
      softplus: whether dt goes through softplus.
      kept: the state before every so many steps is kept for the backward pass.
      interpret: interpretation parameters of pallas, or None to compile.
    """

    softplus: bool
    kept: int = 8
    interpret: Any = None


def mosaic(u, dt, A, B, C, D, bias, state, softplus, interpret=None):
    """The scan by the kernel for Hopper GPUs; arguments as `selective_scan` prepares them."""
    settings = Settings(softplus, interpret=interpret)
    steps, (channels, n) = u.shape[1], A.shape
    more_t = -steps % settings.kept
    more_e = -channels % LANES
    # A power of two of at least 4 numbers, the 16 bytes that the copy engine moves.
    more_n = max(4, 1 << (n - 1).bit_length()) - n
    if more_t:
        # Steps that change nothing: of size 0, whose input and output are 0.
        u, B, C = (jnp.pad(x, ((0, 0), (0, more_t), (0, 0))) for x in (u, B, C))
        none = (
            jnp.full_like(dt[:, :1], -1e30) if softplus else jnp.broadcast_to(-bias, u[:, :1].shape)
        )
        dt = jnp.concatenate([dt, jnp.repeat(none, more_t, 1)], 1)
    if more_e:
        u, dt = (jnp.pad(x, ((0, 0), (0, 0), (0, more_e))) for x in (u, dt))
        D, bias = (jnp.pad(x, (0, more_e)) for x in (D, bias))
    if more_n:
        B, C = (jnp.pad(x, ((0, 0), (0, 0), (0, more_n))) for x in (B, C))
    A, state = (
        jnp.pad(A, ((0, more_e), (0, more_n))),
        jnp.pad(state, ((0, 0), (0, more_e), (0, more_n))),
    )
    y, state = _scan(settings, u, dt, A.T, B, C, D, bias, state.swapaxes(1, 2))
    return y[:, :steps, :channels], state.swapaxes(1, 2)[:, :channels, :n]


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _scan(settings, u, dt, A, B, C, D, bias, state):
    """The scan of arrays that fit; A is [N, E] and the states [B, N, E]."""
    return _run(settings, u, dt, A, B, C, D, bias, state)


def _run(settings, u, *rest, kept=None):
    length = settings.kept * math.gcd(u.shape[1] // settings.kept, 4)  # up to 32 steps
    run = partial(_kernels().forward, softplus=settings.softplus, interpret=settings.interpret)
    return run(u, *rest, length=length, kept=kept)


def _scan_forward(settings, *arguments):
    y, last, starts = _run(settings, *arguments, kept=settings.kept)
    return (y, last), (*arguments[:-1], starts)


def _scan_backward(settings, saved, cotangents):
    softplus, kept, interpret = settings
    run = partial(_kernels().backward, softplus=softplus, length=kept, interpret=interpret)
    return run(*saved, *cotangents)


_scan.defvjp(_scan_forward, _scan_backward)


def _kernels():
    # Not at import: this takes most of a second, and few machines have such a GPU.
    from pangu_jax.ops.kernels import selective_scan_mosaic

    return selective_scan_mosaic
