"""Probes read what is there, and nothing where labels are drawn."""

import numpy as np
import pytest

from pangu_jax.core.errors import InputError
from pangu_jax.reasoning.latent.answer import think
from pangu_jax.reasoning.latent.curriculum import ALL, Phase
from pangu_jax.reasoning.latent.probe import lens_ranks, linear_probe, telling_place
from pangu_jax.reasoning.latent.registry import METHODS

RNG = np.random.default_rng(0)
FEATURES = RNG.normal(size=(2000, 8))


def test_a_probe_reads_what_features_say():
    labels = 7 + np.digitize(FEATURES[:, 2] + 0.01 * RNG.normal(size=2000), [0.0])
    found = linear_probe(FEATURES * 100 + 5, labels)
    assert found.accuracy > 0.95 and abs(found.shuffled - 0.5) < 0.06
    assert (found.examples, found.classes) == (2000, 2) and 0.5 <= found.majority < 0.55


def test_drawn_labels_are_read_at_chance():
    found = linear_probe(FEATURES, RNG.integers(0, 4, 2000))
    assert abs(found.accuracy - 0.25) < 0.06 and abs(found.shuffled - 0.25) < 0.06
    few = linear_probe(RNG.normal(size=(60, 100)), RNG.integers(0, 2, 60))
    assert abs(few.accuracy - 0.5) < 0.3  # more features than examples: nothing is read by heart


def test_the_lens_ranks_an_id_among_all(model):
    params, cfg = model
    states = RNG.normal(size=(3, 2, 8)).astype(np.float32)
    scores = np.einsum("bnd,dv->bnv", states, params["head"]["kernel"])
    want = [[sorted(-scores[b, n]).index(-scores[b, n, 5 + b]) for n in (0, 1)] for b in range(3)]
    assert lens_ranks(params, states, [5, 6, 7], cfg=cfg).tolist() == want


def test_the_telling_place_has_most_ids():
    assert telling_place([(1, 2, 3), (1, 3, 3), (1, 4, 2, 9)]) == 1
    assert telling_place([(1,)]) == 0
    for texts in ([], [(1,), ()]):
        with pytest.raises(InputError, match="empty text"):
            telling_place(texts)


def test_thoughts_are_those_of_the_naive_form(naive, model, markers, problems):
    params, cfg = model
    phase, method = Phase(1, 2, ALL), METHODS["coconut"]
    found = think(params, problems, method, phase, markers, cfg=cfg, batch=2)
    assert found.shape == (3, 2, 8)
    row = method.slots(problems[2], phase, markers, 0)
    x = naive.inputs(params, row.prefix, 2, (), cfg)
    np.testing.assert_allclose(found[2], x[-2:], rtol=1e-4, atol=1e-5)
    with pytest.raises(InputError, match="no thoughts"):
        think(params, problems, METHODS["pause"], phase, markers, cfg=cfg)


def test_too_little_to_probe_is_refused():
    with pytest.raises(InputError, match="got 3 and 2"):
        linear_probe(FEATURES[:3], np.array([0, 1, 1]))
    with pytest.raises(InputError, match="got 9 and 1"):
        linear_probe(FEATURES[:9], np.zeros(9, int))
