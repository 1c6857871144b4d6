"""The tuned lens learns the basis in which a layer writes, and nothing of the last one."""

import numpy as np
import pytest

from pangu_jax.core.errors import InputError
from pangu_jax.reasoning.latent import tuned_lens
from pangu_jax.reasoning.latent.lens import normed


def away(params, states):
    """Nats by which each layer's probabilities differ from the last one's, in float64."""
    scores = states.astype(np.float64) @ np.asarray(params["head"]["kernel"], np.float64)
    told = scores - np.log(np.exp(scores).sum(-1, keepdims=True))
    last = told[:, -1:]
    return (np.exp(last) * (last - told)).sum(-1).mean(0)


@pytest.fixture
def layers():
    """States of three layers: another basis, one that is moved, and what the model says."""
    rng = np.random.default_rng(0)
    last = 2 * rng.normal(size=(600, 8))
    mixed = last @ np.linalg.inv(np.eye(8) + 0.4 * rng.normal(size=(8, 8)) / np.sqrt(8))
    return np.stack([mixed, last - rng.normal(size=8), last], 1).astype(np.float32)


def test_it_learns_what_layers_mean_on_states_that_it_did_not_see(model, layers):
    params, cfg = model
    lens = tuned_lens.fit(params, layers[:400], cfg=cfg)
    before = away(params, normed(params, layers[400:], cfg=cfg))
    after = away(params, tuned_lens.translated(params, lens, layers[400:], cfg=cfg))
    assert before[2] == after[2] == 0 and not np.any(lens.kernel[2]) and not np.any(lens.bias[2])
    assert (after[:2] < 0.1 * before[:2]).all() and (before[:2] > 0.01).all()


def test_without_steps_it_is_the_logit_lens(model, layers):
    params, cfg = model
    lens = tuned_lens.fit(params, layers, cfg=cfg, steps=0)
    found = tuned_lens.translated(params, lens, layers, cfg=cfg)
    np.testing.assert_allclose(found, normed(params, layers, cfg=cfg), rtol=1e-6, atol=1e-7)
    with pytest.raises(InputError, match="needs states"):
        tuned_lens.fit(params, layers[:0], cfg=cfg)


def test_translation_is_an_affine_map_for_each_layer(model, layers):
    params, cfg = model
    rng = np.random.default_rng(1)
    lens = tuned_lens.TunedLens(
        rng.normal(size=(3, 8, 8)).astype(np.float32), rng.normal(size=(3, 8)).astype(np.float32)
    )
    found = tuned_lens.translated(params, lens, layers[:5], cfg=cfg)
    for row in range(5):
        for layer in range(3):
            x = layers[row, layer].astype(np.float64)
            moved = x + x @ lens.kernel[layer] + lens.bias[layer]
            scale = np.asarray(params["norm"]["scale"], np.float64)
            want = moved / np.sqrt(np.mean(moved**2) + cfg.norm_eps) * scale
            np.testing.assert_allclose(found[row, layer], want, rtol=2e-4, atol=2e-5)
