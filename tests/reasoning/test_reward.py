"""Rewards by route: what does not apply is left out, what fails is masked and counted."""

import dataclasses
import math
import threading

import numpy as np
import pytest

from pangu_jax.core.errors import InputError
from pangu_jax.reasoning.reward import (
    ROUTES,
    Graded,
    Route,
    Sample,
    Scale,
    Score,
    SourceHealth,
    duplicates,
    grade,
    overlong,
    repetition,
    well_formed,
)

ONE = {"own": Route(({"a": 3.0, "b": 1.0}, {"c": 1.0}), gates=("gate",), added={"less": -0.5})}
TAGS = ("<think>", "</think>")


def samples(count, kind="own"):
    return [Sample(f"{i}", "", f"{i}", kind) for i in range(count)]


def says(*values):
    """A source with these values by the sample's number; None does not apply, an error fails."""

    def source(asked):
        source.asked += [sample.said for sample in asked]
        found = [values[int(sample.said) % len(values)] for sample in asked]
        return [
            Score(None, str(x), failed=True) if isinstance(x, Exception) else Score(x)
            for x in found
        ]

    source.asked = []
    return source


def rewards(count=1, health=SourceHealth(), routes=ONE, **sources):
    return grade(samples(count), routes, sources, health)


def test_weights_of_what_does_not_apply_are_made_up_for():
    found = rewards(3, a=says(1.0, None, 0.5), b=says(0.0, 0.25, None))
    np.testing.assert_allclose(found.reward, [0.75, 0.25, 0.5])
    assert found.usable.all() and not found.failed


def test_a_later_tier_is_asked_where_no_earlier_one_told():
    judge = says(0.9)
    found = rewards(3, a=says(1.0, None, 0.0), b=says(None), c=judge)
    np.testing.assert_allclose(found.reward, [1.0, 0.9, 0.0])
    assert judge.asked == ["1"] and found.scores["c"][0] is None


@pytest.mark.parametrize("name", ["a", "b", "gate", "less"])
def test_what_fails_is_masked_and_counted_and_not_zero(name):
    sources = {"a": says(1.0), "b": says(1.0), "gate": says(1.0), "less": says(0.0)}
    kept = sources[name]({}) or sources[name]
    sources[name] = says(kept(samples(1))[0].value, ValueError("broken"))
    found = rewards(4, **sources)
    assert found.usable.tolist() == [True, False, True, False] and found.failed == 2
    assert np.isnan(found.reward[[1, 3]]).all() and (found.reward[[0, 2]] == 1).all()


def test_a_source_that_raises_or_miscounts_fails_for_all_it_was_asked():
    def raises(asked):
        raise RuntimeError("no network")

    for source in (raises, lambda asked: [Score(1.0)]):
        found = rewards(2, a=source, b=says(1.0))
        assert not found.usable.any() and found.failed == 2
    assert "Error: 1 scores for 2 samples" in found.scores["a"][0].evidence


def test_a_sample_that_nothing_applies_to_has_no_reward():
    found = rewards(2, a=says(None, 1.0))
    assert found.usable.tolist() == [False, True] and not found.failed


def test_gates_multiply_and_the_rest_is_added():
    found = rewards(2, a=says(0.8), gate=says(1.0, 0.0), less=says(0.5))
    np.testing.assert_allclose(found.reward, [0.8 - 0.25, -0.25])


def group(name, *scores):
    return Graded(np.zeros(len(scores)), np.ones(len(scores), bool), {name: scores})


def test_a_source_that_never_tells_answers_apart_sinks_to_its_floor_and_comes_back():
    health = SourceHealth(window=3, floor=0.1)
    for same in range(3):
        assert health.weight("a", 3.0) == 3.0, same
        health = health.after(group("a", Score(1.0), Score(1.0)))
    assert health.weight("a", 3.0) == pytest.approx(0.3) and health.weight("b", 1.0) == 1.0
    found = rewards(1, health, a=says(1.0), b=says(0.0))
    assert found.reward[0] == pytest.approx(0.3 / 1.3)
    assert health.after(group("a", Score(1.0), Score(0.0))).weight("a", 3.0) == 3.0
    # Values of groups that differ among them, but not within one, carry no advantage either.
    other = SourceHealth(window=2)
    for value in (0.0, 1.0):
        other = other.after(group("a", Score(value), Score(value)))
    assert other.weight("a", 1.0) == other.floor


