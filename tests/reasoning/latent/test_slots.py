"""Rows of slots, phases of curricula, and batches of them."""

import dataclasses
from itertools import islice

import numpy as np
import pytest

from pangu_jax.core.config import from_json, to_json
from pangu_jax.core.errors import InputError
from pangu_jax.data.chain_of_thought import Problem
from pangu_jax.data.tokenizer import ByteTokenizer
from pangu_jax.data.word_tokenizer import opened, word_files
from pangu_jax.reasoning.latent import slots
from pangu_jax.reasoning.latent.batches import (
    Widths,
    longest_chain,
    phase_batches,
    removed_beyond,
    widths,
)
from pangu_jax.reasoning.latent.curriculum import ALL, CurriculumConfig, Mix, Phase
from pangu_jax.reasoning.latent.method import question
from pangu_jax.reasoning.latent.registry import METHODS, method
from pangu_jax.reasoning.latent.slots import Slots

# Of the markers in conftest: begin, end, pause, answer, stop, boundary are 10 to 15.
ROWS = {
    ("cot", Phase(1), 0): Slots((15, 1, 2, 3), (4, 5, 6, 13, 7, 14), 0),
    ("no-cot", Phase(1, removed_steps=ALL), 0): Slots((15, 1, 2, 3), (13, 7, 14), 0),
    ("icot", Phase(1, removed_tokens=1), 2): Slots((15, 1, 2, 3), (6, 13, 7, 14), 0),
    ("icot", Phase(1, removed_tokens=1), 9): Slots((15, 1, 2, 3), (13, 7, 14), 0),
    ("coconut", Phase(1, 2, 1), 0): Slots((15, 1, 2, 3, 10), (11, 6, 13, 7, 14), 1),
    ("pause", Phase(1, 2, 1), 0): Slots((15, 1, 2, 3, 10), (12, 12, 11, 6, 13, 7, 14), 3),
    ("coconut", Phase(1, 2, 1, unmarked=True), 0): Slots((15, 1, 2, 3), (6, 13, 7, 14), 0),
    ("pause", Phase(1, 2, 1, unmarked=True), 0): Slots((15, 1, 2, 3), (12, 12, 6, 13, 7, 14), 2),
}


@pytest.mark.parametrize("name, phase, removed", ROWS)
def test_a_problem_as_a_row(problems, markers, name, phase, removed):
    row = METHODS[name].slots(problems[0], phase, markers, removed)
    assert row == ROWS[name, phase, removed]


def test_a_chain_keeps_its_room_until_the_end():
    cfg = CurriculumConfig(40, stage_steps=5, keep_position=True)
    phases = method("icot").phases(cfg, 3)
    assert [phase.chain_room for phase in phases] == [3, 3, 3, 3]
    plain = method("icot").phases(dataclasses.replace(cfg, keep_position=False), 3)
    assert plain == tuple(dataclasses.replace(phase, chain_room=0) for phase in phases)


def test_answers_begin_where_the_longest_chain_ends_whatever_is_left(problems, markers):
    chosen, room = method("icot"), longest_chain(problems)
    width, more = Widths(6, 0, 16), {"batch": 32, "seed": (0,)}
    own = [len(question(problem, markers)) for problem in problems]
    for phase in (
        Phase(1, chain_room=room),
        Phase(1, removed_tokens=2, smoothing=1.0, chain_room=room),
        Phase(1, removed_steps=ALL, chain_room=room),
    ):
        found = next(phase_batches(problems, chosen, phase, markers, width, **more))
        plain = dataclasses.replace(phase, chain_room=0)
        usual = next(phase_batches(problems, chosen, plain, markers, width, **more))
        np.testing.assert_array_equal(found["tokens"], usual["tokens"])
        np.testing.assert_array_equal(found["positions"][:, :6], usual["positions"][:, :6])
        for row, segments, at in zip(
            found["tokens"], found["segments"], found["positions"], strict=True
        ):
            mark = row.tolist().index(markers.answer)
            begin = int(segments.argmax())
            assert 6 - begin in own and at[begin] == 0
            assert at[mark] == 6 - begin + room
            np.testing.assert_array_equal(np.diff(at[6 : mark + 3]), 1)  # the rest stays together


