"""A head on hidden states learns which of two answers is better."""

import jax
import numpy as np
import pytest

from pangu_jax.core.errors import InputError
from pangu_jax.core.spec import init
from pangu_jax.models import decoder
from pangu_jax.nn.attention import AttentionConfig
from pangu_jax.nn.block import LayerConfig
from pangu_jax.nn.mlp import MlpConfig
from pangu_jax.reasoning.preference import Pair, Preference, features, fit, read_pairs

CFG = decoder.DecoderConfig(16, 8, (LayerConfig(AttentionConfig(2, 1, 4), mlp=MlpConfig(8)),))


def drawn(count, noise, seed):
    """Features of which a hidden direction says which is better, on scales that differ."""
    rng = np.random.default_rng(seed)
    scale, wanted = np.logspace(-2, 2, 12), np.random.default_rng(7).normal(size=12)
    x = rng.normal(size=(2, count, 12))
    better = (x @ wanted + noise * rng.normal(size=(2, count))).argmax(0)
    both = (3 + x) * scale
    at = np.arange(count)
    return [both[side, at].astype(np.float32) for side in (better, 1 - better)]


def test_what_pairs_agree_on_is_learned_and_holds_for_others():
    model = fit(*drawn(300, 0.0, 0), steps=150)
    found = model.agreement(*drawn(200, 0.0, 1))
    assert found.value > 0.93 and found.low > 0.88
    again = fit(*drawn(300, 0.0, 0), steps=150)
    np.testing.assert_array_equal(model.kernel, again.kernel)


def test_a_penalty_keeps_the_head_small():
    small, large = (fit(*drawn(60, 1.0, 0), steps=60, decay=d).kernel for d in (10.0, 0.0))
    assert np.square(small).sum() < 0.2 * np.square(large).sum()


def test_a_tie_agrees_half():
    model = Preference(np.zeros(2), np.ones(2), np.array([1.0, 0.0]))
    chosen, rejected = np.array([[1.0, 0], [0, 0], [0, 5]]), np.array([[0.0, 9], [1, 0], [0, 1]])
    assert model.agreement(chosen, rejected).value == pytest.approx(0.5)


def test_a_feature_is_the_last_hidden_state_whoever_is_beside_it():
    params = init(decoder.spec(CFG), key=jax.random.key(0))
    rows = [[1, 2, 3], list(range(1, 15)), [4]]
    found = features(params, rows, cfg=CFG, batch=2)
    hidden = jax.jit(lambda row: decoder.apply(params, row, cfg=CFG).hidden)
    for row, got in [(rows[i], found[i]) for i in (0, 1)]:
        np.testing.assert_allclose(got, hidden(np.array([row]))[0, -1], atol=1e-5)
    with pytest.raises(InputError, match="row 1 has no token"):
        features(params, [[1], []], cfg=CFG)


def test_pairs_are_read_or_refused(tmp_path):
    (tmp_path / "a.jsonl").write_text(
        '{"prompt": "q", "chosen": "a", "rejected": "b", "more": 1}\n'
    )
    assert read_pairs(tmp_path / "a.jsonl") == [Pair("q", "a", "b")]
    (tmp_path / "a.jsonl").write_text('{"prompt": "q", "chosen": "a"}\n')
    with pytest.raises(InputError, match="line 1 has no text under the key 'rejected'"):
        read_pairs(tmp_path / "a.jsonl")


@pytest.mark.parametrize(
    ("shapes", "value"), [(((3, 2), (2, 2)), 0), (((0, 2), (0, 2)), 0), (((3, 2), (3, 2)), np.nan)]
)
def test_pairs_that_are_none_are_refused(shapes, value):
    with pytest.raises(InputError, match="pairs"):
        fit(*(np.full(shape, value, np.float32) for shape in shapes))
