"""SlimLLM's greedy choice: planted pairs, brute force, labels."""

import itertools

import numpy as np
import pytest

from pangu_jax.pruning import pearson


def between(outputs):
    """C[i, k, j] of outputs [N, U, D], by loops."""
    centered = outputs - outputs.mean(0)
    return np.einsum("nij,nkj->ikj", centered, centered) / len(outputs)


def planted(seed=0, units=6):
    """Two large units that say the same, among smaller ones."""
    rng = np.random.default_rng(seed)
    outputs = rng.normal(size=(500, units, 4))
    outputs[:, 0] *= 1.2
    outputs[:, 1] = outputs[:, 0] * (1 + 0.01 * rng.normal(size=(500, 4)))
    outputs[:, 2:4] = -0.8 * outputs[:, :1] + 0.9 * outputs[:, 2:4]
    return between(outputs)


def best_subset(found, keep):
    subsets = itertools.combinations(range(len(found)), keep)
    masks = [np.isin(np.arange(len(found)), s) for s in subsets]
    return max(masks, key=lambda m: pearson.similarity(found, m))


@pytest.mark.parametrize("seed", range(4))
def test_swaps_find_what_ranking_one_by_one_misses(seed):
    """Each unit's score takes all others as there; which go together only swaps can tell."""
    found = planted(seed)
    once = pearson.choose(found, 3, greedy=False)
    swapped = pearson.choose(found, 3)
    assert pearson.similarity(found, swapped) > pearson.similarity(found, once) + 0.05
    best = pearson.similarity(found, best_subset(found, 3))
    assert pearson.similarity(found, swapped) <= best * (1 + 1e-12)


def test_a_pair_that_cancels_is_no_trap():
    """o_1 = -o_2: ranked one by one both stay, and one swap at a time cannot part them."""
    rng = np.random.default_rng(0)
    outputs = rng.normal(size=(500, 6, 4))
    outputs[:, 0] *= 6
    outputs[:, 1] = -outputs[:, 0] + 0.01 * rng.normal(size=(500, 4))
    found = between(outputs)
    once, swapped = pearson.choose(found, 4, greedy=False), pearson.choose(found, 4)
    assert once[:2].all()
    assert not best_subset(found, 4)[:2].any()
    assert pearson.similarity(found, swapped) >= pearson.similarity(found, once)
    # Where one of them would be left alone, one swap is enough, and finds the best there is.
    once, swapped = pearson.choose(found, 1, greedy=False), pearson.choose(found, 1)
    assert once[:2].any()
    assert pearson.similarity(found, swapped) > 2 * pearson.similarity(found, once)
    np.testing.assert_array_equal(swapped, best_subset(found, 1))


@pytest.mark.parametrize(
    ("units", "keep"), [(3, 1), (4, 2), (6, 5), (7, 3), *((8, k) for k in range(1, 8))]
)
def test_never_worse_than_one_shot_nor_better_than_all_subsets(units, keep):
    rng = np.random.default_rng(10 * units + keep)
    mix = rng.normal(size=(units, units))
    found = between(np.einsum("nuj,uv->nvj", rng.normal(size=(60, units, 3)), mix))
    values = [
        pearson.similarity(found, mask)
        for mask in (
            pearson.choose(found, keep, greedy=False),
            pearson.choose(found, keep),
            best_subset(found, keep),
        )
    ]
    assert values[0] <= values[1] * (1 + 1e-12) <= values[2] * (1 + 1e-12)


def test_the_closed_form_of_a_swap_is_the_similarity_after_it():
    found = planted(3)
    kept = np.asarray([True, False, True, True, False, False])
    places = np.flatnonzero(kept)
    got = pearson._swapped(found, kept, 4, places)
    for place, value in zip(places, got, strict=True):
        after = kept.copy()
        after[place], after[4] = False, True
        assert value == pytest.approx(pearson.similarity(found, after), abs=1e-9)


def test_labels_keep_their_numbers():
    labels = np.asarray([0, 0, 0, 1, 1, 1])
    for seed in range(6):
        kept = pearson.choose(planted(seed), 2, labels=labels)
        assert kept[:3].sum() == kept[3:].sum() == 2


def test_outputs_that_do_not_vary_count_nothing():
    outputs = np.random.default_rng(0).normal(size=(50, 4, 3))
    outputs[:, :, 1] = 7.0
    found = between(outputs)
    assert pearson.similarity(found, np.ones(4, bool)) == pytest.approx(2.0)
    assert np.isfinite(pearson.choose(np.zeros((4, 4, 3)), 2)).all()
