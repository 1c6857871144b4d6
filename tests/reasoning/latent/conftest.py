"""One tiny decoder, and rows of several lengths, for all tests of latent methods."""

import dataclasses
import importlib.util
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pangu_jax.core.spec import is_spec
from pangu_jax.models import decoder
from pangu_jax.nn.attention import AttentionConfig
from pangu_jax.nn.block import LayerConfig
from pangu_jax.nn.mlp import MlpConfig
from pangu_jax.reasoning.latent.slots import Encoded, Markers


@pytest.fixture(scope="session")
def model():
    """Two layers, the second with a window that thoughts and tail look back over."""
    layers = tuple(
        LayerConfig(AttentionConfig(1, 2, 4, window=window), mlp=MlpConfig(8))
        for window in (None, 4)
    )
    cfg = decoder.DecoderConfig(16, 8, layers, max_length=64)
    rng = np.random.default_rng(0)
    params = jax.tree.map(
        lambda s: jnp.asarray(rng.normal(size=s.shape) * (s.shape[-1] ** -0.25), jnp.float32),
        decoder.spec(cfg),
        is_leaf=is_spec,
    )
    return params, cfg


@pytest.fixture(scope="session")
def open_model(model):
    """The same parameters without a window: one run of two layers."""
    params, cfg = model
    heads = [dataclasses.replace(layer.attention, window=None) for layer in cfg.layers]
    pairs = zip(cfg.layers, heads, strict=True)
    layers = tuple(dataclasses.replace(layer, attention=own) for layer, own in pairs)
    run = jax.tree.map(lambda *rows: jnp.concatenate(rows), *params["runs"])
    return {**params, "runs": [run]}, dataclasses.replace(cfg, layers=layers)


@pytest.fixture(scope="session")
def markers():
    return Markers(begin=10, end=11, pause=12, answer=13, stop=14, boundary=15)


@pytest.fixture(scope="session")
def problems():
    return [
        Encoded((1, 2, 3), ((4, 5), (6,)), (7,)),
        Encoded((3,), ((5,), (6, 7), (8,)), (1, 2)),
        Encoded((9, 8, 7, 1, 2), ((4, 4, 4),), (3,)),
    ]


@pytest.fixture(scope="session")
def naive():
    """The module of that name."""
    spec = importlib.util.spec_from_file_location("naive", Path(__file__).with_name("naive.py"))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
