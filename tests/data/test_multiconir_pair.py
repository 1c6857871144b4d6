"""Rule-made pairs: what a negative breaks, and that no document answers another's query."""

import itertools
import lzma

import numpy as np
import pytest

from pangu_jax.core.errors import InputError
from pangu_jax.data.multiconir_fact import Record, found_values
from pangu_jax.data.multiconir_pair import (
    WORDING,
    check_records,
    draw_pairs,
    pair_batches,
    told_apart,
    values_by_kind,
)

GENRES = ("noir", "western", "comedy")


def record(number):
    people = [f"Person{number} Of{i}" for i in range(4)]
    kinds = ("director", "writer", "cast", "cast")
    own = [("year", str(1980 + number % 4)), ("genre", GENRES[number % 3])]
    facts = [*own, *zip(kinds, people, strict=True), ("title_len", str(number % 2 + 1))]
    return Record(f"film {number}", tuple(facts))


RECORDS = [record(number) for number in range(24)]


def test_records_that_another_one_answers_in_full_are_left_out():
    twin = Record("twin", RECORDS[3].facts[::-1])
    part = Record("part", RECORDS[5].facts[:4])
    more = Record("more", (*RECORDS[7].facts, ("cast", "Somebody Else")))
    kept = told_apart([*RECORDS, twin, part, more])
    assert kept == [r for r in RECORDS if r is not RECORDS[7]] + [more]
    assert told_apart(RECORDS) == RECORDS


def drawn(seed=0, rows=20, negatives=4):
    values = values_by_kind(RECORDS)
    draw = np.random.default_rng(seed)
    return draw_pairs(RECORDS, values, rows=rows, negatives=negatives, draw=draw)


def test_no_document_of_a_batch_answers_another_query():
    """Queries of a year and a genre alone would be answered by several films."""
    sizes = set()
    # Small batches, too, in which a query of few facts is answered by no more than one other.
    for pairs in (*(drawn(seed) for seed in range(5)), *(drawn(s, 8, 1) for s in range(5, 45))):
        for own, other in itertools.permutations(pairs, 2):
            assert not any(own.asked <= has for has in (other.facts, *other.broken))
        assert all(pair.asked <= pair.facts for pair in pairs)
        sizes |= {len(pair.asked) for pair in pairs}
    assert max(sizes) == 7 and min(sizes) < 4


def test_negatives_break_one_or_more_of_what_is_asked_and_nothing_else():
    counts, whole = set(), False
    for pair in drawn():
        for number, has in enumerate(pair.broken):
            lost = pair.facts - has
            assert lost and lost <= pair.asked
            assert sorted(k for k, _ in lost) == sorted(k for k, _ in has - pair.facts)
            # What stands instead is true of nothing in the document.
            assert not {v for _, v in has - pair.facts} & {v for _, v in pair.facts}
            assert number % 2 or len(lost) == 1
            counts.add(len(lost))
            whole |= len(lost) == len(pair.asked) > 2
    assert max(counts) > 2 and whole


def test_texts_say_what_they_are_made_of():
    for pair in drawn():
        assert found_values([v for _, v in pair.facts], [pair.positive]) == {
            v for _, v in pair.facts
        }
        assert found_values([v for _, v in pair.asked], [pair.query]) == {v for _, v in pair.asked}
        for text, has in zip(pair.negatives, pair.broken, strict=True):
            names = {v for k, v in has if k in ("director", "writer", "cast")}
            assert found_values(names, [text]) == names
            gone = {v for k, v in pair.facts - has if k in ("director", "writer", "cast")}
            assert not found_values(gone, [text])
            # The same sentences in the same order, so that the wording tells nothing.
            assert text.count(".") == pair.positive.count(".")
            assert len(text.split()) == len(pair.positive.split())


def test_wordings_are_none_of_the_tests(data_dir):
    paths = sorted((data_dir / "multiconir").glob("Movies_*.csv.xz"))
    texts = [lzma.decompress(path.read_bytes()).decode() for path in paths]
    forms = [form for both in WORDING.values() for one in both for form in one]
    around = [part.strip() for form in forms for part in form.split("{v}")]
    long = [part for part in around if len(part.split()) >= 2]
    assert len(long) > 20
    for part in long:
        assert not any(part in text for text in texts), part


def encode(texts):
    return {"text": np.array(texts, object)}


def taken(step=0, **options):
    options = {"batch": 6, "negatives": 2, "seed": 1} | options
    return next(pair_batches(RECORDS, encode, start_step=step, **options))


def test_batches_are_functions_of_seed_and_step():
    stream = pair_batches(RECORDS, encode, batch=6, negatives=2, seed=1)
    first, second = next(stream), next(stream)
    for name, shape in (("queries", (6,)), ("documents", (6,)), ("negatives", (6, 2))):
        assert first[name]["text"].shape == shape
        np.testing.assert_array_equal(second[name]["text"], taken(1)[name]["text"])
    assert (first["queries"]["text"] != second["queries"]["text"]).any()
    assert (taken(seed=2)["queries"]["text"] != first["queries"]["text"]).any()
    assert "negatives" not in taken(negatives=0)


def test_no_document_of_a_shuffled_batch_is_right_for_a_query_of_it():
    """Nor the wrong form of a right one: else the control would be trained against it."""
    draw = np.random.default_rng((1, 0))
    options = {"rows": 12, "negatives": 2, "draw": draw}
    pairs = draw_pairs(RECORDS, values_by_kind(RECORDS), **options)
    found = taken(shuffled=True)
    assert found["queries"]["text"].tolist() == [pair.query for pair in pairs[:6]]
    assert found["documents"]["text"].tolist() == [pair.positive for pair in pairs[6:]]
    assert found["negatives"]["text"].tolist() == [list(pair.negatives) for pair in pairs[6:]]
    assert not {pair.facts for pair in pairs[:6]} & {pair.facts for pair in pairs[6:]}
    with pytest.raises(InputError, match="a batch of 26 needs as many records"):
        taken(batch=13, shuffled=True)


def test_records_that_make_no_batch():
    with pytest.raises(InputError, match="a batch of 25 needs as many records, there are 24"):
        check_records(RECORDS, 25)
    with pytest.raises(InputError, match="batch must be at least 2"):
        check_records(RECORDS, 1)
    with pytest.raises(InputError, match="'a' has a fact of the kind 'color'; known are year"):
        check_records([Record("a", (("color", "red"),)), RECORDS[0]], 2)
    twins = [RECORDS[0], Record("twin", RECORDS[0].facts)]
    draw = np.random.default_rng(0)
    with pytest.raises(InputError, match="another record has all facts of"):
        draw_pairs(twins, values_by_kind(twins), rows=2, negatives=1, draw=draw)
    alone = [Record(str(i), (("year", str(i)), ("genre", "noir"))) for i in (1980, 1981)]
    with pytest.raises(InputError, match=r"has too few values|no negative that answers no other"):
        for _ in range(20):
            draw_pairs(alone, values_by_kind(alone), rows=2, negatives=4, draw=draw)
