"""Documents of folders, files, jsonl and gzip, their errors, and the held-out part."""

import gzip
import hashlib
import json
import sysconfig
from pathlib import Path

import pytest

from pangu_jax.core.errors import InputError
from pangu_jax.data import text
from pangu_jax.data.text import (
    Document,
    documents,
    held_out,
    lines,
    packages,
    records,
    split_documents,
    stdlib,
    take,
)


def write(folder: Path, files: dict[str, bytes]) -> Path:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


def jsonl(*texts: str, field: str = "text") -> bytes:
    return "".join(json.dumps({"id": 3, field: text}) + "\n" for text in texts).encode()


def test_a_folder_gives_its_files_sorted_by_path(tmp_path):
    write(
        tmp_path,
        {
            "b.txt": b"two",
            "a/z.TXT": "größe\r\n".encode(),
            "a/b.jsonl.gz": gzip.compress(jsonl("first", "second\nline")),
            "c.txt.gz": gzip.compress(b"packed"),
            "d.jsonl": b"\n" + jsonl("\u2028 inside") + b'  \r\n{"text": "no newline"}',
            "e.jsonl.txt": b"no json at all",
            "marked.txt": b"\xef\xbb\xbfmark",
            "other.py": b"not asked for",
        },
    )
    assert [(d.name, d.text) for d in documents(tmp_path)] == [
        ("a/b.jsonl.gz:1", "first"),
        ("a/b.jsonl.gz:2", "second\nline"),
        ("a/z.TXT", "größe\r\n"),
        ("b.txt", "two"),
        ("c.txt.gz", "packed"),
        ("d.jsonl:2", "\u2028 inside"),
        ("d.jsonl:4", "no newline"),
        ("e.jsonl.txt", "no json at all"),
        ("marked.txt", "mark"),
    ]


def test_a_file_alone_other_endings_and_another_field(tmp_path):
    write(tmp_path, {"a.py": b"x = 1\n", "b.md": b"# b", "c.jsonl": jsonl("t", field="body")})
    assert list(documents(tmp_path / "a.py")) == [Document("a.py", "x = 1\n")]
    assert [d.name for d in documents(tmp_path, endings=(".py", ".md"))] == ["a.py", "b.md"]
    assert list(documents(str(tmp_path / "c.jsonl"), field="body")) == [Document("c.jsonl:1", "t")]


def test_the_name_and_split_of_a_document_do_not_depend_on_where_the_folder_lies(tmp_path):
    files = {f"{i}/x.txt": b"t" for i in range(9)}
    one, two = write(tmp_path / "one", files), write(tmp_path / "two", files)
    assert list(documents(one)) == list(documents(two))


GOOD = jsonl("fine")


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ({}, ["holds no file", ".jsonl.gz"]),
        ({"a.csv": b"x"}, ["holds no file", ".txt"]),
        ({"a.txt": b"", "b.txt": b""}, ["every document is empty"]),
        ({"a.txt": b"ok", "b.txt": b"abc\xff"}, ["b.txt", "not UTF-8", "byte 3"]),
        ({"a.txt": b"abc\0d"}, ["a.txt", "zero byte at 3"]),
        ({"a.jsonl": GOOD * 2 + b"{oops\n" + GOOD}, ["a.jsonl line 3", "not JSON"]),
        ({"a.jsonl": GOOD + b"\xff\n" + GOOD}, ["a.jsonl line 2", "not UTF-8"]),
        ({"a.jsonl": GOOD + b'{"body": "x"}\n'}, ["a.jsonl line 2", "'text'"]),
        ({"a.jsonl": GOOD + b'{"text": 5}\n'}, ["a.jsonl line 2", "'text'"]),
        ({"a.jsonl": GOOD + b"[1]\n"}, ["a.jsonl line 2", "'text'"]),
        ({"a.jsonl": b'{"text": "\\ud83d"}\n'}, ["a.jsonl line 1", "surrogate"]),
        ({"a.txt.gz": b"plain"}, ["a.txt.gz", "cannot read"]),
        ({"a.txt.gz": gzip.compress(bytes(range(1, 128)) * 99)[:-30]}, ["a.txt.gz", "cannot read"]),
    ],
)
def test_what_cannot_be_read_is_refused_by_name(tmp_path, files, words):
    with pytest.raises(InputError) as caught:
        list(documents(write(tmp_path, files)))
    message = str(caught.value)
    assert all(word in message for word in words), message
    assert "\n" not in message


