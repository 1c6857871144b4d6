"""Records to train on stay apart from the test: planted records and names are found."""

import gzip
import json

import pytest

from pangu_jax.core.errors import InputError
from pangu_jax.data import multiconir_fact
from pangu_jax.data.multiconir import RankedRow, Task1Row, find_parts, read_rows
from pangu_jax.data.multiconir_fact import (
    Record,
    found_values,
    keep_apart,
    names,
    overlap,
    read_records,
    refuse_names,
    shared_records,
    texts,
)


def film(title, year, *people):
    kinds = ("director", "writer", "cast")
    facts = [("year", year), *zip(kinds, people, strict=True), ("title_len", "2")]
    return Record(title, tuple(facts))


FILMS = [
    film("One", "1990", "Ann Smith", "Bob Gray", "Cleo Hill"),
    film("Two", "1991", "Ann Smith", "Dora Penn", "Eric Moss"),
    film("Three", "1992", "Fay Wood", "Gus Reed", "Hana Lake"),
    film("Four", "1993", "Ian Stone", "Jo-Ann D'Arcy", "Kit St. Marsh"),
]


def growing(positive, negative="nothing", query="released in 1990; belongs to the noir genre"):
    return Task1Row((query,) * 10, positive, (negative,) * 10, None)


ROWS = [
    growing("Bob Gray wrote what ANN SMITH directed. Cleo Hill plays.", "It has Fay Wood, too.")
]


def test_a_planted_record_is_found_whatever_its_other_facts():
    assert [(r.id, row) for r, row in shared_records(FILMS, ROWS)] == [("One", 1)]
    moved = film("One again", "2020", "Cleo Hill", "Bob Gray", "Ann Smith")
    assert [r.id for r, _ in shared_records([moved], ROWS)] == ["One again"]
    # One name is missing; and a name is more than its words here and there.
    assert not shared_records(FILMS, [growing("Ann Smith, Bob Gray, and a hill with Cleo.")])
    graded = RankedRow("q", "n", ("Fay Wood, Gus Reed, Hana Lake", *("no",) * 10))
    assert [r.id for r, _ in shared_records(FILMS, [graded])] == ["Three"]
    plain = Record("no names", (("year", "1999"), ("genre", "noir")))
    assert shared_records([plain], [growing("A noir of 1999.")])
    assert not shared_records([plain], [growing("A noir of 1998.")])
    assert not shared_records([Record("no words", (("cast", "..."),))], ROWS)


def test_what_is_kept_has_no_record_and_no_name_of_the_test():
    kept = keep_apart(FILMS, ROWS, seed=0)
    assert [record.id for record in kept] == ["Two", "Three", "Four"]
    everything = " ".join(value for record in kept for _, value in record.facts)
    for name in ("Ann Smith", "Fay Wood"):  # of the positive, and of a negative
        assert name not in everything
    assert kept[2] == FILMS[3]  # nothing of it is in the test
    before, after = names(FILMS[1:]), names(kept)
    assert len(after) == len(before) and len(after - before) == 2
    # The rest of a record stays, and kinds stay at their places.
    assert [f[0] for f in kept[0].facts] == [f[0] for f in FILMS[1].facts]
    assert kept[0].facts[0] == ("year", "1991") and kept[0].facts[3] == ("cast", "Eric Moss")
    assert keep_apart(FILMS, ROWS, seed=0) == kept != keep_apart(FILMS, ROWS, seed=1)


def test_a_name_is_mapped_alike_in_all_records():
    twice = [*FILMS[1:], film("Five", "1994", "Eric Moss", "Fay Wood", "Ann Smith")]
    kept = keep_apart(twice, ROWS, seed=3)
    assert kept[0].facts[1][1] == kept[3].facts[3][1]  # Ann Smith, director and player
    assert kept[1].facts[1][1] == kept[3].facts[2][1]  # Fay Wood, director and writer


def test_skipping_the_mapping_is_an_error(monkeypatch):
    monkeypatch.setattr(multiconir_fact, "rename", lambda records, taken, *, rows, seed: records)
    with pytest.raises(InputError, match="2 names of the training records occur in the test, such"):
        keep_apart(FILMS, ROWS, seed=0)
    with pytest.raises(InputError, match="such as 'Fay Wood'"):
        refuse_names([FILMS[2]], ROWS)


