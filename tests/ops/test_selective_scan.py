import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pangu_jax.core.errors import InputError
from pangu_jax.ops.selective_scan import selective_scan, selective_states

IMPLS = ["reference", "associative", "export"]


def draw(b=2, t=13, e=5, n=3, seed=0):
    """Arguments of selective_scan in float64, with every optional one present."""
    rng = np.random.default_rng(seed)
    u, dt = rng.normal(size=(2, b, t, e))
    B, C = rng.normal(size=(2, b, t, n))
    A = -np.exp(rng.normal(size=(e, n)))
    D, bias = rng.normal(size=(2, e))
    state = rng.normal(size=(b, e, n))
    return (u, dt, A, B, C, D), {"dt_bias": bias, "state": state}


def naive(u, dt, A, B, C, D, dt_bias, state, lengths=None, softplus=True):
    """One number at a time, in float64: outputs, last state, all states."""
    b, t, e = u.shape
    n = A.shape[1]
    y, h, every = np.zeros((b, t, e)), np.array(state), np.zeros((b, t, e, n))
    for i in range(b):
        for k in range(t):
            for j in range(e):
                raw = dt[i, k, j] + dt_bias[j]
                d = raw if raw > 20 or not softplus else np.log1p(np.exp(raw))
                live = lengths is None or k < lengths[i]
                for s in range(n if live else 0):
                    h[i, j, s] = np.exp(d * A[j, s]) * h[i, j, s] + d * B[i, k, s] * u[i, k, j]
                    y[i, k, j] += C[i, k, s] * h[i, j, s]
                if live:
                    y[i, k, j] += D[j] * u[i, k, j]
            every[i, k] = h[i]
    return y, h, every


def close(have, want, limit):
    """The largest difference against the largest value."""
    have, want = np.asarray(have, np.float64), np.asarray(want, np.float64)
    assert have.shape == want.shape and np.isfinite(have).all()
    assert np.abs(have - want).max() <= limit * max(np.abs(want).max(), 1e-30)


def in_float32(tree):
    return jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), tree)


@pytest.mark.parametrize("softplus", [True, False])
@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("t", [1, 2, 7, 33])
def test_scan_equals_a_plain_loop(impl, t, softplus):
    args, options = draw(t=t)
    if not softplus:
        args = (args[0], np.abs(args[1]), *args[2:])
        options = {**options, "dt_bias": np.abs(options["dt_bias"])}
    y, last, every = naive(*args, **options, softplus=softplus)
    with jax.enable_x64(True):
        have = selective_scan(*args, **options, impl=impl, softplus=softplus)
        close(have[0], y, 1e-13)
        close(have[1], last, 1e-13)
        states = selective_states(*args[:4], **options, impl=impl, softplus=softplus)
        close(states, every, 1e-13)
    args, options = in_float32((args, options))
    have = selective_scan(*args, **options, impl=impl, softplus=softplus)
    assert have[0].dtype == have[1].dtype == jnp.float32
    close(have[0], y, 1e-5)


@pytest.mark.parametrize(
    ("name", "shape"), [("dt", (2, 13, 4)), ("B", (2, 13, 5)), ("D", (3,)), ("state", (2, 3, 5))]
)
def test_shapes_that_do_not_fit_are_refused(name, shape):
    args, options = draw()
    named = dict(zip(["u", "dt", "A", "B", "C", "D"], args, strict=True)) | options
    with pytest.raises(InputError, match=f"{name} is"):
        selective_scan(**{**named, name: np.zeros(shape)})


def test_an_implementation_that_does_not_exist_is_refused():
    args, _ = draw()
    with pytest.raises(InputError, match="impl is 'cuda'"):
        selective_scan(*args, impl="cuda")