def test_no_such_path_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"no file or folder .*nowhere"):
        list(documents(tmp_path / "nowhere"))


def test_lines_are_read_one_by_one(tmp_path):
    """The documents before a broken line have come already."""
    stream = documents(write(tmp_path, {"a.jsonl": GOOD * 3 + b"{"}) / "a.jsonl")
    assert [next(stream).name for _ in range(3)] == ["a.jsonl:1", "a.jsonl:2", "a.jsonl:3"]
    with pytest.raises(InputError, match="line 4"):
        next(stream)


@pytest.mark.long
def test_the_standard_library_is_the_same_every_time_and_holds_only_itself():
    found = list(stdlib())
    assert found == list(documents("stdlib"))
    names = [d.name for d in found]
    assert names == sorted(names) and len(set(names)) == len(names)
    assert {"ast.py", "json/decoder.py", "asyncio/base_events.py"} < set(names)
    parts = {part for name in names for part in name.split("/")}
    assert not parts & {"site-packages", "dist-packages", "test", "tests", "idle_test"}
    assert sum(len(d.text) for d in found) > 5e6
    here = Path(sysconfig.get_path("stdlib"), "ast.py")
    assert next(d.text for d in found if d.name == "ast.py") == here.read_text(encoding="utf-8")


@pytest.fixture
def installed(tmp_path, monkeypatch):
    """Two folders of packages in the place of this interpreter's."""
    write(tmp_path / "pure", {"b.py": b"bbb", "a/x.py": "ää".encode(), "a/l.py": b"\xe4"})
    write(tmp_path / "plat", {"c.py": b"cc", "c.txt": b"no", "__pycache__/d.py": b"no"})
    paths = {"purelib": "pure", "platlib": "plat", "stdlib": "none"}
    monkeypatch.setattr(text.sysconfig, "get_path", lambda kind: str(tmp_path / paths[kind]))


@pytest.mark.usefixtures("installed")
def test_packages_stop_before_the_cap():
    assert [d.name for d in packages()] == ["a/x.py", "b.py", "c.py"]
    assert [d.name for d in documents("packages")] == ["a/x.py", "b.py", "c.py"]
    assert [d.name for d in packages(8)] == ["a/x.py", "b.py"]
    assert [d.name for d in packages(7)] == ["a/x.py", "b.py"]
    assert [d.name for d in packages(6)] == ["a/x.py"]


@pytest.mark.usefixtures("installed")
def test_an_interpreter_without_source_is_refused():
    with pytest.raises(InputError, match="source of its library"):
        list(documents("stdlib"))
    with pytest.raises(InputError, match="at most 1 bytes"):
        list(packages(1))


def test_the_held_out_part_is_a_share_by_the_hash_of_the_name():
    names = [f"folder/{i}.py" for i in range(4000)]
    kept = {n for n in names if held_out(Document(n, "text"), 0.1)}
    assert 320 < len(kept) < 480
    first = [int(hashlib.sha256(n.encode()).hexdigest()[:16], 16) / 2**64 for n in names]
    assert kept == {n for n, share in zip(names, first, strict=True) if share < 0.1}
    assert kept <= {n for n in names if held_out(Document(n, "other text"), 0.2)}
    assert not any(held_out(Document(n, ""), 0) for n in names)
    assert all(held_out(Document(n, ""), 1) for n in names)


@pytest.mark.parametrize("share", [-0.1, 1.5, float("nan")])
def test_a_share_that_is_none_is_refused(share):
    with pytest.raises(InputError, match="between 0 and 1"):
        held_out(Document("a", "b"), share)


