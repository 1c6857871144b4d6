import numpy as np
import pytest

from pangu_jax.core.errors import InputError
from pangu_jax.eval.load_balance import (
    coactivation,
    device_load,
    expert_load,
    imbalance_score,
    over_batches,
    straggler,
    uniform_choices,
    variation,
)

T, E, K = 50, 12, 3


def draw(seed=0):
    rng = np.random.default_rng(seed)
    ids = np.stack([rng.choice(E, K, replace=False, p=np.arange(1, E + 1) / 78) for _ in range(T)])
    return ids, rng.uniform(size=T) < 0.7


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("devices", [1, 3, 4, 12])
def test_counts_and_score_equal_loops_over_tokens(devices, masked):
    ids, mask = draw()
    mask = mask if masked else None
    experts, pairs, tokens = [0] * E, np.zeros((E, E), int), 0
    for t in range(T):
        if masked and not mask[t]:
            continue
        tokens += 1
        for i in ids[t]:
            experts[i] += 1
            for j in ids[t]:
                pairs[i, j] += 1
    each = [sum(experts[d * E // devices : (d + 1) * E // devices]) for d in range(devices)]
    assert expert_load(ids, experts=E, mask=mask).tolist() == experts
    assert device_load(ids, experts=E, devices=devices, mask=mask).tolist() == each
    score = imbalance_score(ids, experts=E, devices=devices, mask=mask)
    assert score == pytest.approx((max(each) - min(each)) / tokens)
    assert straggler(np.array(each)) == pytest.approx(max(each) * devices / sum(each))
    np.testing.assert_array_equal(coactivation(ids, experts=E, mask=mask), pairs)


def test_variation_is_taken_inside_groups():
    assert variation(np.array([[5.0, 5.0], [1.0, 1.0]])) == 0  # groups differ, experts don't
    assert variation(np.array([[0.0, 4.0], [3.0, 3.0]])) == pytest.approx(0.5)
    assert variation(np.array([[0.0, 0.0], [1.0, 3.0]])) == pytest.approx(0.25)  # an idle group


def test_variation_of_several_layers_is_the_mean_of_theirs():
    load = np.array([[[1, 3], [0, 0], [5, 5]], [[2, 0], [4, 4], [9, 1]]])
    assert variation(load) == pytest.approx(np.mean([variation(layer) for layer in load]))


def test_sixteen_tokens_drawn_independently_score_as_published():
    # 64 experts, 8 a token, 8 devices. Mean over 200,000 batches drawn elsewhere: 0.7102, sd 0.205.
    ids = uniform_choices(50_000 * 16, experts=64, active=8, distinct=False)
    got = over_batches(ids, experts=64, devices=8, tokens=16, most=50_000)
    assert got.batches == 50_000
    assert got.score == pytest.approx(0.7102, abs=0.005)
    assert got.score_std == pytest.approx(0.205, abs=0.005)
    loads = np.zeros((50_000, 8), int)
    np.add.at(loads, (np.arange(len(ids)) // 16, ids.T // 8), 1)
    assert (loads.min(1) == loads.max(1)).mean() < 1e-3


def test_distinct_draws_are_distinct_and_uniform():
    ids = uniform_choices(4000, experts=16, active=4)
    assert all(len(set(row)) == 4 for row in ids.tolist())
    np.testing.assert_allclose(expert_load(ids, experts=16), 1000, rtol=0.12)


def test_batches_are_disjoint_and_cover_the_tokens():
    ids, _ = draw(1)
    whole = over_batches(ids, experts=E, devices=4, tokens=T)
    assert whole.batches == 1 and whole.score_std == 0
    assert whole.score == imbalance_score(ids, experts=E, devices=4)
    once = np.arange(E)[:, None]  # every expert once: one token a batch scores 1
    each = over_batches(once, experts=E, devices=4, tokens=1)
    assert (each.batches, each.score, each.straggler) == (12, 1, 4)
    assert over_batches(once, experts=E, devices=4, tokens=12).score == 0


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: imbalance_score(draw()[0], experts=E, devices=5), "over 5 devices"),
        (lambda: imbalance_score(draw()[0], experts=E, devices=4, mask=np.zeros(T, bool)), "no"),
        (lambda: expert_load(np.array([[E]]), experts=E), "12"),
        (lambda: over_batches(draw()[0], experts=E, devices=4, tokens=51), "batch of 51"),
    ],
)
def test_impossible_requests_are_refused(call, words):
    with pytest.raises(InputError, match=words):
        call()
