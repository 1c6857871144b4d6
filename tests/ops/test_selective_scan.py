"""Every form of the scan against plain loops in numpy that share no code with it."""

import time
from functools import cache, partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pangu_jax.core.errors import InputError
from pangu_jax.ops import selective_scan_kernel
from pangu_jax.ops.linear_scan import FORMS, linear_scan
from pangu_jax.ops.selective_scan import choose, selective_scan, selective_states
from pangu_jax.ops.selective_scan_chunked import chunked

IMPLS = ["reference", "chunked", "associative", "export"]
NAMES = ["u", "dt", "A", "B", "C", "D", "dt_bias", "state"]


def draw(b=2, t=13, e=5, n=3, seed=0):
    """All arguments that can be differentiated, in float64, by name."""
    rng = np.random.default_rng(seed)
    u, dt = rng.normal(size=(2, b, t, e))
    B, C = rng.normal(size=(2, b, t, n))
    D, bias = rng.normal(size=(2, e))
    A, state = -np.exp(rng.normal(size=(e, n))), rng.normal(size=(b, e, n))
    return dict(zip(NAMES, (u, dt, A, B, C, D, bias, state), strict=True))


def naive(u, dt, A, B, C, D, dt_bias, state, lengths=None, softplus=True):
    """One step of one sequence at a time, in float64: outputs, last state, all states."""
    y, h, every = np.zeros_like(u), np.array(state), np.zeros((*u.shape, A.shape[1]))
    for i in range(len(u)):
        for k in range(u.shape[1]):
            if lengths is None or k < lengths[i]:
                d = dt[i, k] + dt_bias
                if softplus:
                    d = np.array([x if x > 20 else np.log1p(np.exp(x)) for x in d])
                for j, x in enumerate(d):
                    h[i, j] = np.exp(x * A[j]) * h[i, j] + x * B[i, k] * u[i, k, j]
                    y[i, k, j] = (C[i, k] * h[i, j]).sum() + D[j] * u[i, k, j]
            every[i, k] = h[i]
    return y, h, every


def close(have, want, limit):
    """The largest difference against the largest value."""
    have, want = np.asarray(have, np.float64), np.asarray(want, np.float64)
    assert have.shape == want.shape and np.isfinite(have).all()
    assert np.abs(have - want).max() <= limit * max(np.abs(want).max(), 1e-30)


def in_float32(tree):
    return jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), tree)


def kernel(name, *, softplus=True):
    """A kernel, interpreted, as a function of the named arguments."""
    run = partial(getattr(selective_scan_kernel, name), softplus=softplus, interpret=True)
    return lambda **a: run(*(a[name] for name in NAMES))


def outcome(run, arguments, scale):
    """Outputs and last state, and the gradients of their weighted sum by argument."""

    def both(arguments, scale):
        out, back = jax.vjp(lambda a: run(**a), arguments)
        return out, back(scale)[0]

    return jax.jit(both)(arguments, scale)


def weights(arguments, seed=9):
    rng = np.random.default_rng(seed)
    return rng.normal(size=arguments["u"].shape), rng.normal(size=arguments["state"].shape)


def scan_and_states(arguments, **options):
    some = {k: v for k, v in arguments.items() if k not in "CD"}
    out = selective_scan(**arguments, **options)
    if options.get("impl") == "chunked":
        return out
    return *out, selective_states(**some, **options)


@pytest.mark.parametrize("impl", IMPLS)
def test_scan_and_states_equal_a_plain_loop(impl):
    for t, softplus in ((1, True), (9, True), (9, False)):
        arguments = draw(t=t)
        if not softplus:
            arguments |= {name: np.abs(arguments[name]) for name in ("dt", "dt_bias")}
        want = naive(**arguments, softplus=softplus)
        run = jax.jit(partial(scan_and_states, impl=impl, softplus=softplus))
        with jax.enable_x64(True):
            for have, right in zip(run(arguments), want, strict=False):
                close(have, right, 1e-13)
    for have, right in zip(run(in_float32(arguments)), want, strict=False):
        assert have.dtype == jnp.float32
        close(have, right, 1e-5)


