"""A file that is written line by line and gone on with: torn lines, other files, two writers."""

import json
import os

import pytest

from pangu_jax.core.errors import InputError
from pangu_jax.core.journal import Journal

HEAD = '{"line"'
RECORDS = [{"line": 1, "x": "ä\n\u2028"}, {"line": 2, "x": None}]


def write(path, records, **options):
    with Journal(path, head=HEAD) as journal:
        found = list(journal.found)
        for record in records:
            journal.add(record)
    return found


def test_lines_are_there_at_once_and_found_again(tmp_path):
    path = tmp_path / "new" / "a.jsonl"
    with Journal(path, head=HEAD) as journal:
        for number, record in enumerate(RECORDS, 1):
            journal.add(record)
            assert path.read_bytes().count(b"\n") == number
    assert write(path, [{"line": 3}]) == RECORDS
    assert write(path, []) == [*RECORDS, {"line": 3}]
    assert [json.loads(line) for line in path.read_text().splitlines()[-1:]] == [{"line": 3}]


def test_a_line_that_was_cut_anywhere_is_written_again(tmp_path):
    path = tmp_path / "a.jsonl"
    write(path, RECORDS)
    whole = path.read_bytes()
    first = whole.index(b"\n") + 1
    for size in range(len(whole)):
        path.write_bytes(whole[:size])
        done = 0 if size < first else 1
        assert write(path, RECORDS[done:]) == RECORDS[:done]
        assert path.read_bytes() == whole


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"my notes", "line 1 does not begin with"),
        (b'{"line": 1}\nmy notes', "line 2 does not begin with"),
        (b'{"line": 1}\n\n', "line 2 does not begin with"),
        (b'{"other": 1}\n', "line 1 does not begin with"),
        (b'{"line": 1\n', "line 1 is not JSON"),
        (b'{"line": "\xff"}\n', "line 1 is not UTF-8"),
    ],
)
def test_other_files_are_let_be(tmp_path, content, words):
    path = tmp_path / "a.jsonl"
    path.write_bytes(content)
    with pytest.raises(InputError, match=words):
        write(path, RECORDS)
    assert path.read_bytes() == content


def test_nothing_is_left_where_nothing_was_written(tmp_path):
    assert write(tmp_path / "a.jsonl", []) == []
    assert not any(tmp_path.iterdir())


def test_one_writes_at_a_time_and_only_files(tmp_path):
    path = tmp_path / "a.jsonl"
    with Journal(path, head=HEAD) as journal:
        journal.add(RECORDS[0])
        with pytest.raises(InputError, match="another process is writing"):
            Journal(path, head=HEAD)
    with pytest.raises(InputError, match="cannot write"):
        Journal(tmp_path, head=HEAD)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(InputError, match="no ordinary file"):
        Journal(tmp_path / "pipe", head=HEAD)
    with pytest.raises(ValueError, match="a line begins with"), Journal(path, head=HEAD) as journal:
        journal.add({"other": 1})
