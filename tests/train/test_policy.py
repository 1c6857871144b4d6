"""What the policy loss hands on to log-probabilities."""

import types

import jax
import numpy as np
import pytest

from pangu_jax.losses.policy import GRPO
from pangu_jax.models import decoder
from pangu_jax.nn.attention import AttentionConfig
from pangu_jax.nn.block import LayerConfig
from pangu_jax.nn.mlp import MlpConfig
from pangu_jax.train.policy import answer_loss

MODEL = decoder.DecoderConfig(5, 4, (LayerConfig(AttentionConfig(2, 1, 2), mlp=MlpConfig(4)),))


def test_tokens_have_the_chances_that_they_were_sampled_with(monkeypatch):
    rng = np.random.default_rng(0)
    hidden, kernel = rng.normal(size=(1, 3, 4)), rng.normal(size=(4, 5))
    monkeypatch.setattr(
        decoder, "apply", lambda *_, **__: types.SimpleNamespace(hidden=np.float32(hidden))
    )
    logits = hidden @ kernel / 2
    chances = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    batch = {"tokens": None, "segments": None, "labels": np.array([[1, 4, 2]], np.int32)}
    batch["behavior"] = np.take_along_axis(chances, batch["labels"][..., None], -1)[..., 0]
    batch |= {"mask": np.ones((1, 3)), "advantage": np.ones(1)}
    loss = jax.jit(
        lambda params: answer_loss(MODEL, GRPO, temperature=2.0)(params, None, batch, None)
    )
    _, _, sums = loss({"head": {"kernel": np.float32(kernel)}})
    assert float(sums["kl_behavior"]) == pytest.approx(0, abs=1e-6)
