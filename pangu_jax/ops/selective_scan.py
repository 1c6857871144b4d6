"""Mamba's selective scan: a linear recurrence with input-dependent decay and input.

With d_t = softplus(dt_t + dt_bias), for every channel e and state n:

    h_t[e, n] = exp(d_t[e] A[e, n]) h_{t-1}[e, n] + d_t[e] B_t[n] u_t[e]
    y_t[e]    = sum_n C_t[n] h_t[e, n] + D[e] u_t[e]

Source: arXiv 2312.00752, section 3 and algorithm 2; the softplus, which is the identity above 20,
is that of the released kernel.

| implementation | picked when |
|---|---|
| mosaic | Hopper GPUs, float32, N up to 32 |
| tpu | TPUs, float32, N up to 32 |
| chunked | everywhere else; inside a chunk step by step on CPU, in log depth elsewhere |
| reference | never by itself: the oracle, one step at a time |
| associative | never by itself: log depth, keeps all states |
| export | never by itself: loop-free, keeps all states; the form that exports |

The first three recompute states in the backward pass and never keep them all.
"""

import jax
import jax.numpy as jnp
from einops import rearrange

from pangu_jax.core.config import check_choice
from pangu_jax.core.errors import InputError
from pangu_jax.core.platform import chip as platform
from pangu_jax.ops import selective_scan_kernel
from pangu_jax.ops.linear_scan import linear_scan
from pangu_jax.ops.selective_scan_chunked import chunked

EXPORT = {"selective_scan": "export", "selective_states": "export"}

# What `pangu-jax backends` shows: B, T, E and N.
EXAMPLES = {"8 x 512 steps, 256 channels, 16 states": ((8, 512, 256, 16),)}


def selective_scan(
    u: jax.Array,
    dt: jax.Array,
    A: jax.Array,
    B: jax.Array,
    C: jax.Array,
    D: jax.Array | None = None,
    *,
    dt_bias: jax.Array | None = None,
    softplus: bool = True,
    state: jax.Array | None = None,
    lengths: jax.Array | None = None,
    impl: str | None = None,
) -> tuple[jax.Array, jax.Array]:
    """Runs a sequence through the scan with E channels and N states each.

    A sequence may be split anywhere: the state that one part returns is the next part's `state`.

    Args:
      u: [B, T, E], any float type.
      dt: [B, T, E], the step size before bias and softplus.
      A: [E, N], the rates; negative ones decay.
      B: [B, T, N], how the input enters.
      C: [B, T, N], how the state is read.
      D: [E], the skip from input to output, or None.
      dt_bias: [E], added to `dt`, or None.
      softplus: whether the step size goes through softplus; without, it is taken as it is.
      state: [B, E, N] before the first token; None for zeros.
      lengths: int [B]: tokens from there on leave the state as it is and give 0, whatever they
        hold; None when all tokens count.
      impl: an implementation of the table above, or None to choose by platform and shape.

    Returns:
      The output [B, T, E] in the type of `u`, and the state [B, E, N] after the last token. The
      scan and the state are float32, or float64 if an input is.

    Raises:
      InputError: shapes that don't fit, or an implementation that doesn't exist.
    """
    arrays = {"u": u, "dt": dt, "A": A, "B": B, "C": C, "D": D, "dt_bias": dt_bias, "state": state}
    _check(arrays, lengths)
    if impl is not None:
        check_choice("impl of selective_scan", impl, IMPLEMENTATIONS)
    kind = u.dtype
    u, dt, A, B, C, D, dt_bias, state = _prepare(u, dt, A, B, C, D, dt_bias, state)
    name = choose(platform(), (*u.shape, A.shape[1]), u.dtype) if impl is None else impl
    if lengths is not None:
        valid = jnp.arange(u.shape[1])[None, :, None] < lengths[:, None, None]
        u, B, C = (jnp.where(valid, x, 0) for x in (u, B, C))
        # A step of size 0 changes nothing.
        dt = jnp.where(valid, dt, -1e30 if softplus else -dt_bias)
    y, state = IMPLEMENTATIONS[name](u, dt, A, B, C, D, dt_bias, state, softplus)
    return y.astype(kind), state


def selective_states(
    u: jax.Array,
    dt: jax.Array,
    A: jax.Array,
    B: jax.Array,
    *,
    dt_bias: jax.Array | None = None,
    softplus: bool = True,
    state: jax.Array | None = None,
    impl: str | None = None,
) -> jax.Array:
    """All states of the scan, for models that use them rather than their contraction.

    Args:
      u: [B, T, E], any float type.
      dt: [B, T, E].
      A: [E, N].
      B: [B, T, N].
      dt_bias: [E] or None.
      softplus: as in `selective_scan`.
      state: [B, E, N] before the first token; None for zeros.
      impl: "reference", "associative", "export", or None, which is
        "associative": it is the fastest everywhere, as the states are all written anyway.

    Returns:
      The states [B, T, E, N] after each token, float32, or float64 if an input is.

    Raises:
      InputError: shapes that don't fit, or an implementation that doesn't exist.
    """
    _check({"u": u, "dt": dt, "A": A, "B": B, "dt_bias": dt_bias, "state": state}, None)
    name = "associative" if impl is None else impl
    check_choice("impl of selective_states", name, FORMS)
    u, dt, A, B, dt_bias, state = _prepare(u, dt, A, B, None, None, dt_bias, state, states=True)
    return _states(u, dt, A, B, dt_bias, state, softplus, FORMS[name])