@pytest.mark.parametrize("unmarked", [False, True])
def test_a_pause_differs_from_coconut_in_its_feedback_alone(problems, markers, unmarked):
    cfg = CurriculumConfig(100, stage_steps=10, stages=2, slots_per_stage=2, unmarked=unmarked)
    ours, control = METHODS["coconut"], METHODS["pause"]
    assert ours.phases(cfg, 9) == control.phases(cfg, 9)
    for phase in ours.phases(cfg, 9):
        ours_row, row = (m.slots(problems[1], phase, markers, 0) for m in (ours, control))
        assert row.prefix == ours_row.prefix and row.tail[phase.slots :] == ours_row.tail
        assert row.tail[: phase.slots] == (markers.pause,) * ours.thoughts(phase)
        assert row.given - ours_row.given == phase.slots and control.thoughts(phase) == 0


def test_columns_of_a_batch(problems, markers):
    rows = [METHODS["coconut"].slots(x, Phase(1, 2, 1), markers, 0) for x in problems[:2]]
    batch = slots.collate(rows, start=6, thoughts=2, tail=8)
    assert batch["tokens"].tolist() == [
        [0, 15, 1, 2, 3, 10, 0, 0, 11, 6, 13, 7, 14, 0, 0, 0],
        [0, 0, 0, 15, 3, 10, 0, 0, 11, 6, 7, 8, 13, 1, 2, 14],
    ]
    assert batch["segments"].tolist() == [[0] + [1] * 12 + [0] * 3, [0] * 3 + [1] * 13]
    assert batch["weights"].tolist() == [
        [0] * 8 + [1] * 4 + [0] * 4,
        [0] * 8 + [1] * 7 + [0],
    ]
    assert batch["positions"][1].tolist() == [0, 0, 0, *range(13)]
    predicted = batch["labels"][batch["weights"] > 0].tolist()
    assert predicted == [6, 13, 7, 14, 6, 7, 8, 13, 1, 2, 14]
    for start, tail in ((4, 8), (6, 7)):
        with pytest.raises(InputError, match=f"does not fit into {start} and {tail} columns"):
            slots.collate(rows, start=start, thoughts=2, tail=tail)
    with pytest.raises(InputError, match="a row of 0 tokens before"):
        slots.collate([Slots((), (1,), 0)], start=4, thoughts=0, tail=4)
    with pytest.raises(InputError, match="of -1 thoughts does not fit"):
        slots.collate([Slots((1,), (1,), 0, thoughts=-1)], start=4, thoughts=2, tail=4)


def test_steps_go_one_by_one_and_the_rest_at_the_end():
    cfg = CurriculumConfig(50, stage_steps=10, stages=2, slots_per_stage=3)
    phases = method("coconut").phases(cfg, 9)
    assert phases == (Phase(10), Phase(10, 3, 1), Phase(10, 6, 2), Phase(20, 6, ALL))
    assert from_json(Phase, to_json(phases[-1])) == phases[-1]
    longer = method("coconut").phases(dataclasses.replace(cfg, first_steps=15), 9)
    assert [phase.steps for phase in longer] == [15, 10, 10, 15]
    assert [dataclasses.replace(x, steps=1) for x in longer] == [
        dataclasses.replace(x, steps=1) for x in phases
    ]
    shared = CurriculumConfig(100, stages=2, first_steps=60)
    assert [phase.steps for phase in method("pause").phases(shared, 9)] == [60, 14, 14, 12]
    plain = method("coconut").phases(dataclasses.replace(cfg, unmarked=True), 9)
    assert plain == tuple(dataclasses.replace(phase, unmarked=True) for phase in phases)
    now = CurriculumConfig(50, stage_steps=0, stages=2)
    assert method("pause").phases(now, 9) == (Phase(50, 2, ALL),)


