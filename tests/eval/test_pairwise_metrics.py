"""Figures of scores: by plain loops, by hand, and what intervals and tests promise."""

import itertools
import math

import numpy as np
import pytest

from pangu_jax.core.errors import InputError
from pangu_jax.eval import pairwise_metrics
from pangu_jax.eval.multiconir import oracle_ranked, oracle_task1
from pangu_jax.eval.pairwise_metrics import GROWING, STEPS, compare, estimate, flips, wins

NAN = math.nan


def figure(outcomes, statistic=pairwise_metrics.mean_rate):
    return estimate([outcomes], statistic, draws=50).value


def growing(rows=50, seed=0, values=6):
    """Scores with many ties."""
    draw = np.random.default_rng(seed)
    names = [name for pair in GROWING for name in pair]
    return {name: draw.integers(0, values, rows).astype(float) for name in names}


def graded(rows=50, seed=0, values=6):
    draw = np.random.default_rng(seed)
    return {name: draw.integers(0, values, rows).astype(float) for name in pairwise_metrics.RANKED}


def punched(scores, share=0.1, seed=1):
    """With missing scores, and one column gone."""
    draw = np.random.default_rng(seed)
    found = {n: np.where(draw.random(len(x)) < share, NAN, x) for n, x in scores.items()}
    found.pop(list(found)[6])
    return found


def plain_rates(scores, pairs, official):
    """One loop a pair; None where there is nothing to compare."""
    found = []
    for better, worse in pairs:
        won, count = 0, 0
        for a, b in zip(scores.get(better, ()), scores.get(worse, ()), strict=False):
            if not official and (math.isnan(a) or math.isnan(b)):
                continue
            won, count = won + bool(a > b), count + 1
        found.append(won / count if count else None)
    return found


def plain_flips(first, second, official):
    changed = total = 0
    for better, worse in STEPS:
        if better not in first or worse not in first or better not in second or worse not in second:
            continue
        for i in range(len(first[better])):
            four = [s[name][i] for s, name in itertools.product((first, second), (better, worse))]
            if not official and any(map(math.isnan, four)):
                continue
            changed += (four[0] > four[1]) != (four[2] > four[3])
            total += 1
    return changed / total


@pytest.mark.parametrize("protocol", ["official", "collection"])
@pytest.mark.parametrize("gaps", [False, True])
def test_rates_by_plain_loops(protocol, gaps):
    for pairs, scores in ((GROWING, growing()), (STEPS, graded())):
        scores = punched(scores) if gaps else scores
        want = plain_rates(scores, pairs, protocol == "official")
        outcomes = wins(scores, pairs, protocol)
        there = ~np.isnan(outcomes)
        found = pairwise_metrics.rates(np.nansum(outcomes, 0), there.sum(0))
        np.testing.assert_allclose(found, [NAN if x is None else x for x in want])
        assert (None in want) == gaps
        mean = np.mean([x for x in want if x is not None])
        assert figure(outcomes) == pytest.approx(mean)
        if not gaps:
            drop = want[0] - want[-1]
            assert figure(outcomes, pairwise_metrics.decline) == pytest.approx(drop)
        equal = [sum(a == b for a, b in zip(scores.get(x, ()), scores.get(y, ()), strict=False))
                 for x, y in pairs]  # fmt: skip
        assert pairwise_metrics.ties(scores, pairs).tolist() == equal and sum(equal) > 20


@pytest.mark.parametrize("protocol", ["official", "collection"])
@pytest.mark.parametrize("gaps", [False, True])
def test_flips_by_a_plain_loop(protocol, gaps):
    first, second = graded(seed=3), graded(seed=4)
    if gaps:
        first, second = punched(first), punched(second, seed=5)
    outcomes = flips(wins(first, STEPS, protocol), wins(second, STEPS, protocol))
    want = plain_flips(first, second, protocol == "official")
    assert figure(outcomes, pairwise_metrics.pooled_rate) == pytest.approx(want)


