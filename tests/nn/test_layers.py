"""Norm, rotary, MLP, attention and MoE layers against loops in numpy."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pangu_jax.core.errors import InputError
from pangu_jax.core.spec import Normal, init, is_spec
from pangu_jax.nn.attention import AttentionConfig, Source, attention, attention_spec
from pangu_jax.nn.mlp import MlpConfig, mlp, mlp_spec
from pangu_jax.nn.moe import MoEConfig, moe, moe_spec
from pangu_jax.nn.norm import rms_norm
from pangu_jax.nn.rotary import Llama3Scaling, RopeConfig, frequencies, rotate, rotation
from pangu_jax.ops.attention import visible
from pangu_jax.ops.routing import router_weights


def randomized(spec, seed=0, std=0.5):
    """Random values for every leaf, also where the initializer would give ones or zeros."""
    spec = jax.tree.map(lambda s: s.__class__(s.shape, s.axes, Normal(std)), spec, is_leaf=is_spec)
    return init(spec, key=jax.random.key(seed))


def normal(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def silu(x):
    return x / (1 + np.exp(-x))


def test_rms_norm_equals_its_formula_and_keeps_the_type():
    x, scale = normal(2, 3, 8), normal(8, seed=1)
    want = x / np.sqrt((x.astype(np.float64) ** 2).mean(-1, keepdims=True) + 1e-5) * scale
    np.testing.assert_allclose(rms_norm({"scale": scale}, x, eps=1e-5), want, atol=1e-6)
    half = rms_norm({"scale": jnp.asarray(scale)}, jnp.asarray(x, jnp.bfloat16), eps=1e-5)
    assert half.dtype == jnp.bfloat16


def test_rotation_turns_pairs_as_complex_numbers_do():
    x, positions = normal(1, 4, 2, 6), np.array([[0, 1, 5, 1000]])
    got = rotate(jnp.asarray(x), *rotation(jnp.asarray(positions), 6, RopeConfig(100.0)))
    pairs = x[..., :3] + 1j * x[..., 3:]
    angle = positions[0][:, None] * 100.0 ** (-np.arange(3) / 3)
    want = pairs * np.exp(1j * angle)[None, :, None]
    np.testing.assert_allclose(got, np.concatenate([want.real, want.imag], -1), atol=2e-4)


def test_rotated_products_depend_on_the_distance_alone():
    q, k = jnp.asarray(normal(1, 1, 1, 8)), jnp.asarray(normal(1, 1, 1, 8, seed=1))

    def product(a, b):
        at = [rotation(jnp.array([[p]]), 8, RopeConfig()) for p in (a, b)]
        return float((rotate(q, *at[0]) * rotate(k, *at[1])).sum())

    assert product(7, 3) == pytest.approx(product(104, 100), abs=1e-4)


def test_llama3_scaling_keeps_high_divides_low_and_blends_between():
    cfg = RopeConfig(500000.0, Llama3Scaling(8.0, 1.0, 4.0, 8192))
    plain, scaled = frequencies(128, RopeConfig(500000.0)), frequencies(128, cfg)
    for before, after in zip(plain, scaled, strict=True):
        wavelength = 2 * math.pi / before
        if wavelength < 8192 / 4:
            assert after == before
        elif wavelength > 8192:
            assert after == pytest.approx(before / 8)
        else:
            assert before / 8 < after < before
    with pytest.raises(InputError, match="high_freq_factor"):
        Llama3Scaling(8.0, 4.0, 1.0, 8192)


def gelu(x):
    return x * 0.5 * (1 + np.vectorize(math.erf)(x / math.sqrt(2)))


def gelu_tanh(x):
    return x * 0.5 * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


ACTS = {"silu": silu, "gelu": gelu, "gelu_tanh": gelu_tanh, "relu": lambda x: np.maximum(x, 0)}


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("gated", [True, False])
@pytest.mark.parametrize("activation", ACTS)
def test_mlp_equals_its_formula(activation, gated, bias):
    cfg = MlpConfig(5, in_bias=bias, out_bias=bias, activation=activation, gated=gated)
    params = randomized(mlp_spec(6, cfg))
    assert ("bias" in params["down"]) == bias
    assert ("gate" in params) == gated
    x = normal(2, 3, 6)
    part = {n: (np.asarray(p["kernel"]), np.asarray(p.get("bias", 0.0))) for n, p in params.items()}
    act, up = ACTS[activation], x @ part["up"][0] + part["up"][1]
    units = act(x @ part["gate"][0] + part["gate"][1]) * up if gated else act(up)
    want = units @ part["down"][0] + part["down"][1]
    np.testing.assert_allclose(mlp(params, jnp.asarray(x), cfg=cfg), want, atol=1e-6)


def naive_attention(params, x, segments, positions, cfg, theta, eps, source=None):
    """Loops over rows, heads and pairs; numpy in float64. A source has a key and a value input."""
    p = jax.tree.map(lambda a: np.asarray(a, np.float64), params)
    batch, length, _ = x.shape
    keys, values = (x, x) if source is None else source
    out = np.zeros_like(x, np.float64)

    def turned(v, position):
        if not cfg.rotary:
            return v
        half = cfg.head_dim // 2
        z = (v[:half] + 1j * v[half:]) * np.exp(1j * position * theta ** (-np.arange(half) / half))
        return np.concatenate([z.real, z.imag])

    def normed(v, name):
        if name not in p:
            return v
        return v / np.sqrt((v**2).mean() + eps) * p[name]["scale"]

    def sees(b, t, s):
        if source is not None:
            return True
        behind = positions[b, t] - positions[b, s]
        near = behind >= 0 and (cfg.window is None or behind < cfg.window)
        one = segments[b, s] == segments[b, t] and segments[b, s] > 0
        return one and (near or not cfg.causal)

    for b, t, k, q in np.ndindex(batch, length, cfg.kv_heads, cfg.q_per_kv):
        query = x[b, t] @ p["query"]["kernel"][:, k, q] + p["query"]["bias"][k, q]
        query = turned(normed(query, "query_norm"), positions[b, t])
        scores, mixed = [], []
        for s in range(keys.shape[1]):
            if not sees(b, t, s):
                continue
            key = keys[b, s] @ p["key"]["kernel"][:, k] + p["key"]["bias"][k]
            key = normed(key, "key_norm")
            key = key if source is not None else turned(key, positions[b, s])
            score = query @ key * (cfg.scale or 1 / math.sqrt(cfg.head_dim))
            scores.append(cfg.softcap * math.tanh(score / cfg.softcap) if cfg.softcap else score)
            mixed.append(values[b, s] @ p["value"]["kernel"][:, k] + p["value"]["bias"][k])
        if scores:
            weights = np.exp(np.array(scores) - max(scores))
            out[b, t] += (weights / weights.sum()) @ np.array(mixed) @ p["out"]["kernel"][k, q]
    return out + p["out"]["bias"]


BIASED = AttentionConfig(2, 2, 4, True, True, True, True)
FORMS = {
    "causal": {},
    "qk-norm": {"qk_norm": True},
    "window": {"window": 2},
    "window-of-one": {"window": 1},
    "full": {"causal": False, "rotary": False},
    "capped": {"softcap": 1.5, "scale": 0.8},
}


@pytest.mark.parametrize("form", FORMS)
def test_attention_equals_loops_with_segments_padding_and_restarting_positions(form):
    cfg = dataclasses.replace(BIASED, **FORMS[form])
    params, x = randomized(attention_spec(6, cfg)), normal(2, 5, 6)
    segments = np.array([[1, 1, 1, 2, 2], [0, 0, 1, 1, 1]])
    positions = np.array([[0, 1, 2, 0, 1], [0, 0, 0, 1, 2]])
    mask = visible(
        *map(jnp.asarray, (segments, positions, segments, positions)),
        causal=cfg.causal,
        window=cfg.window,
    )
    turn = rotation(jnp.asarray(positions), 4, RopeConfig(100.0)) if cfg.rotary else None
    got, _ = attention(params, jnp.asarray(x), turn, mask, cfg=cfg, eps=1e-5)
    want = naive_attention(params, x, segments, positions, cfg, 100.0, 1e-5)
    real = segments > 0
    np.testing.assert_allclose(np.asarray(got)[real], want[real], atol=1e-5)
    assert np.isfinite(got).all()


@pytest.mark.parametrize("form", ["causal", "window", "full"])
def test_no_mask_is_one_document_a_row(form):
    cfg = dataclasses.replace(BIASED, **FORMS[form])
    params, x = randomized(attention_spec(6, cfg)), normal(1, 5, 6)
    positions = np.arange(5)[None]
    turn = rotation(jnp.asarray(positions), 4, RopeConfig(100.0)) if cfg.rotary else None
    got, _ = attention(params, jnp.asarray(x), turn, None, cfg=cfg, eps=1e-5)
    want = naive_attention(params, x, np.ones((1, 5)), positions, cfg, 100.0, 1e-5)
    np.testing.assert_allclose(got, want, atol=1e-5)


def test_positions_do_not_rotate_where_the_layer_says_so():
    cfg = dataclasses.replace(BIASED, rotary=False)
    params, x = randomized(attention_spec(6, cfg)), jnp.asarray(normal(1, 4, 6))
    turn = rotation(jnp.arange(4)[None], 4, RopeConfig(100.0))
    still, _ = attention(params, x, None, None, cfg=cfg, eps=1e-5)
    found, _ = attention(params, x, turn, None, cfg=cfg, eps=1e-5)
    np.testing.assert_array_equal(found, still)
    turned, _ = attention(params, x, turn, None, cfg=BIASED, eps=1e-5)
    assert np.abs(turned - still).max() > 1e-2


def test_another_sequence_is_seen_whole_and_its_keys_are_not_rotated():
    params, x = randomized(attention_spec(6, BIASED)), normal(2, 3, 6)
    source, positions = (normal(2, 5, 6, seed=1), normal(2, 5, 6, seed=2)), np.arange(3)[None]
    turn = rotation(jnp.broadcast_to(positions, (2, 3)), 4, RopeConfig(100.0))
    there = Source(*map(jnp.asarray, source))
    got, _ = attention(params, jnp.asarray(x), turn, None, cfg=BIASED, eps=1e-5, source=there)
    want = naive_attention(
        params, x, None, positions.repeat(2, 0), BIASED, 100.0, 1e-5, source=source
    )
    np.testing.assert_allclose(got, want, atol=1e-5)
    mask = jnp.ones((2, 3, 5), bool).at[:, :, 3:].set(False)
    part = Source(there.key[:, :3], there.value[:, :3])
    masked, _ = attention(params, jnp.asarray(x), turn, mask, cfg=BIASED, eps=1e-5, source=there)
    alone, _ = attention(params, jnp.asarray(x), turn, None, cfg=BIASED, eps=1e-5, source=part)
    np.testing.assert_allclose(masked, alone, atol=1e-6)


@pytest.mark.long(but=1)
@pytest.mark.parametrize(
    "cfg",
    [
        MoEConfig(8, 4, 1, 3, shared_width=5, router_scale=True),
        MoEConfig(8, 2, 2, 3, router_scale=True),
        MoEConfig(8, 1, 3, 3, renormalize=True),
    ],
    ids=["grouped", "two-a-group", "top-k"],
)
def test_moe_equals_a_loop_over_tokens_and_experts(cfg):
    params, x = randomized(moe_spec(6, cfg), seed=1), normal(2, 4, 6)
    mask = np.array([[1, 1, 1, 0], [1, 1, 1, 1]], bool)
    got, stats = moe(params, jnp.asarray(x), jnp.asarray(mask), cfg=cfg)

    p = jax.tree.map(lambda a: np.asarray(a, np.float64), params)
    size = cfg.experts // cfg.groups
    kernel = {n: v["kernel"].reshape(cfg.experts, *v["kernel"].shape[2:])
              for n, v in p["experts"].items()}  # fmt: skip
    scale = p["router"].get("scale", np.ones((cfg.groups, size))).reshape(-1)
    want, load, prob_sum = np.zeros((2, 4, 6)), np.zeros(cfg.experts), np.zeros(cfg.experts)
    for b in range(2):
        for t in range(4):
            z = x[b, t] @ p["router"]["kernel"].reshape(6, -1)
            probs = np.exp(z - z.max()) / np.exp(z - z.max()).sum()
            chosen = []
            for g in range(cfg.groups):
                members = range(g * size, (g + 1) * size)
                chosen += sorted(members, key=lambda e, probs=probs: -probs[e])[: cfg.top_k]
            assert sorted(np.asarray(stats.ids)[b, t].reshape(-1)) == sorted(chosen)
            total = sum(probs[e] for e in chosen) if cfg.renormalize else 1.0
            for e in chosen:
                hidden = silu(x[b, t] @ kernel["gate"][e]) * (x[b, t] @ kernel["up"][e])
                want[b, t] += probs[e] / total * scale[e] * (hidden @ kernel["down"][e])
                load[e] += mask[b, t]
            prob_sum += probs * mask[b, t]
            if cfg.shared_width:
                shared = {n: v["kernel"] for n, v in p["shared"].items()}
                hidden = silu(x[b, t] @ shared["gate"]) * (x[b, t] @ shared["up"])
                want[b, t] += hidden @ shared["down"]
    np.testing.assert_allclose(got, want, atol=2e-5)
    np.testing.assert_array_equal(np.asarray(stats.load).reshape(-1), load)
    np.testing.assert_allclose(np.asarray(stats.prob_sum).reshape(-1), prob_sum, atol=1e-5)
    assert float(stats.tokens) == mask.sum()


def test_at_the_start_the_weights_of_an_undecided_router_sum_to_one():
    cfg = MoEConfig(12, 2, 3, 4, router_scale=True)
    router = init(moe_spec(6, cfg)["router"], key=jax.random.key(0))
    still = jnp.zeros_like(router["kernel"])
    weights, _, _ = router_weights(jnp.asarray(normal(4, 6)), still, router["scale"], k=3)
    np.testing.assert_allclose(weights.sum((1, 2)), 1, rtol=1e-6)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: MoEConfig(8, 3, 1, 4), "groups 3 must divide the 8 experts"),
        (lambda: MoEConfig(8, 4, 3, 4), "top_k 3 exceeds the 2 experts per group"),
        (lambda: MoEConfig(8, 4, 1, 0), "width must be at least 1"),
        (lambda: AttentionConfig(2, 2, 5), "head_dim must be even"),
        (lambda: AttentionConfig(0, 2, 4), "kv_heads must be at least 1"),
        (lambda: AttentionConfig(2, 2, 4, window=0), "window must be at least 1"),
        (lambda: AttentionConfig(2, 2, 4, window=3, causal=False), "needs causal attention"),
        (lambda: AttentionConfig(2, 2, 4, softcap=0.0), "softcap must be positive"),
        (lambda: AttentionConfig(2, 2, 4, scale=math.inf), "scale must be positive and finite"),
        (lambda: MlpConfig(0), "width must be at least 1"),
    ],
)
def test_a_configuration_that_cannot_be_is_refused(make, words):
    with pytest.raises(InputError, match=words):
        make()


def test_weights_are_renormalized_only_where_it_is_asked_for():
    assert not MoEConfig(experts=8, groups=4, top_k=1, width=3).renormalize