def test_methods_without_stages_have_one_form():
    cfg = CurriculumConfig(50, stages=2, slots_per_stage=3)
    for name, phase in (
        ("cot", Phase(50)),
        ("no-cot", Phase(50, removed_steps=ALL)),
        ("looped", Phase(50, removed_steps=ALL)),
        ("codi", Phase(50, 6, ALL)),
    ):
        assert method(name).phases(cfg, 9) == (phase,)


def test_tokens_go_one_by_one_up_to_the_longest_chain_or_a_jump():
    cfg = CurriculumConfig(50, stage_steps=10, smoothing=2.0)
    phases = method("icot").phases(cfg, 3)
    assert phases == (
        *(Phase(10, removed_tokens=n, smoothing=2.0) for n in range(3)),
        Phase(20, removed_steps=ALL),
    )
    jump = CurriculumConfig(50, stage_steps=10, most_removed=1)
    assert [phase.steps for phase in method("icot").phases(jump, 3)] == [10, 40]


def test_stages_of_no_told_length_leave_three_tenths_to_the_last_one():
    cfg = CurriculumConfig()
    assert [phase.steps for phase in method("coconut").phases(cfg, 46)] == [500] * 7 + [1500]
    lengths = [phase.steps for phase in method("icot").phases(cfg, 46)]
    assert lengths == [76] * 46 + [5000 - 46 * 76]
    assert len(method("pause").phases(CurriculumConfig(9, stages=2), 0)) == 4


def test_a_run_that_is_too_short_for_its_stages_is_refused():
    with pytest.raises(InputError, match=r"7 stages of 10 steps.*more than 70"):
        method("coconut").phases(CurriculumConfig(70, stage_steps=10), 9)
    with pytest.raises(InputError, match="stage_steps"):
        CurriculumConfig(1, stage_steps=-1)
    with pytest.raises(InputError, match="method must be one of cot, no-cot"):
        method("bogus")


def test_more_tokens_go_by_chance_with_the_published_odds():
    rate, count = 1.0, 20_000
    found = removed_beyond(Phase(1, smoothing=rate), count, np.random.default_rng(0))
    odds = (1 - np.exp(-rate)) * np.exp(-rate * np.arange(8))
    expected = count * np.array([*odds, 1 - odds.sum()])
    seen = np.bincount(np.minimum(found, 8), minlength=9)
    assert ((seen - expected) ** 2 / expected).sum() < 20.1  # chi-square, 8 degrees, p = 0.01
    assert not removed_beyond(Phase(1), 5, np.random.default_rng(0)).any()


def test_every_example_loses_the_tokens_that_are_due_and_those_drawn(problems, markers):
    phase = Phase(1, removed_tokens=1, smoothing=1.0)
    stream = phase_batches(
        problems, METHODS["icot"], phase, markers, Widths(6, 0, 16), batch=400, seed=(0,)
    )
    batch = next(stream)
    chains = {
        (15, *problem.question): (*sum(problem.steps, ()), 13, *problem.answer, 14)
        for problem in problems
    }
    gone = []
    for tokens, segments in zip(batch["tokens"], batch["segments"], strict=True):
        row = [t for t, s in zip(tokens.tolist(), segments, strict=True) if s]
        begin, full = next((q, c) for q, c in chains.items() if row[: len(q)] == list(q))
        rest = tuple(row[len(begin) :])
        assert full[len(full) - len(rest) :] == rest and 13 in rest
        gone.append((full.index(13), len(full) - len(rest)))
    assert all(1 <= removed <= chain for chain, removed in gone)
    drawn = [removed - 1 for chain, removed in gone if chain == 4]
    assert abs(np.mean(np.equal(drawn, 0)) - (1 - np.exp(-1))) < 0.15


def test_batch_number_i_is_the_same_wherever_the_stream_was_entered(problems, markers):
    more = {"batch": 4, "seed": (3, 1)}
    phase, width = Phase(1, 2, 1), Widths(7, 2, 16)
    arguments = (problems, METHODS["coconut"], phase, markers, width)
    whole = list(islice(phase_batches(*arguments, **more), 3))
    last = next(phase_batches(*arguments, step=2, **more))
    assert all((whole[2][name] == last[name]).all() for name in last)
    assert not (whole[1]["tokens"] == last["tokens"]).all()


