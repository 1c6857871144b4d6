"""Small random decoders in which every weight, bias and gain matters."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pangu_jax.core.spec import is_spec
from pangu_jax.models import decoder
from pangu_jax.nn.attention import AttentionConfig
from pangu_jax.nn.block import LayerConfig
from pangu_jax.nn.mlp import MlpConfig


@partial(jax.jit, static_argnames="cfg")
def _logits(params, tokens, *, cfg):
    return decoder.logits(params, decoder.apply(params, tokens, cfg=cfg).hidden, cfg=cfg)


@dataclasses.dataclass(frozen=True)
class Small:
    """A model, tokens, and its logits as float64 arrays."""

    params: dict
    cfg: decoder.DecoderConfig
    tokens: np.ndarray

    def logits(self, params=None, cfg=None):
        params, cfg = params or self.params, cfg or self.cfg
        return np.asarray(_logits(params, jnp.asarray(self.tokens[:2]), cfg=cfg), np.float64)


def make(
    *,
    groups=4,
    heads=2,
    size=4,
    ffn=12,
    width=16,
    layers=2,
    seed=0,
    dtype=np.float32,
    sandwich=False,
    rows=8,
    length=12,
    tied=False,
    **flags,
):
    """A random model; flags are those of `AttentionConfig`."""
    layer = LayerConfig(
        AttentionConfig(groups, heads, size, **flags),
        mlp=MlpConfig(ffn),
        norm_place="sandwich" if sandwich else "pre",
    )
    cfg = decoder.DecoderConfig(24, width, (layer,) * layers, max_length=64, tied=tied)
    rng = np.random.default_rng(seed)

    def draw(spec):
        value = rng.normal(size=spec.shape)
        if len(spec.shape) - (spec.axes[0] == "layers") == 1:
            value = 1 + 0.3 * value if spec.axes[-1] in ("embed", "head_dim") else 0.2 * value
        else:
            value = value * (1.0 if "vocab" in spec.axes else 0.3)
        return jnp.asarray(value.astype(dtype))

    params = jax.tree.map(draw, decoder.spec(cfg), is_leaf=is_spec)
    return Small(params, cfg, rng.integers(0, 24, (rows, length)).astype(np.int32))


@pytest.fixture(scope="session")
def model():
    """`make`, for tests that take it as an argument."""
    return make
