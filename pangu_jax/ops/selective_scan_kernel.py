"""Wrappers of the selective-scan kernels: padding to their shapes, and the backward pass."""

import math
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from einops import rearrange


class Settings(NamedTuple):
    """Static settings that a kernel is compiled for.

    Attributes:
      backend: "mosaic" or "tpu".
      softplus: whether dt goes through softplus.
      kept: the state before every so many steps is kept for the backward pass.
      interpret: whether to interpret the kernel: slow, for machines without the chip.
    """

    backend: str
    softplus: bool
    kept: int
    interpret: bool


def mosaic(u, dt, A, B, C, D, bias, state, softplus, interpret=False):
    """The scan by the Hopper kernel; arguments as `selective_scan` prepares them."""
    # A power of two of at least 4 numbers, the 16 bytes that the copy engine moves.
    n = max(4, 1 << (A.shape[1] - 1).bit_length())
    settings = Settings("mosaic", softplus, 8, interpret)
    return _padded(settings, 128, n, u, dt, A, B, C, D, bias, state)


def tpu(u, dt, A, B, C, D, bias, state, softplus, interpret=False):
    """The scan by the TPU kernel; arguments as `selective_scan` prepares them."""
    block = 1024 if A.shape[0] > 1024 else 128
    settings = Settings("tpu", softplus, 16, interpret)
    return _padded(settings, block, A.shape[1], u, dt, A, B, C, D, bias, state)


def _padded(settings, block, states, u, dt, A, B, C, D, bias, state):
    """The scan of arrays padded to whole chunks, channel blocks and `states` states."""
    steps, (channels, n) = u.shape[1], A.shape
    t, e = (0, -steps % settings.kept), (0, -channels % block)
    n_more, none = (0, states - n), (0, 0)
    # Steps that change nothing have size 0, and no input or output.
    still = -1e30 if settings.softplus else -bias
    last = jnp.broadcast_to(still, (u.shape[0], t[1], channels)).astype(dt.dtype)
    dt = jnp.pad(jnp.concatenate([dt, last], 1) if t[1] else dt, (none, none, e))
    u = jnp.pad(u, (none, t, e))
    B, C = jnp.pad(B, (none, t, n_more)), jnp.pad(C, (none, t, n_more))
    A, state = jnp.pad(A, (e, n_more)), jnp.pad(state, (none, e, n_more))
    D, bias = jnp.pad(D, e), jnp.pad(bias, e)
    state = rearrange(state, "b e n -> b n e")
    out = _scan(settings, u, dt, A.T, B, C, D, bias, state)
    return out[0][:, :steps, :channels], rearrange(out[1], "b n e -> b e n")[:, :channels, :n]


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _scan(settings, u, dt, A, B, C, D, bias, state):
    """The scan of arrays of fitting shapes; A is [N, E] and the states [B, N, E]."""
    return _run(settings, u, dt, A, B, C, D, bias, state)[:2]


def _run(settings, u, *rest, kept=None):
    length = settings.kept * math.gcd(u.shape[1] // settings.kept, 4)  # up to four stretches
    run = partial(_kernels(settings).forward, softplus=settings.softplus)
    return run(u, *rest, length=length, kept=kept, interpret=settings.interpret)


def _scan_forward(settings, *arguments):
    y, last, starts = _run(settings, *arguments, kept=settings.kept)
    return (y, last), (*arguments[:-1], starts)


def _scan_backward(settings, saved, cotangents):
    run = partial(_kernels(settings).backward, softplus=settings.softplus)
    return run(*saved, *cotangents, length=settings.kept, interpret=settings.interpret)


_scan.defvjp(_scan_forward, _scan_backward)


def _kernels(settings):
    # Not at import: this takes most of a second, and few machines have such chips.
    from pangu_jax.ops.kernels import selective_scan_mosaic, selective_scan_tpu

    return selective_scan_mosaic if settings.backend == "mosaic" else selective_scan_tpu