def test_a_teacher_reads_the_whole_chain_of_the_same_problem(problems, markers):
    codi = METHODS["codi"]
    phases = codi.phases(CurriculumConfig(9, stages=2), 9)
    (wide,) = widths(problems, codi, phases, markers)
    batch = next(phase_batches(problems, codi, phases[0], markers, wide, batch=9, seed=(0,)))
    rows = {
        (15, *x.question, 10, 0, 0, 11, 13, *x.answer, 14): (
            (15, *x.question, *sum(x.steps, ()), 13, *x.answer, 14)
        )
        for x in problems
    }
    seen = [
        [tuple(t[s > 0].tolist()) for t, s in zip(part["tokens"], part["segments"], strict=True)]
        for part in (batch, batch["teacher"])
    ]
    assert [rows[row] for row in seen[0]] == seen[1] and len(set(seen[0])) == 3
    for part in (batch, batch["teacher"]):
        assert (part["tokens"][np.arange(9), part["answer"]] == markers.answer).all()


def test_columns_fit_every_row_of_a_phase(problems, markers):
    assert longest_chain(problems) == 4
    # Alike but for the answer, the longest of which is not the last one.
    problems = [*problems, dataclasses.replace(problems[0], answer=(7,) * 20), problems[0]]
    cfg = CurriculumConfig(500, stage_steps=50, stages=2, slots_per_stage=9)
    for name, chosen in METHODS.items():
        phases = chosen.phases(cfg, longest_chain(problems))
        for phase, width in zip(phases, widths(problems, chosen, phases, markers), strict=True):
            rows = [chosen.slots(x, phase, markers, phase.removed_tokens) for x in problems]
            slots.collate(rows, start=width.start, thoughts=width.thoughts, tail=width.tail)
            assert width.start == max(len(row.prefix) for row in rows), name
            assert width.tail % 16 == 0


def test_markers_are_tokens_of_words_and_reserved_ids_of_bytes():
    problem = Problem("1 * 2", ("0 2",), "2 0")
    assert slots.markers_of(ByteTokenizer()) == slots.Markers(257, 258, 259, 260, 256, 256)
    assert slots.encode(problem, ByteTokenizer()).steps == (tuple(b"0 2\n"),)
    with opened(word_files(["1 * 2 0"], slots.NAMES)) as tokenizer:
        found = slots.markers_of(tokenizer)
        assert found.begin == tokenizer.token_to_id("<|begin-thought|>")
        assert len({found.begin, found.end, found.pause, found.answer, found.stop}) == 5
        assert len(slots.encode(problem, tokenizer).question) == 3
    with (
        opened(word_files(["1"])) as tokenizer,
        pytest.raises(InputError, match=r"no token <\|begin-thought\|>"),
    ):
        slots.markers_of(tokenizer)


def test_a_share_of_examples_has_a_drawn_stage(problems, markers):
    cfg = CurriculumConfig(50, stage_steps=10, stages=2, slots_per_stage=2, mixed=0.4)
    phases = method("coconut").phases(cfg, 9)
    mix = Mix(0.4, 2, 2)
    assert phases[1] == Phase(10, 2, 1, mix=mix) and phases[-1] == Phase(20, 4, ALL, mix=mix)
    assert phases == method("pause").phases(cfg, 9)
    one = problems[1:2]  # three steps, so four stages, of which the last has none left
    expected = {}
    for name in ("coconut", "pause"):
        wide = widths(one, METHODS[name], phases, markers)
        assert len(set(wide)) == 1  # one form for all phases
        stream = phase_batches(
            one, METHODS[name], phases[1], markers, wide[0], batch=4000, seed=(0,)
        )
        batch = next(stream)
        counts = np.bincount(batch["segments"].sum(1) - len(one[0].question) - 7)
        expected[name] = counts
        # Thoughts or pauses and what is left of the chain, by stage; the phase's own is stage 1.
        sizes = [2 * min(stage, 2) + (4, 3, 1, 0)[stage] for stage in range(4)]
        shares = np.zeros(max(sizes) + 1)
        for stage, size in enumerate(sizes):
            shares[size] += 0.4 / 4 + (0.6 if stage == 1 else 0)
        np.testing.assert_allclose(counts / 4000, shares[: len(counts)], atol=0.03)
    np.testing.assert_array_equal(expected["coconut"], expected["pause"])
    with pytest.raises(InputError, match="mixed is a share of 0 to 1"):
        CurriculumConfig(mixed=1.5)


