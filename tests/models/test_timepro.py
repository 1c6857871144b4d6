"""TimePro against plain torch loops and its released code, and what must hold for any weights.

`tests/golden` holds the loops' figures (`tools/make_golden_timepro.py`); those of the released code
are compared too where they are available.
"""

import dataclasses
import functools
from pathlib import Path

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pangu_jax.checkpoint.timepro_torch import from_torch, torch_names
from pangu_jax.core.errors import InputError
from pangu_jax.core.spec import check, count, init, zeros
from pangu_jax.core.tree import flatten, map_named
from pangu_jax.models import timepro
from pangu_jax.models.timepro_config import TimeProConfig
from pangu_jax.nn import norm, ssm
from pangu_jax.nn.how import HOW
from pangu_jax.ops.deform_sample import deform_sample
from pangu_jax.ops.selective_scan import selective_states
from pangu_jax.train.fit_config import FitConfig
from pangu_jax.train.forecast import adam, forecast_loss, initial
from pangu_jax.train.step import abstract_state, init_state, make_step

GOLDEN = Path(__file__).parents[1] / "golden"
SMALL = TimeProConfig(look_back=16, horizon=4, layers=1, patch=8, stride=8, dropout=0.0)


@pytest.fixture(scope="module", params=["golden", "released"])
def figures(request):
    if request.param == "golden":
        return read(GOLDEN / "timepro.npz")
    root = request.getfixturevalue("data_dir").parent
    return read(root / "fixtures" / "timepro_small_group2.npz")


def read(path):
    with np.load(path, allow_pickle=False) as file:
        return dict(file)


@pytest.fixture(scope="module")
def awake():
    """Small parameters whose state branch says something."""
    rng = np.random.default_rng(0)
    params = jax.jit(lambda key: init(timepro.spec(SMALL), key=key))(jax.random.key(0))

    def wake(name, leaf):
        return jnp.asarray(rng.normal(size=leaf.shape), leaf.dtype) if "offset" in name else leaf

    return map_named(wake, params)


def tensors(figures, dtype):
    return {k[6:]: v.astype(dtype) for k, v in figures.items() if k.startswith("param/")}


def config(figures):
    return TimeProConfig(
        look_back=int(figures["cfg/seq_len"]),
        horizon=int(figures["cfg/pred_len"]),
        layers=int(figures["cfg/e_layers"]),
        channels=int(figures["cfg/d_model"]),
        patch=int(figures["cfg/patch_len"]),
        stride=int(figures["cfg/stride"]),
    )


def difference(figures, dtype=np.float64):
    """Of our forecast from theirs, the arithmetic being of this type."""
    cfg = config(figures)
    with jax.enable_x64(dtype == np.float64):
        params = from_torch(tensors(figures, dtype), cfg)
        run = jax.jit(lambda p, x: timepro.apply(p, x, cfg=cfg))
        return float(np.abs(run(params, figures["x"].astype(dtype)) - figures["out_f64"]).max())


def test_forecasts_are_theirs(figures):
    assert difference(figures) < 1e-9
    assert difference(figures, np.float32) < 1e-4


@pytest.mark.long(but=3)
@pytest.mark.parametrize(
    "change", ["taps", "softmax", "scale", "gelu", "eps", "flip", "skip", "step"]
)
def test_every_slip_shows(change, monkeypatch):
    figures = read(GOLDEN / "timepro.npz")
    if change in ("taps", "softmax", "scale"):

        def wrong(values, numbers, *, groups, impl=None):
            if change == "scale":
                return deform_sample(values, numbers, groups=groups, scale=1.0)
            x = numbers[..., : 27 * groups].reshape(*numbers.shape[:3], groups, 27)
            moves, masks = x[..., :18], x[..., 18:]
            if change == "softmax":
                masks = jax.nn.softmax(masks, -1)
            else:  # height first
                moves = jnp.flip(moves.reshape(*moves.shape[:-1], 9, 2), -1).reshape(moves.shape)
            x = jnp.concatenate([moves, masks], -1).reshape(*numbers.shape[:3], -1)
            return deform_sample(values, x, groups=groups)

        monkeypatch.setattr(ssm, "deform_sample", wrong)
    elif change == "gelu":
        gelu = jax.nn.gelu
        monkeypatch.setattr(jax.nn, "gelu", lambda x, approximate: gelu(x, approximate=True))
    elif change == "eps":
        monkeypatch.setattr(timepro, "EPS", 1e-6)
    elif change == "flip":
        monkeypatch.setattr(jnp, "flip", lambda x, axis: x)
    elif change == "skip":
        figures = {k: v * 0 if k.endswith("op.Ds") else v for k, v in figures.items()}
    else:
        states = functools.partial(selective_states, softplus=False)
        monkeypatch.setattr(ssm, "selective_states", states)
    assert difference(figures) > 1e-7


