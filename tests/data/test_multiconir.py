"""MultiConIR's files: both layouts, packed or not, as a stream, and what is wrong in a sentence."""

import csv
import gzip
import lzma
import tracemalloc

import pandas as pd
import pytest

from pangu_jax.core.errors import InputError
from pangu_jax.data import multiconir
from pangu_jax.data.multiconir import content_hash, find_parts, read_rows

TEN = range(1, 11)
TASK1 = [f"Query{i}" for i in TEN] + ["Positive"] + [f"HN{i}" for i in TEN]
TASK1 += [f"HN_{i}" for i in TEN]
TASK2 = ["Query10", "Natural_Query10", "Positive", *(f"HN{i}" for i in TEN)]


def write(path, columns, rows=3, **cells):
    """A file of texts such as "HN3 of 2", and the cells given as {"HN3 of 2": text}."""
    path.parent.mkdir(parents=True, exist_ok=True)
    opener = {".gz": gzip.open, ".xz": lzma.open}.get(path.suffix, open)
    with opener(path, "wt", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        for row in range(1, rows + 1):
            names = [f"{name} of {row}" for name in columns]
            writer.writerow([cells.get(name, name) for name in names])
    return path


def official(root):
    write(root / "datasets/Task1/Legal Document_Task1.csv", TASK1)
    write(root / "datasets/Task2_&_3/Legal Document_Task2_&_3.csv", TASK2)
    write(root / "datasets/Task4/Movies_1024.csv", [TASK2[0], *TASK2[2:]])
    write(root / "datasets/Task4/Movies_512.csv", TASK2)
    (root / "datasets/Task1/.DS_Store").write_bytes(b"\0\1")
    (root / "datasets/Task1/._People_Task1.csv").write_bytes(b"\0\5")


def test_the_released_layout(tmp_path):
    official(tmp_path)
    parts = find_parts(tmp_path)
    assert [(p.stem, p.domain, p.task, p.length) for p in parts] == [
        ("Legal Document_Task1", "Legal Document", 1, None),
        ("Legal Document_Task2_&_3", "Legal Document", 2, None),
        ("Movies_512", "Movies", 4, 512),
        ("Movies_1024", "Movies", 4, 1024),
    ]
    assert find_parts(tmp_path / "datasets") == parts
    first, graded, _, longer = (list(read_rows(part)) for part in parts)
    assert len(first) == 3
    assert first[1].queries[:2] == ("Query1 of 2", "Query2 of 2") and len(first[1].queries) == 10
    assert first[1].positive == "Positive of 2" and first[1].negatives[9] == "HN10 of 2"
    assert first[1].others[2] == "HN_3 of 2"
    assert graded[0].query == "Query10 of 1" and graded[0].natural == "Natural_Query10 of 1"
    assert graded[2].documents[:2] == ("Positive of 3", "HN1 of 3")
    assert len(graded[2].documents) == 11 and longer[0].natural is None


@pytest.mark.parametrize("ending", ["", ".gz", ".xz"])
def test_the_flat_layout_packed_or_not(tmp_path, ending):
    write(tmp_path / f"Legal Document_Task1.csv{ending}", TASK1[:21])
    write(tmp_path / f"Movies_Task2_&_3.csv{ending}", TASK2, **{"HN4 of 2": 'a "b",\r\nNone; é'})
    first, second = find_parts(tmp_path)
    assert next(read_rows(first)).others is None
    assert list(read_rows(second))[1].documents[4] == 'a "b",\r\nNone; é'
    plain = write(tmp_path / "plain" / "Legal Document_Task1.csv", TASK1[:21])
    assert content_hash(first) == content_hash(find_parts(plain.parent)[0]) != content_hash(second)


def test_what_is_missing_is_what_pandas_takes_for_it(tmp_path):
    texts = [*sorted(multiconir.MISSING), "none", "Nan", "0", " x "]
    cells = {f"HN3 of {row}": text for row, text in enumerate(texts, 1)}
    path = write(tmp_path / "People_Task2_&_3.csv", TASK2, len(texts), **cells)
    (part,) = find_parts(tmp_path)
    found = [row.documents[3] is None for row in read_rows(part, missing=True)]
    assert found == pd.read_csv(path)["HN3"].isna().tolist() and sum(found) == len(texts) - 4
    with pytest.raises(InputError, match=r"_&_3.csv row 1: column 'HN3' is '', which is no text"):
        list(read_rows(part))


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("A_Task1.csv", ",".join(TASK1[:20]), "A_Task1.csv has no column 'HN10'; it has Query1, "),
        ("A_Task1.csv", ",".join(TASK1[:30]), "A_Task1.csv has no column 'HN_10'"),
        ("A_Task2_&_3.csv", ",".join(TASK2[:1] + TASK2[2:]), "no column 'Natural_Query10'"),
        ("A_512.csv", ",".join(TASK2), "A_512.csv has a header and no rows"),
        ("A_512.csv", "", "A_512.csv is empty"),
        ("A_512.csv", ",".join([*TASK2, "HN1"]), "two columns named 'HN1'"),
        ("A_512.csv", ",".join(TASK2) + "\na,b", "line 2 has 2 fields, the header has 13"),
        ("A_512.csv", ",".join(TASK2) + "\n" + "x," * 12 + '"y\nx,x', "unexpected end of data"),
        ("A_512.csv", ",".join(TASK2) + "\n" + "x," * 12 + "\udcff", "is not UTF-8 text"),
        ("A_512.csv.xz", "no xz", "cannot read"),
        ("A_Task3.csv", "a", "holds none of MultiConIR's files"),
        ("A_512.csv/x", "a", "Is a directory"),
    ],
)
def test_each_fault_is_one_sentence(tmp_path, name, content, said):
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(content, encoding="utf-8", errors="surrogateescape")
    with pytest.raises(InputError, match=said):
        for part in find_parts(tmp_path):
            list(read_rows(part))


def test_other_folders(tmp_path):
    with pytest.raises(InputError, match=r"there is no folder .*none"):
        find_parts(tmp_path / "none")
    write(tmp_path / "A_Task1.csv", TASK1)
    write(tmp_path / "Task1" / "A_Task1.csv.gz", TASK1)
    with pytest.raises(InputError, match=r"A_Task1.csv and .*A_Task1.csv.gz are one part"):
        find_parts(tmp_path)


@pytest.mark.long
def test_a_file_of_40_mb_is_a_stream(tmp_path):
    path = tmp_path / "Medical Case_1024.csv"
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(TASK2)
        writer.writerows([["word " * 800] * 13] * 800)
    assert path.stat().st_size > 40e6
    (part,) = find_parts(tmp_path)
    tracemalloc.start()
    try:
        assert sum(len(row.documents) for row in read_rows(part)) == 800 * 11
        assert len(content_hash(part)) == 64
        assert tracemalloc.get_traced_memory()[1] < 8e6
    finally:
        tracemalloc.stop()


def test_the_stand_in(data_dir):
    parts = find_parts(data_dir / "multiconir")
    assert [part.stem for part in parts] == [
        "Movies_Task1", "People_Task1", "Movies_Task2_&_3", "People_Task2_&_3",
    ]  # fmt: skip
    for part in parts:
        rows = list(read_rows(part))
        assert len(rows) == 300
        documents = rows[0].documents if part.task == 2 else [rows[0].positive, *rows[0].others]
        assert len(set(documents)) == 11