def test_three_rows_by_hand():
    """A win, a tie and a loss; then with what is missing; the released code counts it as lost."""
    name, other = GROWING[0]
    scores = {name: np.array([2.0, 1.0, 0.0]), other: np.array([1.0, 1.0, 1.0])}
    assert wins(scores, GROWING, "official")[:, 0].tolist() == [1, 0, 0]
    assert np.isnan(wins(scores, GROWING, "official")[:, 1:]).all()
    assert pairwise_metrics.ties(scores, GROWING).tolist() == [1] + [0] * 9
    assert pairwise_metrics.gaps(scores, GROWING)[0] == 0
    scores[other][1] = NAN
    assert wins(scores, GROWING[:1], "official").ravel().tolist() == [1, 0, 0]
    found = wins(scores, GROWING[:1], "collection")
    assert np.isnan(found[1]) and figure(found) == 0.5
    assert figure(wins(scores, GROWING[:1], "official")) == pytest.approx(1 / 3)
    assert (
        pairwise_metrics.gaps(scores, GROWING[:1]) == 0
        and pairwise_metrics.ties(scores, GROWING)[0] == 0
    )
    tiny = {name: np.array([1 + 2**-52]), other: np.array([1.0])}
    assert wins(tiny, GROWING[:1], "official") == 1  # compared as they are, not rounded


def test_who_counts_conditions_is_right_and_who_says_nothing_is_never():
    """A constant gets 0, not a half; a random scorer a half within its interval."""
    for protocol in ("official", "collection"):
        right = [wins(oracle_task1(5), GROWING, protocol)]
        right += [wins(oracle_ranked(5), STEPS, protocol)]
        for outcomes in right:
            np.testing.assert_array_equal(outcomes, 1)
        assert figure(flips(right[1], right[1]), pairwise_metrics.pooled_rate) == 0
        np.testing.assert_array_equal(wins(growing(5, values=1), GROWING, protocol), 0)
        np.testing.assert_array_equal(wins(graded(5, values=1), STEPS, protocol), 0)
    draw = np.random.default_rng(7)
    scores = {name: draw.random(400) for name in pairwise_metrics.RANKED}
    outcomes = wins(scores, STEPS, "collection")
    found = estimate([outcomes], pairwise_metrics.mean_rate)
    assert found.low < 0.5 < found.high and found.high - found.low < 0.04
    opposite = wins({name: -x for name, x in scores.items()}, STEPS, "collection")
    assert figure(flips(outcomes, outcomes), pairwise_metrics.pooled_rate) == 0
    assert figure(flips(outcomes, opposite), pairwise_metrics.pooled_rate) == 1
    np.testing.assert_allclose(pairwise_metrics.gaps(scores, STEPS).sum(),
                               (scores[STEPS[0][0]] - scores[STEPS[-1][1]]).mean())  # fmt: skip


def test_what_only_orders_does_not_change_outcomes():
    scores = graded(values=20)
    want = wins(scores, STEPS, "official")
    np.testing.assert_array_equal(
        wins({n: np.exp(x) - 3 for n, x in scores.items()}, STEPS, "official"), want
    )
    order = np.random.default_rng(0).permutation(50)
    mixed = wins({n: x[order] for n, x in scores.items()}, STEPS, "official")
    np.testing.assert_array_equal(mixed, want[order])
    lost = wins(scores, [pair[::-1] for pair in STEPS], "official")
    np.testing.assert_array_equal(
        want.sum(0) + lost.sum(0) + pairwise_metrics.ties(scores, STEPS), 50
    )


def test_intervals_are_of_rows_and_repeat():
    """As wide as the normal one of the rows' own means, whose comparisons are alike."""
    draw = np.random.default_rng(0)
    outcomes = np.repeat(draw.random((300, 1)) < 0.8, 10, axis=1).astype(float)
    found = estimate([outcomes], pairwise_metrics.mean_rate, seed=3)
    assert found == estimate([outcomes], pairwise_metrics.mean_rate, seed=3)
    drawn = [pairwise_metrics.resample(9, seed=seed) for seed in (3, 4)]
    assert (drawn[0].sum(1) == 9).all() and (drawn[0] != drawn[1]).any()
    share = outcomes[:, 0].mean()
    assert found.value == pytest.approx(share)
    width = 2 * 1.96 * math.sqrt(share * (1 - share) / 300)
    assert found.high - found.low == pytest.approx(width, rel=0.08)
    assert (found.high + found.low) / 2 == pytest.approx(share, abs=0.01)
    few = outcomes[:30]
    both = estimate([outcomes, few], pairwise_metrics.mean_rate)
    assert both.value == pytest.approx((share + few.mean()) / 2)  # domains weigh alike
    nothing = estimate([np.full((4, 2), NAN)], pairwise_metrics.mean_rate)
    assert all(map(math.isnan, (nothing.value, nothing.low, nothing.high)))


def test_intervals_cover_what_they_promise():
    draw = np.random.default_rng(1)
    inside = 0
    for seed in range(200):
        outcomes = (draw.random((60, 10)) < draw.beta(7, 3, (60, 1))).astype(float)
        found = estimate([outcomes], pairwise_metrics.mean_rate, seed=seed, draws=300)
        inside += found.low <= 0.7 <= found.high
    assert 0.9 <= inside / 200 <= 0.98


