"""The experts that a model chooses: of every token that is one, layer by layer."""

import types

import jax.numpy as jnp
import numpy as np
import pytest

from pangu_jax.core.errors import InputError
from pangu_jax.eval.routing import chosen_experts
from pangu_jax.models import decoder
from pangu_jax.nn.attention import AttentionConfig
from pangu_jax.nn.block import LayerConfig
from pangu_jax.nn.mlp import MlpConfig
from pangu_jax.nn.moe import MoEConfig

HEADS = AttentionConfig(2, 1, 4)
DENSE = LayerConfig(HEADS, mlp=MlpConfig(8))
ROUTED = LayerConfig(HEADS, moe=MoEConfig(8, 2, 2, 4))


def chosen(token, position, layer):
    return [[token, position], [layer, token + layer]]


def test_padding_chooses_nothing_and_batches_follow_one_another(monkeypatch):
    """A model whose experts tell token, position and layer."""

    def apply(params, tokens, *, positions, **options):
        first = jnp.stack([tokens, positions], -1)
        ids = [jnp.stack([first, jnp.stack([0 * tokens + i, tokens + i], -1)], 2) for i in (0, 1)]
        routed = types.SimpleNamespace(ids=jnp.stack(ids))
        return types.SimpleNamespace(router=[None, routed])

    monkeypatch.setattr(decoder, "apply", apply)
    rng, want, batches = np.random.default_rng(0), ([], []), []
    for lengths in ((6, 4), (3, 6)):
        tokens = rng.integers(0, 16, (2, 6)).astype(np.int32)
        positions = np.tile(np.arange(6, dtype=np.int32), (2, 1))
        segments = (positions < np.array(lengths)[:, None]).astype(np.int32)
        batches.append({"tokens": tokens, "segments": segments, "positions": positions})
        for row, length in zip(tokens, lengths, strict=True):
            for layer in (0, 1):
                want[layer].extend(chosen(row[i], i, layer) for i in range(length))
    cfg = decoder.DecoderConfig(16, 8, (DENSE, ROUTED, ROUTED))
    found = chosen_experts({}, batches, cfg=cfg)
    assert len(found) == 2
    for layer in (0, 1):
        np.testing.assert_array_equal(found[layer], np.reshape(want[layer], (19, 4)))
    with pytest.raises(InputError, match="no routed layer"):
        chosen_experts({}, [], cfg=decoder.DecoderConfig(16, 8, (DENSE,)))