@pytest.mark.long(but=3)
@pytest.mark.parametrize("source", ["golden", "released"])
@pytest.mark.parametrize("impl", IMPLS)
def test_it_is_plain_torch_loops_and_the_released_operator(impl, source, request):
    path = Path(__file__).parents[1] / "golden" / "operators.npz"
    if source == "released":
        path = request.getfixturevalue("data_dir").parent / "fixtures" / "ops_float64.npz"
    with np.load(path, allow_pickle=False) as file:
        scan = {k.removeprefix("scan/"): file[k] for k in file.files if k.startswith("scan/")}
    wide = {k: scan[k].swapaxes(1, 2) for k in ("u", "B", "C", "y")}
    dt, every = scan["delta_raw"].swapaxes(1, 2), np.moveaxis(scan["h"], 3, 1)
    rest = {"A": scan["A"], "dt_bias": scan["delta_bias"], "D": scan["D"]}
    run = jax.jit(partial(scan_and_states, impl=impl))
    with jax.enable_x64(True):
        for t in (1, 2, 7, dt.shape[1]):
            cut = {k: wide[k][:, :t] for k in ("u", "B", "C")} | {"dt": dt[:, :t]}
            y, last, *states = run(cut | rest)
            close(y, wide["y"][:, :t], 1e-12)
            limit = 1e-7 if every.dtype == np.float32 else 1e-12
            close(last, every[:, t - 1], limit)
            for have in states:
                close(have, every[:, :t], limit)
        close(last, scan["last_h"], 1e-12)


@pytest.mark.parametrize("impl", IMPLS)
def test_a_long_sequence_equals_a_plain_loop(impl):
    arguments = draw(b=1, t=4096, e=3, n=2)
    y, last, _ = naive(**arguments)
    with jax.enable_x64(True):
        have = jax.jit(partial(selective_scan, impl=impl))(**arguments)
        close(have[0], y, 1e-12)
        close(have[1], last, 1e-12)


@pytest.mark.parametrize("inner", ["loop", "associative"])
def test_the_length_of_a_chunk_changes_nothing(inner):
    a = draw(t=11)
    arguments = {k: a[k] for k in ("u", "A", "B", "C", "state")} | {"d": np.log1p(np.exp(a["dt"]))}
    with jax.enable_x64(True):
        want = None
        for length in (11, 4, 16):
            run = partial(chunked, inner=inner, length=length)
            have = outcome(run, arguments, weights(a))
            jax.tree.map(partial(close, limit=1e-12), have, want or have)
            want = want or have


@pytest.mark.long(but=2)
@pytest.mark.parametrize("impl", IMPLS)
def test_gradients_equal_finite_differences(impl):
    arguments = draw(t=21)
    rng = np.random.default_rng(3)
    scale = weights(arguments)

    def loss(arguments):
        y, last, *states = scan_and_states(arguments, impl=impl)
        return (
            sum(jnp.sin(h).sum() for h in states) + (y * scale[0]).sum() + (last * scale[1]).sum()
        )

    with jax.enable_x64(True):
        function, slopes = jax.jit(loss), jax.jit(jax.grad(loss))(arguments)
        for name in NAMES:
            way = rng.normal(size=arguments[name].shape)
            ends = [function(arguments | {name: arguments[name] + h * way}) for h in (1e-5, -1e-5)]
            slope = float(ends[0] - ends[1]) / 2e-5
            assert abs(float((slopes[name] * way).sum()) - slope) < 1e-6 * max(1, abs(slope))