@pytest.mark.long
def test_gradients_are_theirs(figures):
    cfg = config(figures)
    params = from_torch(tensors(figures, np.float32), cfg)

    def loss(params):
        out = timepro.apply(params, figures["x"].astype(np.float32), cfg=cfg)
        return jnp.mean((out - figures["y_target"].astype(np.float32)) ** 2)

    value, grads = jax.jit(jax.value_and_grad(loss))(params)
    assert float(value) == pytest.approx(float(figures["loss_mse"]), rel=1e-5)
    grads = flatten(grads)
    wanted = {name for name in figures if name.startswith(("grad/", "gradsum"))}
    for path, (name, transposed) in torch_names(cfg).items():
        grad = np.asarray(grads[path], np.float64)
        found = {f"grad/{name}": grad.T if transposed else grad}
        if f"gradsum0/{name}" in wanted:  # of large ones the golden file has weighted sums
            (grad,) = found.values()
            rows, columns = (np.cos(np.arange(n)) for n in grad.shape)
            found = {f"gradsum0/{name}": rows @ grad, f"gradsum1/{name}": grad @ columns}
        for kind, have in found.items():
            want = figures[kind]
            assert np.abs(have - want).max() <= 1e-4 * np.abs(want).max(), kind
        wanted -= found.keys()
    assert not wanted


def test_what_a_checkpoint_lacks_or_has_too_much_is_named(figures):
    there, cfg = tensors(figures, np.float32), config(figures)
    less = {k: v for k, v in there.items() if not k.endswith("op2.Ds")}
    with pytest.raises(InputError, match=r"lacks encoder.attn_layers.0.op2.Ds"):
        from_torch(less, cfg)
    with pytest.raises(InputError, match=r"tensor extra that TimePro does not know"):
        from_torch({**there, "extra": np.zeros(1)}, cfg)
    said = rf"head/bias has shape \({cfg.horizon},\), the configuration says \(48,\)"
    with pytest.raises(InputError, match=said):
        from_torch(there, dataclasses.replace(cfg, horizon=48))
    dead = [f"encoder.attn_layers.0.op.{name}" for name in ("conv2d.bias", "out_proj.weight")]
    from_torch({k: v for k, v in there.items() if k not in dead}, cfg)
    from_torch({**there, **dict.fromkeys(dead, np.zeros(1))}, cfg)


def test_parameter_counts_are_those_of_the_used_tensors():
    assert count(timepro.spec(TimeProConfig())) == 1_646_048  # ETTh1-96
    assert count(timepro.spec(TimeProConfig(96, 192, 2, 32))) == 6_559_648
    assert count(timepro.spec(TimeProConfig(96, 96, 1, 32))) == 3_280_528
    assert count(timepro.spec(TimeProConfig(96, 96, 3, 32, 6, 3))) == 38_723_888
    stateless = timepro.spec(TimeProConfig(state=False))
    names = flatten(stateless, is_leaf=lambda x: hasattr(x, "init"))
    assert not any("offset" in name or "rate" in name for name in names)


