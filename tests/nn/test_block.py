"""A layer's two halves against their formulas in numpy: norms, their places, dropout, taps."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pangu_jax.core.errors import InputError
from pangu_jax.core.spec import Normal, init, is_spec
from pangu_jax.nn.attention import AttentionConfig, Source, attention
from pangu_jax.nn.block import LayerConfig, attention_half, block, block_spec, mlp_half
from pangu_jax.nn.mlp import MlpConfig, mlp
from pangu_jax.nn.norm import norm

HEADS = AttentionConfig(2, 1, 4, rotary=False)
EPS = 1e-3
RNG = np.random.default_rng(0)
X = jnp.asarray(RNG.normal(size=(2, 3, 8)), jnp.float32)


def layer(**options):
    cfg = LayerConfig(HEADS, mlp=MlpConfig(6), **options)
    spec = jax.tree.map(
        lambda s: s.__class__(s.shape, s.axes, Normal(0.5)), block_spec(8, cfg), is_leaf=is_spec
    )
    return cfg, init(spec, key=jax.random.key(0))


def normed(params, x, kind):
    x = np.asarray(x, np.float64)
    scale = np.asarray(params["scale"], np.float64)
    if kind == "layer":
        x = x - x.mean(-1, keepdims=True)
    y = x / np.sqrt((x**2).mean(-1, keepdims=True) + EPS)
    if kind == "layer":
        return y * scale + np.asarray(params["bias"], np.float64)
    return y * (1 + scale if kind == "zero_centered_rms" else scale)


def branches(params, cfg):
    return (
        lambda x: attention(params["attention"], x, None, None, cfg=HEADS, eps=EPS)[0],
        lambda x: mlp(params["mlp"], x, cfg=cfg.mlp),
    )


@pytest.mark.parametrize("kind", ["rms", "zero_centered_rms", "layer"])
@pytest.mark.parametrize("place", ["pre", "post", "sandwich"])
def test_norms_of_each_kind_stand_where_they_are_said_to(kind, place):
    cfg, params = layer(norm=kind, norm_place=place)
    want = X
    for part, branch in zip(("attention", "mlp"), branches(params, cfg), strict=True):
        first = params[f"{part}_norm"]
        if place == "post":
            want = normed(first, want + branch(want), kind)
        else:
            added = branch(jnp.asarray(normed(first, want, kind), jnp.float32))
            if place == "sandwich":
                added = normed(params[f"{part}_post_norm"], added, kind)
            want = want + added
        want = jnp.asarray(want, jnp.float32)
    got, _, _ = block(params, X, None, None, cfg=cfg, eps=EPS)
    np.testing.assert_allclose(got, want, atol=1e-5)
    assert sorted(n for n in params if "post" in n) == (
        ["attention_post_norm", "mlp_post_norm"] if place == "sandwich" else []
    )


def test_norms_compute_in_float32_and_keep_the_type():
    x = jnp.asarray(300 * X, jnp.bfloat16)
    for kind in ("rms", "zero_centered_rms", "layer"):
        _, params = layer(norm=kind)
        got = norm(params["mlp_norm"], x, kind=kind, eps=EPS)
        assert got.dtype == jnp.bfloat16
        want = normed(params["mlp_norm"], x.astype(jnp.float32), kind)
        np.testing.assert_allclose(got.astype(jnp.float32), want, atol=0.02, rtol=0.02)


def test_a_tap_sees_what_each_place_reads_and_may_change_it():
    cfg, params = layer(norm_place="sandwich")
    seen = {}

    def note(place, x):
        seen[place] = x
        return x

    y, _ = attention_half(params, X, None, None, cfg=cfg, eps=EPS, tap=note)
    z, _ = mlp_half(params, y, cfg=cfg, eps=EPS, tap=note)
    assert list(seen) == [
        *("attention_norm", "attention", "attention/out", "attention_post_norm"),
        *("mlp_norm", "mlp", "mlp/down", "mlp_post_norm"),
    ]
    np.testing.assert_array_equal(z, block(params, X, None, None, cfg=cfg, eps=EPS)[0])
    np.testing.assert_array_equal(seen["attention_norm"], X)
    np.testing.assert_array_equal(seen["mlp_norm"], y)
    for part in ("attention", "mlp"):
        want = normed(params[f"{part}_norm"], seen[f"{part}_norm"], "rms")
        np.testing.assert_allclose(seen[part], want, atol=1e-5)
    out = np.einsum("btkqc,kqcd->btd", seen["attention/out"], params["attention"]["out"]["kernel"])
    np.testing.assert_allclose(seen["attention_post_norm"], out, atol=1e-5)
    down = seen["mlp/down"] @ params["mlp"]["down"]["kernel"]
    np.testing.assert_allclose(seen["mlp_post_norm"], down, atol=1e-5)

    def silence(place, x):
        return jnp.zeros_like(x) if place == "attention/out" else x

    still, _ = attention_half(params, X, None, None, cfg=cfg, eps=EPS, tap=silence)
    np.testing.assert_array_equal(still, X)


def test_a_half_may_attend_to_another_sequence():
    cfg, params = layer(norm_place="post", norm="layer")
    there = Source(*(jnp.asarray(RNG.normal(size=(2, 5, 8)), jnp.float32) for _ in range(2)))
    got, _ = attention_half(params, X, None, None, cfg=cfg, eps=EPS, source=there)
    added, _ = attention(params["attention"], X, None, None, cfg=HEADS, eps=EPS, source=there)
    np.testing.assert_allclose(got, normed(params["attention_norm"], X + added, "layer"), atol=1e-5)


def test_dropout_drops_its_share_of_each_branch_and_keeps_the_mean():
    cfg, params = layer(dropout=0.25)
    x = jnp.broadcast_to(X[:1, :1], (64, 64, 8))
    without, _ = mlp_half(params, x, cfg=cfg, eps=EPS)
    got, _ = mlp_half(params, x, cfg=cfg, eps=EPS, key=jax.random.key(1))
    whole, part = np.asarray(without - x), np.asarray(got - x)
    dropped = np.abs(part) < 1e-6
    assert 0.24 < dropped.mean() < 0.26
    np.testing.assert_allclose(part[~dropped], (whole / 0.75)[~dropped], rtol=1e-3, atol=1e-5)
    run = jax.jit(lambda key: block(params, X, None, None, cfg=cfg, eps=EPS, key=key)[0])
    a, b = (run(jax.random.key(i)) for i in (0, 1))
    assert not np.array_equal(a, b)
    np.testing.assert_array_equal(a, run(jax.random.key(0)))


def test_a_layer_that_cannot_be_is_refused():
    with pytest.raises(InputError, match="exactly one of mlp and moe"):
        LayerConfig(HEADS)
    with pytest.raises(InputError, match="dropout must be in"):
        LayerConfig(HEADS, mlp=MlpConfig(4), dropout=1.0)