def choose(platform: str, shape: tuple[int, int, int, int], dtype=jnp.float32) -> str:
    """The implementation that `impl=None` picks for shape (B, T, E, N) and the scan's type."""
    kernel = {"hopper": "mosaic", "tpu": "tpu"}.get(platform)
    return kernel if kernel and dtype == jnp.float32 and shape[3] <= 32 else "chunked"


def step_size(dt: jax.Array, bias: jax.Array, softplus: bool) -> jax.Array:
    """The step d = softplus(dt + bias); the identity above 20, as in the released kernel."""
    dt = dt + bias
    if not softplus:
        return dt
    return jnp.where(dt > 20, dt, jnp.log1p(jnp.exp(jnp.minimum(dt, 20))))


def _check(arrays, lengths):
    """Raises if the arrays' shapes do not match."""
    u, A = arrays["u"], arrays["A"]
    if u.ndim != 3 or A.ndim != 2:
        raise InputError(f"u must be [B, T, E] and A [E, N]; they are {u.shape} and {A.shape}")
    (b, t, e), n = u.shape, A.shape[1]
    if t < 1:
        raise InputError("u has no time steps; the scan needs at least one")
    wanted = {"dt": (b, t, e), "A": (e, n), "B": (b, t, n), "C": (b, t, n), "D": (e,),
              "dt_bias": (e,), "state": (b, e, n)}  # fmt: skip
    for name, shape in wanted.items():
        found = arrays.get(name)
        if found is not None and found.shape != shape:
            raise InputError(
                f"{name} is {found.shape}; with u {u.shape} and A {A.shape} it must be {shape}"
            )
    if lengths is not None and lengths.shape != (b,):
        raise InputError(f"lengths is {lengths.shape}; with u {u.shape} it must be {(b,)}")


def _prepare(u, dt, A, B, C, D, bias, state, states=False):
    """All arrays in the scan's type, with zeros for absent ones."""
    present = [x for x in (u, dt, A, B, C, D, bias, state) if x is not None]
    kind = jnp.result_type(jnp.float32, *present)
    bias = jnp.zeros(u.shape[2], kind) if bias is None else bias
    state = jnp.zeros((u.shape[0], *A.shape), kind) if state is None else state
    if states:
        return tuple(x.astype(kind) for x in (u, dt, A, B, bias, state))
    D = jnp.zeros(u.shape[2], kind) if D is None else D
    return tuple(x.astype(kind) for x in (u, dt, A, B, C, D, bias, state))


def _reference(u, dt, A, B, C, D, bias, state, softplus):
    def step(state, inputs):
        u, d, B, C = inputs
        state = jnp.exp(d[..., None] * A) * state + (d * u)[..., None] * B[:, None]
        return state, (state * C[:, None]).sum(-1)

    inputs = (u, step_size(dt, bias, softplus), B, C)
    by_time = tuple(rearrange(x, "b t ... -> t b ...") for x in inputs)
    state, y = jax.lax.scan(step, state, by_time)
    return rearrange(y, "t b e -> b t e") + D * u, state


def _chunked(u, dt, A, B, C, D, bias, state, softplus):
    inner = "loop" if platform() == "cpu" else "associative"
    y, state = chunked(u, step_size(dt, bias, softplus), A, B, C, state, inner)
    return y + D * u, state


def _states(u, dt, A, B, bias, state, softplus, form):
    d = step_size(dt, bias, softplus)
    a = jnp.exp(d[..., None] * A)
    return linear_scan(a, (d * u)[..., None] * B[:, :, None], state, form)


def _by_states(form):
    """The scan through all its states, by an implementation of `linear_scan`."""

    def run(u, dt, A, B, C, D, bias, state, softplus):
        states = _states(u, dt, A, B, bias, state, softplus, form)
        return (states * C[:, :, None]).sum(-1) + D * u, states[:, -1]

    return run


FORMS = {"reference": "loop", "associative": "associative", "export": "log_step"}
IMPLEMENTATIONS = {
    "reference": _reference,
    "chunked": _chunked,
    "mosaic": selective_scan_kernel.mosaic,
    "tpu": selective_scan_kernel.tpu,
    "associative": _by_states("associative"),
    "export": _by_states("log_step"),
}