def test_documents_are_split_by_their_names_in_their_order():
    found = [Document(f"{i}.txt", f"text {i}") for i in range(50)]
    training, testing = split_documents(iter(found), 0.3)
    assert testing == [d for d in found if held_out(d, 0.3)]
    assert training == [d for d in found if d not in testing]
    assert training and testing
    assert split_documents(found, 0.3, halve=True) == (training, testing)


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_a_document_that_is_alone_is_halved_at_a_line_end_when_asked(share):
    alone = Document("a.txt", "one\ntwo\nthree\nfour\n")
    assert split_documents([alone], share) == (([], [alone]) if share else ([alone], []))
    second, first = split_documents([alone], share, halve=True)
    assert (second[0].text, first[0].text) == ("three\nfour\n", "one\ntwo\n")
    assert (second[0].name, first[0].name) == ("second", "first")


def test_as_many_documents_are_taken_as_have_the_size():
    found = [Document(str(i), "é" * 4) for i in range(4)]
    sizes = (0, 1, 4, 5, 8, 9, 100)
    assert [len(take(found, size)) for size in sizes] == [1, 1, 1, 2, 2, 3, 4]
    assert [len(take(found, size, in_bytes=True)) for size in sizes] == [1, 1, 1, 1, 1, 2, 4]
    assert take(found, 5) == found[:2] and take([], 5) == []


def test_real_files_are_read_whole(data_dir):
    found = {d.name: d.text for d in documents(data_dir / "text" / "wikitext-2")}
    # Words and one end mark a line, as the data set counts its tokens.
    assert {n: len(t.split()) + t.count("\n") for n, t in found.items()} == {
        "test.txt": 245_569,
        "valid.txt": 217_646,
    }
    path = data_dir / "reasoning" / "gsm8k_test.jsonl.gz"
    questions = [d.text for d in documents(path, field="question")]
    assert len(questions) == 1319 and all(questions)


def test_texts_are_lines_and_records_stay_whole(tmp_path):
    write(
        tmp_path,
        {
            "a.txt": "one\r\n\n\u2028two\x0b\n".encode(),
            "b.jsonl": b"\n" + jsonl("a\nb", "") + b'{"text": "c"}',
            "c.txt": b"",
            "d.txt": b"last",
        },
    )
    assert [(d.name, d.text) for d in lines(tmp_path)] == [
        ("a.txt:1", "one"),
        ("a.txt:2", ""),
        ("a.txt:3", "\u2028two\x0b"),
        ("b.jsonl:2", "a\nb"),
        ("b.jsonl:3", ""),
        ("b.jsonl:4", "c"),
        ("d.txt:1", "last"),
    ]
    with pytest.raises(InputError, match="holds no text: every document is empty"):
        list(lines(tmp_path / "c.txt"))


def test_records_are_whole_with_the_numbers_of_their_lines(tmp_path):
    raw = b"\xef\xbb\xbf" + jsonl("a", field="q") + b"\n" + b'{"q": "", "more": [1]}'
    for name, content in (("a.jsonl", raw), ("b.jsonl.gz", gzip.compress(raw))):
        (tmp_path / name).write_bytes(content)
        found = [(n, record) for n, _, record in records(tmp_path / name, "q")]
        assert found == [(1, {"id": 3, "q": "a"}), (3, {"q": "", "more": [1]})]


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.txt", b'{"q": "a"}', "a.txt is no .jsonl"),
        ("a.jsonl", b"\n", "a.jsonl is empty"),
        ("a.jsonl", b'{"q": "a"}\n{"q": 1}', "a.jsonl line 2 has no text under the key 'q'"),
        ("a.jsonl", b'\n["q"]', "a.jsonl line 2 must be an object"),
        ("a.jsonl", b'{"q": "a", "x": NaN}', "a.jsonl line 1 holds the number NaN"),
        ("a.jsonl", b'{"q": "a"', "a.jsonl line 1 is not JSON"),
        ("a.jsonl", b"\xff", "a.jsonl line 1 is not UTF-8"),
        ("a.jsonl.gz", b"no gzip", "cannot read .*a.jsonl.gz"),
        ("b/a.jsonl", b"", "cannot read .*missing.jsonl"),
    ],
)
def test_records_that_are_none_are_named_by_line(tmp_path, name, content, words):
    write(tmp_path, {name: content})
    path = tmp_path / name if "/" not in name else tmp_path / "missing.jsonl"
    with pytest.raises(InputError, match=words):
        list(records(path, "q"))
