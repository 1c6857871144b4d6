"""Live against transformers, on fresh decoders: pooling written out there, both kinds of attention.

By `make parity`.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pangu_jax.checkpoint import hf
from pangu_jax.models import embedder

pytestmark = pytest.mark.parity


@pytest.fixture(scope="module")
def tool(golden_tool):
    return golden_tool("make_golden")


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("case", ["llama2", "mistral", "qwen3"])
def test_fresh_decoders(case, causal, tool, tmp_path):
    import torch

    model, dtype = tool.build(case, seed=3)
    tool.save(case, model, tmp_path, dtype)
    model, _ = tool.build(case, seed=3)  # saving rounds the rotary frequencies
    model.config.is_causal = causal
    if not causal:
        model.config.sliding_window = None  # as GritLM's own code, which has none then
    sizes = [24, 9]
    tokens = tool.sample(model, seed=3)
    params, cfg = embedder.from_decoder(*hf.load(tmp_path, dtype=jnp.float32))
    if not causal:
        params, cfg = embedder.bidirectional(params, cfg)
    valid = np.arange(24) < np.array(sizes)[:, None]
    states = valid & (np.arange(24) >= 4)
    poolings = ("last", "mean", "weighted")

    @jax.jit
    def run(params, tokens):  # `embed`, with one pass for all
        hidden = embedder.apply(params, tokens, valid, cfg=cfg).hidden
        asked = (dataclasses.replace(cfg, pooling=p, normalize=True) for p in poolings)
        return [embedder.pooled(hidden, states, cfg=one) for one in asked]

    vectors = run(params, tokens.numpy().astype(np.int32))
    for pooling, found in zip(poolings, vectors, strict=True):
        for row, size in enumerate(sizes):  # alone, so without padding
            with torch.no_grad():
                hidden = model.model(tokens[row : row + 1, :size]).last_hidden_state[0, 4:]
            weights = {"last": torch.arange(size - 4) == size - 5, "mean": torch.ones(size - 4),
                       "weighted": torch.arange(size - 4) + 1.0}[pooling].float()  # fmt: skip
            want = torch.nn.functional.normalize(weights @ hidden, dim=0)
            np.testing.assert_allclose(found[row], want, atol=2e-6)
