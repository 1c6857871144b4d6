"""Simulated schedules take the time that can be worked out, and use lengths as they are given."""

import dataclasses
import functools

import numpy as np
import pytest

from pangu_jax.core.errors import InputError
from pangu_jax.reasoning.schedule_simulate import (
    Costs,
    lognormal,
    measured,
    read_lengths,
    simulate,
)
from pangu_jax.reasoning.schedule_state import ScheduleConfig

HEAVY = lognormal(500, 1.0, 10**6)


def drawn(count):
    rng = np.random.default_rng(1)
    return HEAVY(rng, rng, count)


@functools.cache
def heavy(policy, staleness=2):
    cfg = ScheduleConfig(staleness, batch=16, group=2, slots=48, policy=policy)
    return simulate(cfg, HEAVY, Costs(0.01, 3.0), updates=90)


def test_synchronous_training_takes_generating_and_updating_in_turn():
    cfg = ScheduleConfig(0, batch=3, group=2, slots=4)  # 6 samples in 4 slots: two turns
    found = simulate(cfg, lognormal(10, 0.0, 100), Costs(0.5, 7.0), updates=5)
    assert found.seconds == pytest.approx(5 * (2 * 5.0 + 7.0))
    assert found.generator_idle == pytest.approx(1 - 6 * 5.0 / (4 * 17.0))
    assert found.trainer_idle == pytest.approx(10 / 17) and found.ages == (15,)


def test_with_room_to_work_ahead_the_slower_side_sets_the_pace():
    for update, pace in ((7.0, 7.0), (2.0, 5.0)):
        cfg = ScheduleConfig(2, batch=4, group=1, slots=4)
        found = simulate(cfg, lognormal(10, 0.0, 100), Costs(0.5, update), updates=50)
        assert found.seconds == pytest.approx(5.0 + update + 49 * pace)
        assert found.generator_idle == pytest.approx(0, abs=1e-9) or update > 5


def test_on_a_shared_device_slots_wait_for_the_trainer():
    for staleness in (0, 2):  # answers of equal length drain at once: nothing is gained
        cfg = ScheduleConfig(staleness, batch=4, group=1, slots=4)
        found = simulate(cfg, lognormal(10, 0.0, 100), Costs(0.5, 2.0, shared=True), updates=50)
        assert found.seconds == pytest.approx(50 * (5.0 + 2.0))
        assert found.generator_idle == pytest.approx(2 / 7)
    seconds = []
    for staleness in (0, 4):
        cfg = ScheduleConfig(staleness, batch=16, group=2, slots=32)
        found = simulate(cfg, HEAVY, Costs(0.01, 1.0, shared=True), updates=60)
        seconds.append(found.seconds)
        assert found.seconds > 60 * 1.0 + found.tokens_used.sum() * 0.01 / 32
    assert seconds[1] < 0.7 * seconds[0], "slots need not drain"


def test_updates_come_faster_the_older_weights_may_be():
    found = [heavy("barrier", s) for s in (0, 2, 6)]
    seconds = [x.seconds for x in found]
    assert seconds == sorted(seconds, reverse=True) and seconds[0] > 2 * seconds[-1]
    idle = [x.generator_idle for x in found]
    assert idle == sorted(idle, reverse=True)
    assert all(len(x.ages) - 1 <= s for x, s in zip(found, (0, 2, 6), strict=True))
    np.testing.assert_array_equal(
        found[0].tokens_made, found[2].tokens_made[: len(found[0].tokens_made)]
    )


@pytest.mark.parametrize("policy", ["barrier", "admission"])
def test_lengths_are_trained_on_as_they_are_given(policy):
    from scipy.stats import ks_2samp

    found = heavy(policy)
    fresh = drawn(4000)
    assert ks_2samp(found.tokens_used, fresh).pvalue > 0.01
    assert found.discarded == 0 and len(found.tokens_used) == 90 * 32