def test_no_stage_is_drawn_that_a_short_chain_does_not_have(problems, markers):
    short = problems[2:]  # one step, so two stages
    for last in (None, 2):
        phase = Phase(1, 4, 2, mix=Mix(1.0, 2, 2, last=last))
        (wide,) = widths(short, METHODS["coconut"], [phase], markers)
        stream = phase_batches(short, METHODS["coconut"], phase, markers, wide, batch=64, seed=(0,))
        inside = slice(wide.start, wide.start + wide.thoughts)
        assert {*next(stream)["segments"][:, inside].sum(1).tolist()} == {0, 2}


def test_a_row_of_fewer_thoughts_is_padded_behind_them(problems, markers):
    row = METHODS["coconut"].slots(problems[0], Phase(1, 1, 1), markers, 0)
    short = dataclasses.replace(row, thoughts=1)
    batch = slots.collate([short], start=6, thoughts=3, tail=6)
    assert batch["segments"].tolist() == [[0, *[1] * 5, 1, 0, 0, *[1] * 5, 0]]
    assert batch["positions"][0, 6:].tolist() == [5, 6, 7, 6, 7, 8, 9, 10, 11]
    assert batch["labels"][batch["weights"] > 0].tolist() == [6, 13, 7, 14]
    with pytest.raises(InputError, match="of 4 thoughts does not fit into 3 columns"):
        slots.collate([dataclasses.replace(row, thoughts=4)], start=6, thoughts=3, tail=6)


def test_a_row_of_fewer_thoughts_predicts_from_the_last_of_them(problems, markers):
    rows = [
        dataclasses.replace(
            METHODS["coconut"].slots(problems[0], Phase(1, n, n, unmarked=True), markers, 0),
            thoughts=n,
        )
        for n in (0, 1, 3)
    ]
    batch = slots.collate(rows, start=5, thoughts=3, tail=7)
    for i, first in enumerate((4, 5, 7)):
        at = [first, *range(8, 8 + len(rows[i].tail) - 1)]
        assert np.flatnonzero(batch["weights"][i]).tolist() == at
        assert tuple(batch["labels"][i, at]) == rows[i].tail


def test_unmarked_stages_are_mixed_with_earlier_ones_alone(problems, markers):
    cfg = CurriculumConfig(50, stage_steps=10, stages=2, mixed=0.5, unmarked=True)
    phases = method("coconut").phases(cfg, 9)
    assert [phase.mix.last for phase in phases] == [0, 1, 2, ALL]
    one = problems[1:2]  # three steps
    for phase, most, drawn in zip(phases, (0, 1, 2, 2), (1, 2, 3, 4), strict=True):
        (wide,) = widths(one, METHODS["coconut"], [phase], markers)
        assert wide.thoughts == most
        stream = phase_batches(one, METHODS["coconut"], phase, markers, wide, batch=4000, seed=(0,))
        own = next(stream)["segments"].sum(1) - 2  # boundary and question
        sizes = [min(stage, 2) + (4, 3, 1, 0)[stage] + 4 for stage in range(drawn)]
        shares = np.zeros(16)
        for size in sizes:
            shares[size] += 0.5 / drawn
        shares[sizes[-1]] += 0.5
        np.testing.assert_allclose(np.bincount(own, minlength=16) / 4000, shares, atol=0.03)