def test_new_names_are_not_of_the_test_either():
    """Every name that could be made of the free ones but one is in a row."""
    free = [film("Six", "1990", "Lea Birch", "Moe Frost", "Ann Smith")]
    row = growing("Lea Frost and Ann Smith")
    found = keep_apart(free, [row], seed=0)
    assert found[0].facts[3] == ("cast", "Moe Birch")
    with pytest.raises(InputError, match="1 names occur in the test, and the others of the records "
                       "give only 0 new ones"):  # fmt: skip
        keep_apart(free, [growing("Lea Frost and Moe Birch and Ann Smith")], seed=0)


def test_nothing_left_to_train_on():
    with pytest.raises(InputError, match="all 1 records are in the test"):
        keep_apart(FILMS[:1], ROWS, seed=0)
    with pytest.raises(InputError, match="all names of the records occur in the test"):
        keep_apart([FILMS[0]], [growing("Ann Smith. Bob Gray."), growing("Cleo Hill.")], seed=0)


def test_values_are_runs_of_whole_words():
    values = {"Bob Gray", "Jo-Ann D'Arcy", "St. Marsh", "Al", "..."}
    there = ["BOB  gray, jo ann d'arcy (1990)", "Albert met St Marsh."]
    assert found_values(values, there) == {"Bob Gray", "Jo-Ann D'Arcy", "St. Marsh"}
    assert not found_values(["Bob Gray"], ["Bob", "Gray", "Bob the Gray", "Bobby Gray"])


def test_overlap_is_counted():
    rows = [*ROWS, growing("x", query="released in 2001; has a title of 2 word(s)")]
    found = overlap(FILMS, rows)
    assert (found["records"], found["rows"], found["shared_records"]) == (4, 2, 1)
    assert (found["names"], found["shared_names"]) == (11, 4)
    assert found["records_with_shared_name"] == 3
    assert found["year"] == {"rows": 2, "rows_shared": 1, "values": 2, "values_shared": 1}
    assert found["genre"] == {"rows": 1, "rows_shared": 0, "values": 1, "values_shared": 0}
    assert found["title_len"] == {"rows": 1, "rows_shared": 1, "values": 1, "values_shared": 1}
    assert texts(rows) >= {"x", "nothing", "It has Fay Wood, too."}


def test_files_of_records(tmp_path):
    lines = [{"id": r.id, "facts": [list(fact) for fact in r.facts]} for r in FILMS]
    content = "\n\n".join(map(json.dumps, lines)).encode()
    (tmp_path / "a.jsonl").write_bytes(content)
    (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress(content))
    assert read_records(tmp_path / "a.jsonl") == read_records(tmp_path / "b.jsonl.gz") == FILMS


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "has no records"),
        ("{", "line 1 is no JSON"),
        ('{"id": "a", "facts": [["year", "1"]]}\n[]', 'line 2 has no list "facts" of pairs'),
        ('{"id": "a", "facts": [["year", 1]]}', 'line 1 has no list "facts" of pairs'),
        ('{"id": "a", "facts": [["year"]]}', 'line 1 has no list "facts" of pairs'),
        ('{"id": 1, "facts": [["year", "1"]]}', 'line 1 has no text "id"'),
    ],
)
def test_files_that_are_none(content, message, tmp_path):
    path = tmp_path / "records.jsonl"
    path.write_text(content)
    with pytest.raises(InputError, match=message):
        read_records(path)
    with pytest.raises(InputError, match="cannot read"):
        read_records(tmp_path / "absent.jsonl.xz")


@pytest.mark.long
def test_the_films_at_hand(data_dir):
    """Three share all of their names with a row: they are the sequels of its film."""
    folder = data_dir / "multiconir"
    part = next(part for part in find_parts(folder) if part.stem == "Movies_Task1")
    rows, records = list(read_rows(part)), read_records(folder / "movies_unused.jsonl.xz")
    kept = keep_apart(records, rows, seed=0)
    assert (len(records), len(kept)) == (1156, 1153)
    assert not found_values(names(kept), [row.positive for row in rows])