def test_paired_differences():
    draw = np.random.default_rng(2)
    hard = draw.random((200, 1))
    first, second = ((draw.random((200, 10)) < hard + up).astype(float) for up in (0.06, 0))
    found = compare([first], [second], pairwise_metrics.mean_rate)
    assert found.value == pytest.approx(first.mean() - second.mean())
    assert 0 < found.low < found.value < found.high and found.p < 0.01
    alone = estimate([first], pairwise_metrics.mean_rate)
    assert found.high - found.low < 0.7 * (alone.high - alone.low)  # what pairing is for
    back = compare([second], [first], pairwise_metrics.mean_rate)
    assert back.value == -found.value and back.p < 0.01
    same = compare([first], [first], pairwise_metrics.mean_rate)
    assert (same.value, same.low, same.high, same.p) == (0, 0, 0, 1)
    sure = compare([np.ones((50, 10))], [np.zeros((50, 10))], pairwise_metrics.mean_rate, draws=99)
    assert (sure.value, sure.p) == (1, 0.01)
    holes = np.where(draw.random(second.shape) < 0.5, NAN, second)
    left = ~np.isnan(holes)
    want = [np.nanmean(np.where(left, x, NAN), 0).mean() for x in (first, second)]
    found = compare([first], [holes], pairwise_metrics.mean_rate)
    assert found.value == pytest.approx(want[0] - want[1])


def test_a_test_of_like_models_is_as_often_small_as_it_says():
    draw = np.random.default_rng(3)
    p = [compare([draw.integers(0, 2, (40, 10)).astype(float)],
                 [draw.integers(0, 2, (40, 10)).astype(float)],
                 pairwise_metrics.mean_rate, seed=seed, draws=200).p
         for seed in range(200)]  # fmt: skip
    assert 0.1 <= np.mean(np.array(p) < 0.2) <= 0.3 and min(p) >= 1 / 201


def test_exchanging_by_a_plain_loop():
    """All exchanges of four rows, against the drawn ones."""
    draw = np.random.default_rng(5)
    first, second = (draw.integers(0, 2, (4, 10)).astype(float) for _ in range(2))
    found = compare([first], [second], pairwise_metrics.decline, draws=20000)
    drop = [x[:, 0].mean() - x[:, -1].mean() for x in (first, second)]
    assert found.value == pytest.approx(drop[0] - drop[1])
    extreme = 0
    for signs in itertools.product((0, 1), repeat=4):
        swap = np.array(signs, bool)[:, None]
        a, b = np.where(swap, second, first), np.where(swap, first, second)
        value = (a[:, 0].mean() - a[:, -1].mean()) - (b[:, 0].mean() - b[:, -1].mean())
        extreme += abs(value) >= abs(found.value) - 1e-9
    assert found.p == pytest.approx(extreme / 16, abs=0.02)


def test_columns_alone_and_many_tests():
    outcomes = wins(punched(growing()), GROWING, "collection")
    means = np.array([np.nanmean(x) if (~np.isnan(x)).any() else NAN for x in outcomes.T])
    found = [figure(outcomes, pairwise_metrics.rate(place)) for place in range(10)]
    np.testing.assert_allclose(found, means)
    # By hand: times 3, 2, 1 from the least on, never falling, at most 1; NaN is no test.
    found = pairwise_metrics.holm([0.4, 0.01, NAN, 0.015, 0.9])
    np.testing.assert_allclose(found, [0.8, 0.04, NAN, 0.045, 0.9])
    np.testing.assert_allclose(pairwise_metrics.holm([0.03, 0.02, 0.6]), [0.06, 0.06, 0.6])
    assert pairwise_metrics.holm([0.7, 0.8]).tolist() == [1, 1] and not len(
        pairwise_metrics.holm([])
    )


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: wins({}, GROWING, "official"), "columns of scores must be of one length, got"),
        (lambda: wins({"a": np.zeros(2), "b": np.zeros(3)}, [("a", "b")], "official"), r"\[2, 3\]"),
        (lambda: estimate([], pairwise_metrics.mean_rate), "no rows to compare"),
        (lambda: estimate([np.zeros((0, 2))], pairwise_metrics.mean_rate), "no rows to compare"),
        (
            lambda: compare([np.zeros((2, 2))], [np.zeros((3, 2))], pairwise_metrics.mean_rate),
            "other rows",
        ),
    ],
)
def test_what_cannot_be_compared(call, said):
    with pytest.raises(InputError, match=said):
        call()