@pytest.mark.long(but=2)
@pytest.mark.parametrize(
    ("name", "softplus"),
    [
        ("mosaic", True),
        pytest.param("mosaic", False, marks=pytest.mark.slow),
        ("tpu", True),
        ("tpu", False),
    ],
)
def test_kernels_equal_the_loop_and_its_gradients(name, softplus):
    """Interpreted, at sizes that no block divides: 13 steps, 130 channels, 3 states."""
    arguments = draw(b=1, t=13, e=130)
    if not softplus:
        arguments |= {k: np.abs(arguments[k]) for k in ("dt", "dt_bias")}
    y, last, _ = naive(**arguments, softplus=softplus)
    scale = weights(arguments)
    run = kernel(name, softplus=softplus)
    have, slopes = outcome(run, in_float32(arguments), in_float32(scale))
    close(have[0], y, 1e-5)
    close(have[1], last, 1e-5)
    with jax.enable_x64(True):
        plain = partial(selective_scan, impl="reference", softplus=softplus)
        _, want = outcome(plain, arguments, scale)
    jax.tree.map(partial(close, limit=1e-5), slopes, want)


def extreme():
    """Steps far out on either side, and around where softplus becomes the identity."""
    arguments = draw(b=1, t=16, e=8, n=4)
    arguments["dt"] = np.random.default_rng(1).choice([-50.0, 0, 19.9, 20.1, 50], (1, 16, 8))
    return arguments


@cache
def expected(make, **options):
    """What the reference gives in float64, its outputs checked by the plain loop."""
    arguments = make(**options)
    with jax.enable_x64(True):
        want = outcome(partial(selective_scan, impl="reference"), arguments, weights(arguments))
    for have, right in zip(want[0], naive(**arguments), strict=False):
        close(have, right, 1e-13)
    return want


@pytest.mark.long
@pytest.mark.parametrize("impl", [*IMPLS, "mosaic", "tpu"])
def test_extreme_steps_give_finite_values_and_gradients(impl):
    arguments = extreme()
    run = kernel(impl) if impl in ("mosaic", "tpu") else partial(selective_scan, impl=impl)
    have = outcome(run, in_float32(arguments), in_float32(weights(arguments)))
    jax.tree.map(partial(close, limit=1e-4), have, expected(extreme))


@pytest.mark.parametrize("impl", ["reference", "chunked"])
def test_a_sequence_may_be_split_anywhere(impl):
    arguments = draw(t=23)

    def split(at, **a):
        first, second = ({k: v[:, part] if k in ("u", "dt", "B", "C") else v for k, v in a.items()}
                         for part in (slice(at), slice(at, None)))  # fmt: skip
        y, state = selective_scan(**first, impl=impl)
        rest, state = selective_scan(**(second | {"state": state}), impl=impl)
        return jnp.concatenate([y, rest], 1), state

    with jax.enable_x64(True):
        have = outcome(partial(split, 16), arguments, weights(arguments))
    jax.tree.map(partial(close, limit=1e-12), have, expected(draw, t=23))


@pytest.mark.parametrize("softplus", [True, False])
@pytest.mark.parametrize("impl", ["reference", "chunked"])
def test_what_lies_behind_the_end_has_no_effect(impl, softplus):
    arguments, lengths = draw(t=19), np.array([19, 6])
    arguments |= {name: np.abs(arguments[name]) for name in ("dt", "dt_bias")}
    y, last, _ = naive(**arguments, lengths=lengths, softplus=softplus)
    for name in ("u", "dt", "B", "C"):
        arguments[name][1, 6:] = np.nan
    with jax.enable_x64(True):
        run = partial(selective_scan, impl=impl, lengths=jnp.array(lengths), softplus=softplus)
        have, slopes = outcome(run, arguments, weights(arguments))
        close(have[0], y, 1e-13)
        close(have[1], last, 1e-13)
        assert (have[0][1, 6:] == 0).all()
        for name in NAMES:
            assert np.isfinite(slopes[name]).all()
        for name in ("u", "dt", "B", "C"):
            assert (slopes[name][1, 6:] == 0).all()