def test_too_many_failures_end_the_run_and_name_the_source():
    health, bad = SourceHealth(least=20), Score(None, "TimeoutError: 9**9", failed=True)
    health = health.after(group("a", *[bad] * 2, *[Score(1.0)] * 17))  # too few to mean something
    health = health.after(group("a", *[Score(1.0)] * 21))  # 2 of 40 are not more than a twentieth
    with pytest.raises(InputError, match=r"source a failed for 3 of the last 41 .*9\*\*9"):
        health.after(group("a", bad))
    SourceHealth(least=20).after(
        group("a", bad, *[Score(1.0)] * 19)
    )  # a twentieth is not more than that
    few = SourceHealth(window=1, least=5).after(group("a", *[Score(1.0)] * 5))
    assert len(few.after(group("a", Score(0.0))).seen["a"]) == 1


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: rewards(1, d=says(1.0)), "needs one of the sources a, b, c"),
        (lambda: grade(samples(1, "other"), ONE, {}), "no route for 'other'; known: own"),
        (lambda: Score(1.5), "from 0 to 1, got 1.5"),
        (lambda: Score(math.nan), "from 0 to 1, got nan"),
        (lambda: Score(1.0, failed=True), "from 0 to 1"),
        (lambda: Route(({"a": 0.0},)), "weight of a must be above 0"),
        (lambda: Route(()), "at least one tier"),
        (lambda: SourceHealth(floor=0), "floor must be above 0"),
        (lambda: SourceHealth(window=0), "window and least"),
    ],
)
def test_what_makes_no_sense_is_refused(make, message):
    with pytest.raises(InputError, match=message):
        make()


def test_every_kind_of_answer_has_a_route():
    assert {"maths", "number", "letter", "code", "general"} <= set(ROUTES)
    assert ROUTES["maths"].names == (
        *("answer", "preference", "evaluator"),
        *("format", "repetition", "length"),
    )


def test_repetition_is_the_share_of_n_grams_that_were_there():
    assert duplicates("abcabc", 3) == pytest.approx(1 / 4) and duplicates("ab", 3) == 0
    assert repetition("the cat sat on the mat and then it went home") == 0
    assert repetition("so it is " * 50) > 0.9
    assert repetition("数" * 400) > 0.9 and repetition("天地玄黄宇宙洪荒日月盈昃辰宿列张" * 2) == 0


@pytest.mark.parametrize(("tokens", "want"), [(0, 0), (80, 0), (90, 0.5), (100, 1), (120, 1)])
def test_the_last_fifth_of_a_budget_costs_more_and_more(tokens, want):
    assert overlong(tokens, 100) == pytest.approx(want)


@pytest.mark.parametrize(
    ("text", "options", "wrong"),
    [
        ("<think>a</think>b", {}, None),
        ("<think></think>b", {"mode": "fast"}, None),
        ("a</think>b", {"starts_in_thinking": True}, None),
        ("<think>a</think>b", {"mode": "fast"}, "none was asked for"),
        ("<think> </think>b", {"mode": "slow"}, "some was asked for"),
        ("<think>a</think> ", {}, "no answer"),
        ("<think>a", {}, "opened and then closed"),
        ("b", {}, "opened and then closed"),
        ("</think>a<think>b", {}, "opened and then closed"),
        ("<think>a</think><think>c</think>b", {}, "opened and then closed"),
        ("<think>a</think>b", {"starts_in_thinking": True}, "opened and then closed"),
        ("b<think>a</think>b", {}, "before the thinking"),
    ],
)
def test_the_form_of_an_answer(text, options, wrong):
    found = well_formed(text, TAGS, **options)
    assert (found is None) if wrong is None else wrong in found


def test_without_tags_an_answer_is_any_text():
    assert well_formed("b", None) is None and well_formed(" ", None) == "there is no answer"


def test_scores_of_a_drifting_scale_are_placed_among_the_last():
    scale = Scale(size=4).after([1, 2, 2, 3])
    assert [scale.place(x) for x in (0, 2, 4)] == [0, 0.5, 1] and Scale().place(7) == 0.5
    assert scale.after([11, 12, 12, 13]).place(12) == 0.5


def test_threads_may_share_health_and_routes():
    health, found = SourceHealth(), []
    call = lambda: found.append(rewards(5, health, a=says(0.0, 1.0), b=says(1.0)).reward)  # noqa: E731
    threads = [threading.Thread(target=call) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all((x == found[0]).all() for x in found) and len(found) == 8
    assert dataclasses.replace(health) == SourceHealth()
