"""What a place in a query is worth: by hand, for models that look at one end, and shuffled."""

import numpy as np
import pytest

from pangu_jax.data.multiconir import Task1Row, reordered
from pangu_jax.eval import condition_position
from pangu_jax.eval.condition_position import draw_orders, drops, score_positions, shuffled_drops
from pangu_jax.eval.pairwise_metrics import estimate

LETTERS = "abcdefghij"


def query(letters):
    return "Find: " + "; ".join(f"{i}. has {x}" for i, x in enumerate(letters, 1)) + "."


def rows(count=40):
    found = []
    for _ in range(count):
        broken = tuple(LETTERS.replace(x, "-") for x in LETTERS)
        found.append(Task1Row((*"012345678", query(LETTERS)), LETTERS, broken, None))
    return found


def looking(weights):
    """A scorer that counts a met condition by its place in the query."""

    def scorer(asked, documents):
        letters = [part[-1] for part in asked.removesuffix(".").split("; ")]
        return np.array([sum(w for w, x in zip(weights, letters, strict=True) if x in d)
                         for d in documents], float)  # fmt: skip

    return scorer


def test_a_list_is_put_in_another_order():
    assert reordered(query(LETTERS), range(10)) == query(LETTERS)
    assert reordered(query(LETTERS), range(9, -1, -1)) == query(LETTERS[::-1])
    odd = "What?\n" + "\n".join(f"{i}. v{i}.0, 1. or 2.5;" for i in range(1, 11))
    assert reordered(odd, range(10)) == odd
    other = reordered(odd, [1, 0, *range(2, 10)]).splitlines()
    assert other[:3] == ["What?", "1. v2.0, 1. or 2.5;", "2. v1.0, 1. or 2.5;"]
    for none in ("no list", query(LETTERS[:9]), query(LETTERS).replace("4. ", "4) ")):
        assert reordered(none, range(10)) is None


def test_shares_of_a_model_that_looks_at_the_first():
    weights = np.arange(10, 0, -1)
    table = score_positions(rows(), looking(weights), draw_orders(40, 3, seed=0))
    assert len(table) == 4 * 11
    for found in (drops(table), shuffled_drops(table, 3)):
        np.testing.assert_array_equal(found, np.tile(weights, (40, 1)))
        shares = [estimate([found], condition_position.share(place)).value for place in range(10)]
        np.testing.assert_allclose(shares, weights / 55)
        assert estimate([found], condition_position.lean).value == pytest.approx((40 - 15) / 55)


def test_content_is_told_apart_from_place():
    """What matters by its letter leans only while it stands where it stood."""

    def scorer(asked, documents):
        return np.array([sum(LETTERS.index(x) + 1 for x in d if x != "-") for d in documents])

    table = score_positions(rows(300), scorer, draw_orders(300, 4, seed=1))
    given = estimate([drops(table)], condition_position.lean)
    shuffled = estimate([shuffled_drops(table, 4)], condition_position.lean)
    assert given.value == pytest.approx((15 - 40) / 55) and given.high < -0.4
    assert shuffled.low < 0 < shuffled.high and shuffled.high - shuffled.low < 0.1


def test_orders_and_what_is_left_out():
    orders = draw_orders(5, 2, seed=0)
    assert orders.shape == (5, 2, 10) and (np.sort(orders) == np.arange(10)).all()
    assert (orders != draw_orders(5, 2, seed=1)).any()
    assert len(np.unique(orders.reshape(-1, 10), axis=0)) == 10
    some = rows(5)
    some[2] = Task1Row((*"012345678", "no list"), some[2].positive, some[2].negatives, None)
    table = score_positions(some, _whole, orders)
    found = condition_position.figures(table, 2)
    assert (found["given"]["left_out"], found["shuffled"]["left_out"]) == (0, 1)
    assert found["shuffled"]["drop"] == [1] * 10
    nothing = condition_position.figures({name: column * 0 for name, column in table.items()}, 2)
    assert nothing["given"]["lean"]["value"] is None


def _whole(asked, documents):
    return np.array([10.0 - d.count("-") for d in documents])