@pytest.mark.parametrize("form", FORMS)
def test_linear_scan_equals_a_loop_both_ways(form):
    rng = np.random.default_rng(5)
    a, b, w = rng.normal(size=(3, 2, 11, 3)) * 0.8
    start = rng.normal(size=(2, 3))
    h, states = start, []
    for t in range(11):
        h = a[:, t] * h + b[:, t]
        states.append(h)
    with jax.enable_x64(True):
        run = partial(linear_scan, form=form)
        arguments = {"a": a, "b": b, "start": start}
        have, slopes = outcome(run, arguments, w)
        close(have, np.stack(states, 1), 1e-13)
        # Written out: dL/db_t is the sum over s >= t of w_s times the decays between.
        da, db, dstart = slopes["a"], slopes["b"], slopes["start"]
    flow = np.zeros_like(start)
    for t in reversed(range(11)):
        flow = flow + w[:, t]
        close(db[:, t], flow, 1e-12)
        close(da[:, t], flow * (states[t - 1] if t else start), 1e-12)
        flow = flow * a[:, t]
    close(dstart, flow, 1e-12)


def test_the_default_never_holds_all_states():
    b, t, e, n = 1, 256, 32, 16
    shapes = [(b, t, e), (b, t, e), (e, n), (b, t, n), (b, t, n)]
    arrays = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]

    def bytes_held(impl):
        loss = jax.grad(lambda *a: selective_scan(*a, impl=impl)[0].sum(), argnums=range(5))
        return jax.jit(loss).lower(*arrays).compile().memory_analysis().temp_size_in_bytes

    every = 4 * b * t * e * n
    assert bytes_held(None) < 0.5 * every
    assert bytes_held("associative") > 2 * every  # the measure sees states that are kept


@pytest.mark.slow
def test_the_default_is_as_fast_as_what_one_would_write(as_users):
    """4096 steps of 256 channels with 16 states, beside a scan over steps and one in log depth."""
    a = in_float32(draw(b=1, t=4096, e=256, n=16))
    arguments = {name: a[name] for name in ("u", "dt", "A", "B", "C", "D", "dt_bias")}

    def terms(u, dt, A, B, dt_bias, **_):
        d = jax.nn.softplus(dt + dt_bias)[..., None]
        return jnp.exp(d * A), d * (B[..., None, :] * u[..., None])

    def over_steps(u, C, D, **rest):
        def step(h, now):
            u, dt, B, C = now
            decay, enters = terms(u, dt, rest["A"], B, rest["dt_bias"])
            h = decay * h + enters
            return h, (h * C[:, None]).sum(-1) + D * u

        along = [x.swapaxes(0, 1) for x in (u, rest["dt"], rest["B"], C)]
        return jax.lax.scan(step, jnp.zeros((1, 256, 16)), along)[1].swapaxes(0, 1)

    def in_log_depth(u, C, D, **rest):
        def join(left, right):
            return left[0] * right[0], right[0] * left[1] + right[1]

        h = jax.lax.associative_scan(join, terms(u, **rest), axis=1)[1]
        return (h * C[:, :, None]).sum(-1) + D * u

    forms = {
        "default": lambda **a: selective_scan(**a)[0],
        "over steps": over_steps,
        "in log depth": in_log_depth,
    }
    runs = {n: jax.jit(f, compiler_options=as_users) for n, f in forms.items()}
    outputs = {name: run(**arguments) for name, run in runs.items()}
    for y in outputs.values():
        close(y, outputs["over steps"], 1e-4)
    times = {name: [] for name in runs}
    for _ in range(10):  # in turn, so that a busy machine hits all
        for name, run in runs.items():
            began = time.perf_counter()
            run(**arguments).block_until_ready()
            times[name].append(time.perf_counter() - began)
    least = {name: min(each) for name, each in times.items()}
    print({name: f"{1e3 * t:.1f} ms" for name, t in least.items()})
    assert least["default"] <= min(least.values())


