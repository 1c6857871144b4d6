"""The encoder beside torch's results and beside loops in numpy; pooling by its rules."""

import functools
import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pangu_jax.core import spec as specs
from pangu_jax.core.config import from_json, to_json
from pangu_jax.core.errors import InputError
from pangu_jax.core.tree import flatten
from pangu_jax.models import encoder
from pangu_jax.nn.attention import AttentionConfig
from pangu_jax.nn.block import LayerConfig
from pangu_jax.nn.mlp import MlpConfig

LAYER = encoder.bert_layer(2, 3, 10, "gelu")
CFG = encoder.EncoderConfig(
    11, 8, (LAYER,) * 2, 7, norm_eps=1e-3, pooling="mean", pooler=True, classes=3
)
LENGTHS = np.array([7, 3, 1])
VALID = np.arange(7) < LENGTHS[:, None]
TOKENS = np.random.default_rng(0).integers(0, 11, (3, 7)).astype(np.int32)
TYPES = (np.arange(7) >= np.array([[4], [1], [9]])).astype(np.int32)


@functools.cache
def params():
    rng = np.random.default_rng(1)

    def leaf(path, s):  # so that every leaf matters
        name = jax.tree_util.keystr(path)
        values = rng.normal(size=s.shape) * (0.5 if "kernel" in name or "table" in name else 0.2)
        return jnp.asarray(values + ("scale" in name), jnp.float32)

    return jax.tree_util.tree_map_with_path(leaf, encoder.spec(CFG), is_leaf=specs.is_spec)


@functools.cache
def run():
    """Hidden states, vectors, and scores, of one compiled function for all tests."""

    @jax.jit
    def function(params, tokens, valid, types):
        hidden = encoder.apply(params, tokens, valid, cfg=CFG, token_types=types).hidden
        vectors = encoder.vectors(hidden, valid, cfg=CFG)
        return hidden, vectors, encoder.scores(params, hidden, valid)

    return function


def norm(x, weights, layer=None):
    scale, bias = (np.asarray(weights[n], np.float64) for n in ("scale", "bias"))
    scale, bias = (scale, bias) if layer is None else (scale[layer], bias[layer])
    return (x - x.mean()) / np.sqrt(x.var() + CFG.norm_eps) * scale + bias


def gelu(x):
    return x * 0.5 * (1 + math.erf(x / math.sqrt(2)))


def by_loops(tokens, types):
    """One text without padding: its hidden states, one token and one head at a time."""
    tree = jax.tree.map(lambda x: np.asarray(x, np.float64), params())
    x = [
        norm(
            tree["embed"]["table"][t]
            + tree["positions"]["table"][at]
            + tree["token_types"]["table"][kind],
            tree["embed_norm"],
        )
        for at, (t, kind) in enumerate(zip(tokens, types, strict=True))
    ]
    run, heads = tree["runs"][0], LAYER.attention
    for layer in range(2):
        part = {n: {k: v[layer] for k, v in w.items()} for n, w in run["attention"].items()}
        mixed = [np.zeros((heads.kv_heads, heads.head_dim)) for _ in x]
        for head in range(heads.kv_heads):
            q = [
                t @ part["query"]["kernel"][:, head, 0] + part["query"]["bias"][head, 0] for t in x
            ]
            k = [t @ part["key"]["kernel"][:, head] + part["key"]["bias"][head] for t in x]
            v = [t @ part["value"]["kernel"][:, head] + part["value"]["bias"][head] for t in x]
            for t, query in enumerate(q):
                weights = np.exp([query @ key / math.sqrt(heads.head_dim) for key in k])
                mixed[t][head] = sum(w * y for w, y in zip(weights / weights.sum(), v, strict=True))
        out = part["out"]["kernel"][:, 0], part["out"]["bias"]
        x = [
            norm(t + sum(m[h] @ out[0][h] for h in range(2)) + out[1], run["attention_norm"], layer)
            for t, m in zip(x, mixed, strict=True)
        ]
        mlp = {n: {k: v[layer] for k, v in w.items()} for n, w in run["mlp"].items()}
        for at, t in enumerate(x):
            units = [gelu(u) for u in t @ mlp["up"]["kernel"] + mlp["up"]["bias"]]
            down = np.array(units) @ mlp["down"]["kernel"] + mlp["down"]["bias"]
            x[at] = norm(t + down, run["mlp_norm"], layer)
    pooled = np.tanh(x[0] @ tree["pooler"]["kernel"] + tree["pooler"]["bias"])
    scores = pooled @ tree["classifier"]["kernel"] + tree["classifier"]["bias"]
    return np.array(x), scores


def test_everything_is_as_by_loops_whatever_the_padding():
    hidden, vectors, scores = map(np.asarray, run()(params(), TOKENS, VALID, TYPES))
    for row, length in enumerate(LENGTHS):
        want, score = by_loops(TOKENS[row, :length], TYPES[row, :length])
        np.testing.assert_allclose(hidden[row, :length], want, atol=2e-5)
        np.testing.assert_allclose(vectors[row], want.mean(0), atol=2e-5)
        np.testing.assert_allclose(scores[row], score, atol=2e-5)
    assert vectors.dtype == scores.dtype == np.float32
    other = np.where(VALID, TOKENS, 3)
    again = run()(params(), other, VALID, TYPES)
    np.testing.assert_array_equal(again[1], vectors)
    np.testing.assert_array_equal(again[2], scores)