def test_throwing_away_what_is_old_trains_on_short_answers():
    from scipy.stats import ks_2samp

    found = heavy("discard")
    assert ks_2samp(found.tokens_used, drawn(4000)).pvalue < 1e-6
    assert found.tokens_used.mean() < 0.9 * found.tokens_made.mean() and found.discarded > 0.05
    assert len(found.ages) - 1 <= 2


def test_admission_alone_has_old_answers():
    assert len(heavy("admission").ages) - 1 > 2 >= len(heavy("barrier").ages) - 1


def test_measured_lengths_are_drawn_by_prompt():
    rng = np.random.default_rng(0)
    draws = [set(measured([[1, 2], [30, 40]])(rng, rng, 8).tolist()) for _ in range(20)]
    assert all(found <= {1, 2} or found <= {30, 40} for found in draws)
    assert len(set.union(*draws)) == 4


def test_lengths_are_read_from_answers_and_from_numbers(tmp_path):
    answers = tmp_path / "answers.jsonl"
    answers.write_text(
        '{"head": 1}\n{"question": 0, "tokens": 3}\n\n{"question": 1, "tokens": 5}\n'
        '{"question": 0, "tokens": 0}\n'
    )
    assert read_lengths(answers) == [[3, 1], [5]]
    numbers = tmp_path / "numbers.txt"
    numbers.write_text("3 4\n\n5\n")
    assert read_lengths(numbers) == [[3, 4], [5]]


@pytest.mark.parametrize(
    "name, text, words",
    [
        ("a.txt", "", "holds no lengths"),
        ("a.txt", "3 4\n5 x", "line 2: a number"),
        ("a.jsonl", '{"tokens": 3}\n{"tokens": "3"}', "line 2: a number"),
        ("a.jsonl", '{"tokens": 3}\n[', "not JSON"),
        ("a.jsonl", '{"tokens": 3}\n7', "line 2: a number"),
    ],
)
def test_what_holds_no_lengths_is_refused(tmp_path, name, text, words):
    (tmp_path / name).write_text(text)
    with pytest.raises(InputError, match=words):
        read_lengths(tmp_path / name)


def test_what_cannot_be_is_refused(tmp_path):
    with pytest.raises(InputError, match="cannot read"):
        read_lengths(tmp_path / "none")
    with pytest.raises(InputError, match="seconds per update"):
        Costs(update=0.0)
    with pytest.raises(InputError, match="mean must be"):
        lognormal(0, 1, 5)
    with pytest.raises(InputError, match="no rewards"):
        simulate(ScheduleConfig(replace_equal_groups=True), HEAVY, Costs())


def test_a_group_that_is_begun_again_is_about_the_same_prompt():
    seen = {}

    def lengths(prompt, samples, count):
        name, found = int(prompt.integers(2**62)), samples.integers(1, 400, count)
        seen.setdefault(name, []).append(tuple(found))
        return found

    cfg = ScheduleConfig(1, batch=4, group=2, slots=40, policy="discard")
    simulate(cfg, lengths, Costs(0.1, 3.0), updates=20)
    again = [found for found in seen.values() if len(found) > 1]
    assert again and all(len(set(found)) == len(found) for found in again)


def test_tokens_that_are_masked_are_not_counted_as_used():
    # One answer takes 100 s, the other a second; an update takes 10 s and the bound is one update.
    def lengths(prompt, samples, count):
        del prompt, samples
        return np.array([[1], [1000]][next(turn) == 0]).repeat(count)

    turn = iter(range(10**6))
    cfg = ScheduleConfig(1, batch=1, group=1, slots=2, partial=True)
    found = simulate(cfg, lengths, Costs(0.1, 10.0), updates=14)
    used = sorted(found.tokens_used.tolist())
    # It ended at 100 s, and weights of version v came at 10.1 v: version 10 uses those of 9.
    assert used[:13] == [1] * 13 and used[13] == 1000 - 909
    whole = simulate(dataclasses.replace(cfg, partial=False), lengths, Costs(0.1, 10.0), updates=5)
    assert whole.tokens_used.min() >= 1