@pytest.mark.long
def test_at_the_start_the_states_are_silent_and_one_step_wakes_them():
    params = initial(SMALL, (0,))
    series = jnp.asarray(np.random.default_rng(0).normal(size=(60, 3)), jnp.float32)
    seen = series[None, :16]
    bare = TimeProConfig(**{**SMALL.__dict__, "state": False})
    kept = {"skip", "in", "norm"}
    quiet = {**params, "blocks": [dict(b) for b in params["blocks"]]}
    for b in quiet["blocks"]:
        for way in ("forward", "backward"):
            b[way] = {k: v for k, v in b[way].items() if k in kept}
    check(timepro.spec(bare), quiet)
    with_states = jax.jit(lambda p: timepro.apply(p, seen, cfg=SMALL))(params)
    without = jax.jit(lambda p: timepro.apply(p, seen, cfg=bare))(quiet)
    np.testing.assert_allclose(with_states, without, atol=1e-6)
    shut = ssm.mixer_spec(SMALL.mixer)["offset_mask"]
    assert shut["kernel"].init is shut["bias"].init is zeros

    def loss(params):
        return jnp.mean((timepro.apply(params, seen, cfg=SMALL) - series[None, 16:20]) ** 2)

    grad = jax.jit(jax.grad(loss))
    mixer = grad(params)["blocks"][0]["forward"]
    assert not jnp.any(mixer["rate_log"])
    assert jnp.any(mixer["offset_mask"]["kernel"])
    optimizer = adam(FitConfig(learning_rate=1e-3), 100)
    state = init_state(timepro.spec(SMALL), optimizer, key=jax.random.key(0), params=params)
    step = make_step(forecast_loss(SMALL), optimizer)
    batch = {"starts": np.arange(4), "draw": np.uint32([0, 0]), "place": np.int32([0, 0])}
    state, _ = step(state, batch, jax.random.key(0), series)
    assert jnp.any(grad(state.params)["blocks"][0]["forward"]["rate_log"])


def test_dropout_draws_for_every_window_series_patch_and_channel(awake):
    cfg = TimeProConfig(**{**SMALL.__dict__, "dropout": 0.25})
    x = jnp.asarray(np.random.default_rng(5).normal(size=(4, 16, 5)), jnp.float32)
    plain = timepro.embed(awake["embed"], x, cfg=cfg)
    found = timepro.embed(awake["embed"], x, cfg=cfg, key=jax.random.key(0))
    kept = np.asarray(found != 0)
    np.testing.assert_allclose(found[kept], plain[kept] / 0.75, rtol=1e-6)
    assert 0.7 < kept.mean() < 0.8
    kept = kept.reshape(4, 5, SMALL.mixer.patches, -1)
    for axis, size in enumerate(kept.shape):
        parts = np.moveaxis(kept, axis, 0).reshape(size, -1)
        assert len(np.unique(parts, axis=0)) == size, axis


def test_scale_and_level_of_a_series_pass_through(awake):
    rng = np.random.default_rng(1)
    x = jnp.asarray(10 * rng.normal(size=(2, 16, 3)), jnp.float32)
    k, c = jnp.array([0.5, 3.0, 20.0]), jnp.array([-4.0, 0.0, 7.0])
    run = jax.jit(lambda x: timepro.apply(awake, x, cfg=SMALL))
    want = np.asarray(run(x), np.float64)
    found = (np.asarray(run(k * x + c), np.float64) - c) / k
    assert np.abs(found - want).max() <= 1e-4 * np.abs(want).max()


@pytest.mark.long
def test_a_constant_series_is_forecast_near_its_constant(awake):
    x = jnp.full((1, 16, 3), 5.0)

    @jax.jit
    def both(x):
        bare, _, _ = timepro.normalize(x)
        tokens = timepro.embed(awake["embed"], bare, cfg=SMALL)
        tokens = timepro.block(awake["blocks"][0], tokens, cfg=SMALL)
        return timepro.apply(awake, x, cfg=SMALL), timepro.head(awake, tokens)

    out, raw = both(x)
    assert (jnp.abs(out - 5) <= 0.0032 * jnp.abs(raw) + 1e-6).all()
    grads = jax.jit(jax.grad(lambda p: (timepro.apply(p, x, cfg=SMALL) ** 2).sum()))(awake)
    chex.assert_tree_all_finite(grads)