def test_half_precision_runs_in_float32_and_returns_its_type():
    arguments = draw()
    low = {k: jnp.asarray(v, jnp.bfloat16) for k, v in arguments.items()}
    y, last = selective_scan(**low)
    assert y.dtype == jnp.bfloat16 and last.dtype == jnp.float32
    want, _ = selective_scan(**in_float32(low))
    np.testing.assert_array_equal(y, want.astype(jnp.bfloat16))


def test_what_is_absent_counts_as_zero_and_vmap_equals_a_loop():
    a = draw()
    full = in_float32(a | {name: a[name] * 0 for name in ("D", "dt_bias", "state")})
    bare = {k: full[k] for k in ("u", "dt", "A", "B", "C")}
    run = jax.jit(lambda a: selective_scan(**a))
    jax.tree.map(partial(close, limit=1e-7), run(bare), run(full))
    many = jnp.stack([full["A"], full["A"] * 0.5])
    slope = jax.grad(lambda A: selective_scan(**(bare | {"A": A}))[0].sum())
    alone = jax.jit(slope)
    close(jax.jit(jax.vmap(slope))(many), jnp.stack([alone(A) for A in many]), 1e-6)


def test_the_export_form_has_no_loop():
    text = str(jax.make_jaxpr(lambda a: selective_scan(**a, impl="export"))(in_float32(draw(t=40))))
    assert "scan[" not in text and "while" not in text
    text = str(jax.make_jaxpr(lambda a: selective_scan(**a, impl="chunked"))(in_float32(draw())))
    assert "scan[" in text


@pytest.mark.parametrize(("impl", "platform"), [("mosaic", "cuda"), ("tpu", "tpu")])
def test_kernels_lower_for_their_chips(impl, platform):
    """To the chip's own call, forward and backward; no chip is needed for that."""
    calls = {"cuda": "mosaic_gpu_v2", "tpu": "tpu_custom_call"}
    arguments = in_float32(draw(t=64, e=256, n=16))
    loss = jax.jit(jax.grad(lambda a: sum(x.sum() for x in selective_scan(**a, impl=impl))))
    exported = jax.export.export(
        loss,
        platforms=[platform],
        disabled_checks=[jax.export.DisabledSafetyCheck.custom_call("mosaic_gpu_v2")],
    )(arguments)
    assert exported.mlir_module().count(f"@{calls[platform]}") == 2


def test_the_choice_is_the_table():
    shape = (8, 2048, 5120, 16)
    picks = {p: choose(p, shape) for p in ("cpu", "gpu", "hopper", "tpu")}
    assert picks == {"cpu": "chunked", "gpu": "chunked", "hopper": "mosaic", "tpu": "tpu"}
    assert choose("hopper", (8, 2048, 5120, 64)) == "chunked"
    assert choose("hopper", shape, jnp.float64) == "chunked"


@pytest.mark.parametrize(
    ("name", "shape"), [("dt", (2, 13, 4)), ("B", (2, 13, 5)), ("D", (3,)), ("state", (2, 3, 5))]
)
def test_shapes_that_do_not_fit_are_refused(name, shape):
    with pytest.raises(InputError, match=f"{name} is"):
        selective_scan(**(draw() | {name: np.zeros(shape)}))


def test_other_bad_input_is_refused():
    with pytest.raises(InputError, match="impl of selective_scan must be one of"):
        selective_scan(**draw(), impl="cuda")
    with pytest.raises(InputError, match="no time steps"):
        selective_scan(**draw(t=0))
    with pytest.raises(InputError, match="lengths is"):
        selective_scan(**draw(), lengths=np.array([1]))
    with pytest.raises(InputError, match="must be"):
        selective_states(*np.zeros((2, 3, 4)), *np.zeros((2, 4)))
