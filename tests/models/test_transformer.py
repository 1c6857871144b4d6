"""Layers on embeddings: dropout's keys, windows through segments and a cache, what is refused."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pangu_jax.core.errors import InputError
from pangu_jax.core.spec import is_spec
from pangu_jax.models import decoder, transformer
from pangu_jax.models.decoder import DecoderConfig
from pangu_jax.nn.attention import AttentionConfig
from pangu_jax.nn.block import LayerConfig
from pangu_jax.nn.how import How
from pangu_jax.nn.mlp import MlpConfig

HEADS = AttentionConfig(2, 1, 4)
LAYER = LayerConfig(HEADS, mlp=MlpConfig(6))


def model(cfg, seed=0):
    rng = np.random.default_rng(seed)
    return jax.tree.map(
        lambda s: jnp.asarray(rng.normal(size=s.shape) * 0.5, jnp.float32),
        transformer.spec(cfg),
        is_leaf=is_spec,
    )


@partial(jax.jit, static_argnames="cfg")
def hidden(params, x, cfg, **options):
    """The states of a model; op by op its programs would be a hundred, each compiled."""
    return transformer.apply(params, x, cfg=cfg, **options).hidden


def test_every_layer_of_every_run_drops_other_units():
    """Each layer adds 1 to every unit that it does not drop, so units say how often they stayed."""
    one = LayerConfig(HEADS, mlp=MlpConfig(6, out_bias=True), dropout=0.5)
    other = dataclasses.replace(one, mlp=MlpConfig(5, out_bias=True))
    cfg = DecoderConfig(8, 256, (one, other, other))
    params = jax.tree.map(
        lambda s: np.zeros(s.shape, np.float32), transformer.spec(cfg), is_leaf=is_spec
    )
    params["norm"]["scale"] += 1
    for run in params["runs"]:
        run["mlp"]["down"]["bias"] += 1
    x = np.zeros((1, 2, 256), np.float32)
    first, second = np.asarray(hidden(params, x, cfg, key=jax.random.key(0)))[0]
    step = np.unique(first[first > 0]).min()
    counts = np.round(first / step).astype(int)
    np.testing.assert_allclose(first, counts * step, rtol=1e-5)
    assert set(counts) == {0, 1, 2, 3}
    assert 0.05 < (counts == 0).mean() < 0.25 > (counts == 3).mean() > 0.05  # an eighth each
    assert not np.array_equal(first, second)
    assert not np.array_equal(
        first, np.asarray(hidden(params, x, cfg, key=jax.random.key(1)))[0, 0]
    )
    np.testing.assert_allclose(hidden(params, x, cfg), np.ones_like(x), rtol=1e-4)


@pytest.mark.long(but=1)
@pytest.mark.parametrize("window", [None, 1, 3])
def test_a_window_counts_positions_within_segments_and_in_a_cache(window):
    heads = dataclasses.replace(HEADS, window=window)
    cfg = DecoderConfig(8, 8, (dataclasses.replace(LAYER, attention=heads), LAYER))
    params, x = model(cfg), np.random.default_rng(1).normal(size=(2, 7, 8)).astype("f4")
    alone = np.asarray(hidden(params, x, cfg))
    packed = x.reshape(1, 14, 8)
    positions = np.tile(np.arange(7), 2)[None]
    segments = np.repeat([1, 2], 7)[None]
    found = np.asarray(hidden(params, packed, cfg, positions=positions, segments=segments))
    np.testing.assert_allclose(found.reshape(2, 7, 8), alone, atol=1e-5)
    # As a decoder whose embeddings are x, and whose scores are the hidden states.
    ids = np.arange(14, dtype=np.int32).reshape(2, 7)
    whole = transformer.by_layer(params) | {
        "embed": {"table": x.reshape(14, 8)}, "head": {"kernel": np.eye(8, dtype="f4")}
    }  # fmt: skip
    caches = [{n: np.zeros((2, 9, 2, 4), "f4") for n in ("key", "value")} for _ in cfg.layers]
    step = jax.jit(partial(decoder.step, cfg=cfg))
    for i in range(7):
        scores, caches = step(whole, ids[:, i], np.full(2, i, np.int32), caches)
        np.testing.assert_allclose(scores, alone[:, i], atol=1e-5)
    far = x.copy()
    far[:, 0] += 1  # what no layer sees any more changes nothing
    moved = np.asarray(hidden(params, far, cfg)) - alone
    assert (np.abs(moved).max((0, 2)) > 1e-6).all()  # the second layer sees all
    narrow = DecoderConfig(8, 8, (cfg.layers[0],))
    moved, still = (np.asarray(hidden(model(narrow), seen, narrow)) for seen in (far, x))
    reached = np.abs(moved - still).max((0, 2)) > 1e-7
    assert reached.tolist() == [i < (window or 7) for i in range(7)]


def test_activations_have_the_type_of_the_embeddings():
    cfg = DecoderConfig(8, 8, (LAYER,))
    x = jax.ShapeDtypeStruct((1, 3, 8), jnp.bfloat16)
    out = jax.eval_shape(partial(transformer.apply, cfg=cfg, how=How()), model(cfg), x)
    assert out.hidden.dtype == jnp.bfloat16


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"layers": ()}, "decoder layers must be at least one"),
        ({"width": 0}, "decoder width must be at least 1"),
        ({"norm_eps": 0.0}, r"decoder norm_eps must be in \(0, 1\)"),
        (
            {"layers": (LAYER, dataclasses.replace(LAYER, norm_place="post"))},
            "must all have norm_place post, or none",
        ),
        (
            {"layers": (LayerConfig(dataclasses.replace(HEADS, causal=False), MlpConfig(6)),)},
            "decoder layers must be causal",
        ),
        ({"embed_scale": 0.0}, "embed_scale must be positive"),
    ],
)
def test_a_model_that_cannot_be_is_refused(options, words):
    with pytest.raises(InputError, match=words):
        DecoderConfig(**{"vocab": 8, "width": 8, "layers": (LAYER,), **options})
