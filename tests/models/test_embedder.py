"""Vectors by a decoder, beside its own states and rules written out; both ways over windows."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pangu_jax.core import spec as specs
from pangu_jax.core.errors import InputError
from pangu_jax.models import decoder, embedder, registry
from pangu_jax.nn.attention import AttentionConfig
from pangu_jax.nn.block import LayerConfig
from pangu_jax.nn.latent_attention import LatentAttentionConfig
from pangu_jax.nn.mlp import MlpConfig

HEADS = AttentionConfig(1, 2, 4)
LAYER = LayerConfig(HEADS, mlp=MlpConfig(10))
NARROW = dataclasses.replace(LAYER, attention=dataclasses.replace(HEADS, window=2))
DECODER = decoder.DecoderConfig(13, 8, (LAYER, NARROW, LAYER), max_length=16)
PLAIN = dataclasses.replace(DECODER, layers=(LAYER, LAYER))
TOKENS = np.random.default_rng(0).integers(0, 13, (2, 7)).astype(np.int32)
SIZES = np.array([7, 4])
VALID = np.arange(7) < SIZES[:, None]


def drawn(cfg):
    rng = np.random.default_rng(1)
    return jax.tree.map(
        lambda s: jnp.asarray(rng.normal(size=s.shape) * 0.5, jnp.float32),
        registry.spec(cfg),
        is_leaf=specs.is_spec,
    )


def test_states_are_the_decoders_and_pooled_by_the_rule():
    params = drawn(PLAIN)
    rest, cfg = embedder.from_decoder(params, PLAIN)
    assert "head" not in rest
    states = VALID & (np.arange(7) >= 2)
    weighted = dataclasses.replace(cfg, pooling="weighted")

    @jax.jit
    def run(params, rest):
        hidden = decoder.apply(params, TOKENS, cfg=PLAIN).hidden
        return hidden, embedder.embed(rest, TOKENS, VALID, cfg=weighted, states=states)

    hidden, found = run(params, rest)
    for row, size in enumerate(SIZES):
        own = np.asarray(hidden[row, 2:size], np.float64)
        weights = np.arange(1, len(own) + 1)
        np.testing.assert_allclose(found[row], weights @ own / weights.sum(), atol=2e-5)
    with pytest.raises(InputError, match="pooling is not known"):
        embedder.embed(rest, TOKENS, cfg=cfg)


def test_both_ways_has_no_window_and_fewer_runs():
    params, cfg = embedder.from_decoder(drawn(DECODER), DECODER)
    open_to_all, seeing = embedder.bidirectional(params, cfg)
    assert len(params["runs"]) == 3 and len(open_to_all["runs"]) == 1
    specs.check(embedder.spec(seeing), open_to_all)
    run = jax.jit(partial(embedder.apply, cfg=seeing))
    want = run(open_to_all, TOKENS, VALID).hidden
    late = TOKENS.copy()
    late[0, -1] = (late[0, -1] + 1) % 13
    assert (np.abs(run(open_to_all, late, VALID).hidden - want).max(-1)[0] > 1e-4).all()
    alone = run(open_to_all, TOKENS[1:, :4]).hidden
    np.testing.assert_allclose(want[1, :4], alone[0], atol=1e-5)
    padded = np.where(VALID, TOKENS, 12)
    np.testing.assert_array_equal(run(open_to_all, padded, VALID).hidden[1, :4], want[1, :4])


def test_descriptions():
    cfg = embedder.EmbedderConfig(
        dataclasses.replace(DECODER, tied=True),
        latent=LatentAttentionConfig(3, 2, 4, 6),
        text_length=9,
    )
    assert registry.from_json(registry.to_json(cfg)) == cfg
    with pytest.raises(InputError, match="an embedder's decoder must be tied"):
        embedder.EmbedderConfig(DECODER)
    with pytest.raises(InputError, match="text_length must be at most 16"):
        dataclasses.replace(cfg, text_length=17)
    with pytest.raises(InputError, match="latent units must be at least 1"):
        LatentAttentionConfig(3, 2, 4, 0)
