"""Sampling against plain numpy, its edge cases, and the distribution of what is drawn."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pangu_jax.core.errors import InputError
from pangu_jax.decode.sample import adjusted_logits, draw, rows_of, sample
from pangu_jax.decode.sampling_config import SamplingConfig

CONFIGS = [
    SamplingConfig(0.0),
    SamplingConfig(1.0),
    SamplingConfig(0.7),
    SamplingConfig(1.3, top_k=1),
    SamplingConfig(1.3, top_k=3),
    SamplingConfig(1.0, top_k=11),
    SamplingConfig(1.0, top_k=99),
    SamplingConfig(1.0, top_p=0.5),
    SamplingConfig(0.5, top_p=0.9),
    SamplingConfig(1.0, top_p=1e-9),
    SamplingConfig(2.0, top_k=5, top_p=0.6),
    SamplingConfig(0.0, top_k=2, top_p=0.3),
]

adjusted = jax.jit(adjusted_logits, static_argnames="cfg")


def distribution(row, cfg):
    """The probabilities of one row, token by token, in float64."""
    row = [float(x) for x in row]
    order = sorted(range(len(row)), key=lambda i: (-row[i], i))
    if cfg.temperature == 0:
        return np.eye(len(row))[order[0]]
    weight = {i: np.exp((row[i] - row[order[0]]) / cfg.temperature) for i in order}
    kept = order[: cfg.top_k] if cfg.top_k else order
    total, reached, nucleus = sum(weight[i] for i in kept), 0.0, []
    for i in kept:
        nucleus.append(i)
        reached += weight[i] / total
        if reached >= cfg.top_p and cfg.top_p < 1:
            break
    total = sum(weight[i] for i in nucleus)
    return np.array([weight[i] / total if i in nucleus else 0.0 for i in range(len(row))])


def rows():
    """Ordinary rows, one with ties, one all equal, one with large scores."""
    logits = np.random.default_rng(0).normal(size=(6, 11)).astype(np.float32) * 2
    logits[3, 4:8] = logits[3, 4]
    logits[4] = 0.5
    logits[5] *= 1e4
    return logits


@pytest.mark.parametrize("cfg", CONFIGS, ids=str)
def test_the_distribution_is_that_of_the_plain_reference(cfg):
    logits = rows()
    found = np.asarray(jax.nn.softmax(adjusted(logits, cfg), axis=-1))
    want = np.stack([distribution(row, cfg) for row in logits])
    # The cut of top-p is compared where rounding cannot move it: not among equal scores.
    exact = slice(0, 4) if cfg.top_p < 1 else slice(None)
    np.testing.assert_allclose(found[exact], want[exact], atol=1e-5)
    assert ((found > 0) == (want > 1e-30))[exact].all()


def test_the_best_token_is_never_lost_and_ties_go_to_the_lower_id():
    logits = np.array([[1.0, 3.0, 3.0, 2.0]], np.float32)
    for cfg in (SamplingConfig(1.0, top_p=1e-30), SamplingConfig(1.0, 1), SamplingConfig(0.0)):
        assert np.isfinite(adjusted_logits(logits, cfg)).tolist() == [[False, True, False, False]]
    kept = adjusted_logits(logits, SamplingConfig(1.0, top_k=2))
    assert np.isfinite(kept).tolist() == [[False, True, True, False]]


@pytest.mark.parametrize("temperature", [1e-40, 1e-20, 1e-6, 1e30])
def test_extreme_temperatures_give_no_nan(temperature):
    probs = jax.nn.softmax(adjusted_logits(rows()[:3] * 50, SamplingConfig(temperature)))
    assert np.isfinite(probs).all()
    if temperature < 1:
        assert np.allclose(probs.max(-1), 1)
        assert (probs.argmax(-1) == rows()[:3].argmax(-1)).all()


def test_bfloat16_scores_are_handled_in_float32():
    logits = jnp.asarray(rows()[:3], jnp.bfloat16)
    assert adjusted_logits(logits, SamplingConfig(0.7)).dtype == jnp.float32


@pytest.mark.parametrize("cfg", [SamplingConfig(0.7, top_k=4), SamplingConfig(1.0, top_p=0.8)])
def test_what_is_drawn_follows_the_distribution(cfg):
    row, count = rows()[0], 20_000
    keys = jax.random.split(jax.random.key(1), count)
    draw = jax.jit(functools.partial(sample, cfg=cfg))
    ids = np.asarray(draw(jnp.broadcast_to(row, (count, len(row))), key=keys))
    assert ids.dtype == np.int32
    want = distribution(row, cfg)
    seen = np.bincount(ids, minlength=len(row))
    assert (seen[want == 0] == 0).all()
    some = want > 0
    chi = ((seen[some] - count * want[some]) ** 2 / (count * want[some])).sum()
    assert chi < some.sum() - 1 + 5 * np.sqrt(2 * some.sum())


def test_a_row_does_not_depend_on_the_others():
    logits, cfg = rows(), SamplingConfig(1.0)
    keys = jax.random.split(jax.random.key(2), len(logits))
    together = sample(logits, cfg, key=keys)
    for row in range(len(logits)):
        alone = sample(logits[row : row + 1], cfg, key=keys[row : row + 1])
        assert int(alone[0]) == int(together[row])
    assert (sample(logits, SamplingConfig(), key=keys) == logits.argmax(-1)).all()


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({"temperature": -1.0}, "temperature"),
        ({"temperature": float("nan")}, "temperature"),
        ({"temperature": float("inf")}, "temperature"),
        ({"top_k": -1}, "top_k"),
        ({"top_p": 0.0}, "top_p"),
        ({"top_p": 1.1}, "top_p"),
    ],
)
def test_impossible_options_are_refused_by_name(options, name):
    with pytest.raises(InputError, match=name):
        SamplingConfig(**options)


@pytest.mark.long
@pytest.mark.parametrize("keep", [range(12), [0, 1, 2, 11], [0, 11]])
def test_rows_may_each_be_drawn_in_their_own_way(keep):
    """As each is drawn alone; scores of what was drawn too, whoever else asks for a cut."""
    logits, ways = rows()[[0, 1, 2, 3] * 3][list(keep)], [CONFIGS[i] for i in keep]
    keys = jax.random.split(jax.random.key(3), len(logits))
    together = jax.jit(draw)(logits, jax.tree.map(jnp.asarray, rows_of(ways)), key=keys)
    for row, way in enumerate(ways):
        one = slice(row, row + 1)
        alone = jax.jit(draw, static_argnames="cfg")(logits[one], cfg=way, key=keys[one])
        jax.tree.map(lambda x, y, r=row: np.testing.assert_array_equal(x[r], y[0]), together, alone)
        token, probs = int(together.ids[row]), distribution(logits[row], way)
        plain = distribution(logits[row], SamplingConfig(1.0))
        assert together.log_probs[row] == pytest.approx(np.log(plain[token]), abs=1e-4)
        assert together.sampled_log_probs[row] == pytest.approx(np.log(probs[token]), abs=1e-4)


def test_settings_beyond_float32_and_int32_are_the_nearest_there():
    found = rows_of([SamplingConfig(1e-60, 2**40, 1e-60), SamplingConfig(1e60)])
    assert (found.temperature > 0).all()
    assert np.isfinite(found.temperature).all()
    assert found.top_k.tolist() == [2**31 - 1, 0]
    assert found.top_p[0] > 0