def test_no_padding_and_no_types_are_the_plain_case():
    whole, zeros = np.ones_like(VALID), np.zeros_like(TYPES)
    want = run()(params(), TOKENS, whole, zeros)
    found = jax.jit(lambda p, t: encoder.apply(p, t, cfg=CFG).hidden)(params(), TOKENS)
    np.testing.assert_allclose(found, want[0], atol=1e-5)


def test_every_leaf_and_every_order_of_tokens_matters():
    tokens = np.arange(21, dtype=np.int32).reshape(3, 7) % 11
    want = run()(params(), tokens, VALID, TYPES)
    leaves, tree = jax.tree.flatten(jax.tree.map(np.asarray, params()))
    for at, name in enumerate(flatten(params())):
        moved = [x + np.float32(i == at) / 2 * np.roll(x, 1, -1) for i, x in enumerate(leaves)]
        found = run()(jax.tree.unflatten(tree, moved), tokens, VALID, TYPES)
        if "key/bias" not in name:  # which no softmax sees
            assert any(float(jnp.abs(a - b).max()) > 1e-3 for a, b in zip(found, want, strict=True))
    swapped = tokens[:, [1, 0, 2, 3, 4, 5, 6]]
    assert float(jnp.abs(run()(params(), swapped, VALID, TYPES)[1] - want[1]).max()) > 1e-3


HIDDEN = -np.arange(1.0, 13).reshape(2, 3, 2)  # all negative, so that a zero of padding would win
RIGHT, LEFT = np.array([[1, 1, 0], [1, 0, 0]], bool), np.array([[0, 1, 1], [0, 0, 1]], bool)


@pytest.mark.parametrize(
    ("kind", "valid", "want"),
    [
        ("mean", RIGHT, [[-2, -3], [-7, -8]]),
        ("mean", LEFT, [[-4, -5], [-11, -12]]),
        ("weighted", RIGHT, [[-7 / 3, -10 / 3], [-7, -8]]),
        ("weighted", LEFT, [[-13 / 3, -16 / 3], [-11, -12]]),
        ("max", RIGHT, [[-1, -2], [-7, -8]]),
        ("max", LEFT, [[-3, -4], [-11, -12]]),
        ("cls", RIGHT, [[-1, -2], [-7, -8]]),
        ("cls", LEFT, [[-3, -4], [-11, -12]]),
        ("last", RIGHT, [[-3, -4], [-7, -8]]),
        ("last", LEFT, [[-5, -6], [-11, -12]]),
        ("last", np.ones((2, 3), bool), [[-5, -6], [-11, -12]]),
    ],
)
def test_pooling_counts_no_padding(kind, valid, want):
    hidden = np.where(valid[..., None], HIDDEN, np.nan)  # nor does what padding holds matter
    for dtype in (jnp.float32, jnp.bfloat16):
        found = encoder.pool(jnp.asarray(hidden, dtype), jnp.asarray(valid), kind)
        assert found.dtype == jnp.float32
        np.testing.assert_allclose(found, want, rtol=1e-6)
    nothing = encoder.pool(jnp.asarray(HIDDEN), jnp.zeros((2, 3), bool), kind)
    assert np.isfinite(nothing).all()


def test_normalized_vectors():
    cfg = encoder.EncoderConfig(11, 2, (LAYER,), pooling="cls", normalize=True)
    found = encoder.vectors(jnp.asarray([[[3.0, 4.0]], [[0.0, 0.0]]]), None, cfg=cfg)
    np.testing.assert_allclose(found, [[0.6, 0.8], [0, 0]], rtol=1e-6)


def test_the_configuration_goes_through_json():
    assert from_json(encoder.EncoderConfig, json.loads(json.dumps(to_json(CFG)))) == CFG


CAUSAL = LayerConfig(AttentionConfig(2, 1, 4, rotary=False), mlp=MlpConfig(8))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"layers": (CAUSAL,)}, "neither causal nor rotary"),
        ({"layers": ()}, "encoder layers must be at least one"),
        ({"classes": 2}, "classes are scored on its pooler, which it lacks"),
        ({"classes": -1}, "encoder classes must be at least 0"),
        ({"text_length": 9}, "encoder text_length must be at most 8, got 9"),
        ({"token_types": 0}, "encoder token_types must be at least 1"),
        ({"norm_eps": 0.0}, r"encoder norm_eps must be in \(0, 1\)"),
    ],
)
def test_what_no_encoder_has(options, said):
    with pytest.raises(InputError, match=said):
        encoder.EncoderConfig(
            **{"vocab": 9, "width": 8, "layers": (LAYER,), "max_length": 8} | options
        )


def test_what_cannot_be_asked():
    plain = encoder.EncoderConfig(11, 8, (LAYER,), 4)
    with pytest.raises(InputError, match="rows of 7 tokens, the encoder has 4 positions"):
        encoder.apply(params(), TOKENS, cfg=plain)
    with pytest.raises(InputError, match="pooling is not known; it must be cls, mean, weighted"):
        encoder.vectors(jnp.zeros((1, 1, 8)), None, cfg=plain)
    with pytest.raises(InputError, match="the encoder has no classes"):
        encoder.classify(params(), TOKENS, cfg=plain)