@pytest.mark.long
def test_each_series_hears_all_others_through_the_states_alone(awake):
    x = jnp.asarray(np.random.default_rng(2).normal(size=(1, 16, 3)), jnp.float32)
    slope = jax.jit(jax.jacobian(lambda x, p: timepro.apply(p, x, cfg=SMALL)[0].sum(0)))
    heard = jnp.abs(slope(x, awake)[:, 0]).sum(1)  # [of, by]
    assert (heard > 1e-6).all()
    silent = map_named(lambda n, v: v * 0 if "offset_mask" in n else v, awake)
    heard = jnp.abs(slope(x, silent)[:, 0]).sum(1)
    assert (heard * (1 - jnp.eye(3)) == 0).all()
    order = jnp.array([2, 0, 1])
    run = jax.jit(lambda p, x: timepro.apply(p, x, cfg=SMALL))
    assert jnp.abs(run(awake, x[..., order]) - run(awake, x)[..., order]).max() > 1e-4
    np.testing.assert_allclose(run(silent, x[..., order]), run(silent, x)[..., order], atol=1e-6)


def test_the_forward_scan_passes_nothing_back(awake):
    mixer = awake["blocks"][0]["forward"]
    u = jnp.asarray(np.random.default_rng(3).normal(size=(1, 4, SMALL.width)), jnp.float32)

    @jax.jit
    def states(u):
        select = u @ mixer["select"]["kernel"]
        rank = SMALL.mixer.rank
        step = select[..., :rank] @ mixer["step"]["kernel"]
        return ssm._states(mixer, u, step, select[..., rank : rank + 1], HOW)

    before, after = states(u), states(u.at[0, 2].add(1.0))
    np.testing.assert_array_equal(before[0, :2], after[0, :2])
    assert jnp.abs(before[0, 2:] - after[0, 2:]).min(1).max() > 0


def test_layer_norm_is_the_formula():
    x = np.random.default_rng(4).normal(size=(5, 7))
    params = {"scale": np.arange(1.0, 8), "bias": np.arange(7.0)}
    want = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 0.1)
    with jax.enable_x64(True):
        found = norm.layer_norm(jax.tree.map(jnp.asarray, params), jnp.asarray(x), eps=0.1)
        np.testing.assert_allclose(found, want * params["scale"] + params["bias"], atol=1e-12)


def temporaries(variates):
    """Bytes of a compiled training step at the settings of Electricity, which is not run."""
    model = TimeProConfig(96, 96, 2, 32, 8, 4)
    optimizer = adam(FitConfig(), 100)
    state = abstract_state(timepro.spec(model), optimizer)
    step = make_step(forecast_loss(model), optimizer)
    series = jax.ShapeDtypeStruct((1000, variates), jnp.float32)
    batch = {"starts": np.arange(16), "draw": np.uint32([0, 0]), "place": np.int32([0, 0])}
    compiled = step.lower(state, batch, jax.random.key(0), series).compile()
    return compiled.memory_analysis().temp_size_in_bytes


@pytest.mark.slow
def test_training_at_the_size_of_electricity_stays_within_memory():
    # Growth with the number of series is tested with the sampling, the one part that could differ.
    assert temporaries(321) < 6e9


@pytest.mark.slow
def test_memory_of_a_training_step_grows_linearly_with_the_series():
    few, more, many = map(temporaries, (64, 128, 256))
    assert more <= 2.2 * few and many <= 2.2 * more


def test_what_makes_no_model_is_refused():
    for wrong, message in (
        ({"channels": 20}, "multiple of 16"),
        ({"patch": 100}, "exceeds the look-back of 96"),
        ({"horizon": 0}, "horizon must be at least 1"),
        ({"dropout": 1.0}, "dropout"),
    ):
        with pytest.raises(InputError, match=message):
            TimeProConfig(**wrong)
    with pytest.raises(InputError, match=r"expected \[B, 96, V\]"):
        timepro.apply({}, jnp.zeros((1, 95, 2)), cfg=TimeProConfig())
