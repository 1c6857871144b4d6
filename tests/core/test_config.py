"""Dataclasses to JSON and back, and what is said when that cannot be."""

import dataclasses
import json
import os
from typing import Literal

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pangu_jax.core.config import (
    RENAMED_FIELDS,
    check_size,
    from_json,
    load_config,
    read_json,
    save_config,
    to_json,
    up_to_date,
)
from pangu_jax.core.errors import InputError


@dataclasses.dataclass(frozen=True)
class Inner:
    width: int
    rate: float = 0.5

    def __post_init__(self):
        if self.width < 1:
            raise InputError(f"width must be 1 or more, got {self.width}")


@dataclasses.dataclass(frozen=True)
class Other:
    name: str = "x"


@dataclasses.dataclass(frozen=True)
class Outer:
    layers: tuple[Inner, ...]
    pair: tuple[int, str] = (1, "a")
    maybe: Inner | None = None
    either: Inner | Other = Other()
    kind: Literal["a", "b", 1] = "a"
    on: bool = False
    table: dict[str, float] = dataclasses.field(default_factory=dict)
    nested: tuple[tuple[int, ...], ...] = ()


inners = st.builds(Inner, st.integers(1, 10**30), st.floats(allow_nan=False))
outers = st.builds(
    Outer,
    layers=st.lists(inners, max_size=3).map(tuple),
    pair=st.tuples(st.integers(), st.text()),
    maybe=st.none() | inners,
    either=inners | st.builds(Other, st.text()),
    kind=st.sampled_from(["a", "b", 1]),
    on=st.booleans(),
    table=st.dictionaries(st.text(), st.floats(allow_nan=False), max_size=3),
    nested=st.lists(st.lists(st.integers(), max_size=2).map(tuple), max_size=2).map(tuple),
)


@given(outers)
def test_any_config_comes_back_exactly(config):
    again = from_json(Outer, json.loads(json.dumps(to_json(config))))
    assert again == config
    assert to_json(again) == to_json(config)


def test_through_a_file(tmp_path):
    config = Outer((Inner(2), Inner(3, 1e-300)), maybe=Inner(4))
    path = tmp_path / "folder" / "config.json"
    save_config(config, path)
    assert load_config(Outer, path) == config
    assert path.read_text().endswith("}\n")


def test_defaults_fill_in_and_whole_numbers_are_floats():
    config = from_json(Outer, {"layers": [{"width": 2, "rate": 3}]})
    assert config == Outer((Inner(2, 3.0),))
    assert type(config.layers[0].rate) is float


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"layer": 1}, r"^c has an unknown field 'layer'; known: layers, pair, "),
        ({"layers": [{"rate": 1.0}]}, r"^c\.layers\[0\] lacks the field 'width'$"),
        (
            {"layers": [{"width": 2}, {"width": "3"}]},
            r"^c\.layers\[1\]\.width must be int, got '3'",
        ),
        ({"layers": [{"width": 2.0}]}, r"c\.layers\[0\]\.width must be int, got 2\.0"),
        ({"layers": [{"width": True}]}, r"c\.layers\[0\]\.width must be int, got True"),
        ({"layers": [{"width": None}]}, r"c\.layers\[0\]\.width must be int, got None"),
        ({"layers": [{"width": 0}]}, r"^c\.layers\[0\]: width must be 1 or more, got 0$"),
        ({"layers": {"width": 0}}, r"c\.layers must be a list, got"),
        ({"layers": [[]]}, r"c\.layers\[0\] must be an object \(Inner\), got \[\]"),
        ({"pair": [1]}, r"c\.pair must be a list of 2, got \[1\]"),
        ({"pair": [1, 2]}, r"c\.pair\[1\] must be str, got 2"),
        ({"maybe": {"width": "x"}}, r"c\.maybe\.width must be int"),
        ({"either": 3}, r"c\.either must be an object"),
        ({"kind": "c"}, r"c\.kind must be one of a, b, 1, got 'c'"),
        ({"kind": True}, r"c\.kind must be one of"),
        ({"kind": []}, r"c\.kind must be one of"),
        ({"on": 1}, r"c\.on must be bool, got 1"),
        ({"table": [1]}, r"c\.table must be an object"),
        ({"table": {"x": "1"}}, r"c\.table\.x must be float, got '1'"),
        ({"table": {"x": False}}, r"c\.table\.x must be float, got False"),
        ({"nested": [[1], [2, "3"]]}, r"c\.nested\[1\]\[1\] must be int, got '3'"),
    ],
)
def test_errors_name_the_field_and_what_was_found(change, message):
    with pytest.raises(InputError, match=message) as error:
        from_json(Outer, {"layers": [{"width": 2}], **change}, "c")
    assert "\n" not in str(error.value)


def test_the_alternative_that_fits_is_taken():
    config = from_json(Outer, {"layers": [], "either": {"name": "y"}})
    assert config.either == Other("y")
    assert from_json(Outer, {"layers": [], "either": {"width": 3}}).either == Inner(3)


@dataclasses.dataclass(frozen=True)
class Scaled:
    normalize: bool
    inner: tuple["Scaled", ...] = ()


def test_fields_of_older_files_are_found_under_their_names_of_today():
    old = {"normalise": True, "inner": [{"normalise": False}, {"normalize": True}]}
    assert from_json(Scaled, old) == Scaled(True, (Scaled(False), Scaled(True)))
    # Only what can be such a field; anything deeper than configurations lie stays as it is.
    assert up_to_date({"normalise": "a column"}) == {"normalise": "a column"}
    both = {"normalize": True, "normalise": False}  # one of them is unknown
    assert up_to_date(both) == both
    deep = []
    for _ in range(900):
        deep = [deep]
    assert up_to_date([{"renormalise": False}, deep]) == [{"renormalize": False}, deep]


@pytest.mark.parametrize("old", RENAMED_FIELDS)
def test_a_renamed_field_is_known_by_the_type_of_its_value(old):
    kind, new = RENAMED_FIELDS[old]
    for value in (True, 1, 1.0, "token", [1.0]):
        name = new if type(value) is kind else old
        assert up_to_date({"inner": {old: value}}) == {"inner": {name: value}}


def test_a_long_value_is_cut_in_the_message():
    with pytest.raises(InputError) as error:
        from_json(Inner, {"width": "x" * 10_000}, "c")
    assert len(str(error.value)) < 150


def test_what_is_no_config_is_refused():
    @dataclasses.dataclass(frozen=True)
    class Bad:
        array: object

    with pytest.raises(TypeError, match="ndarray"):
        to_json(Bad(np.zeros(2)))


def test_a_file_that_cannot_be_read_is_named(tmp_path):
    with pytest.raises(InputError, match=r"cannot read .*none\.json: No such file"):
        read_json(tmp_path / "none.json")
    with pytest.raises(InputError, match=r"cannot read .*: Is a directory"):
        read_json(tmp_path)
    path = tmp_path / "a.json"
    for content in (b"{", b"", b"\xff\xfe{}", b"[" * 100_000):
        path.write_bytes(content)
        with pytest.raises(InputError, match=r"a\.json is not JSON: "):
            read_json(path)
    path.write_text('{"width": "x"}')
    with pytest.raises(InputError, match=r"a\.json\.width must be int"):
        load_config(Inner, path)


def test_a_config_that_cannot_be_written_leaves_nothing(tmp_path):
    @dataclasses.dataclass(frozen=True)
    class Bad:
        width: int
        array: object

    with pytest.raises(TypeError):
        save_config(Bad(1, object()), tmp_path / "a.json")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{"a": {"b": 1, "c": 2, "b": 1}}', "names 'b' twice"),
        (r'{"a": "\ud83d"}', "is not JSON: .* surrogates"),
        ('{"a": NaN}', "holds the number NaN, which is not finite"),
        ("[-Infinity]", "holds the number -Infinity, which"),
        ("[1e400]", "holds the number 1e400, which"),
        ("[1" + "0" * 400 + "]", "holds a number of 401 digits, 1000"),
        ("[1" + "0" * 9000 + "]", "holds a number of 9,001 digits, 1000"),
    ],
)
def test_what_python_reads_and_json_does_not_have_is_refused(tmp_path, text, words):
    path = tmp_path / "a.json"
    path.write_text(text)
    with pytest.raises(InputError, match=rf"a\.json {words}"):
        read_json(path)


def test_a_character_in_two_halves_is_one(tmp_path):
    (tmp_path / "a.json").write_text(r'{"a": "\ud83d\ude00"}')
    assert read_json(tmp_path / "a.json") == {"a": "\U0001f600"}


def test_results_may_hold_what_is_not_finite(tmp_path):
    path = tmp_path / "a.json"
    path.write_text('{"a": [Infinity, 1e400, 2], "b": NaN}')
    found = read_json(path, finite=False)
    assert found["a"] == [np.inf, np.inf, 2] and np.isnan(found["b"])


def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "a.json")
    with pytest.raises(InputError, match=r"cannot read .*a\.json: it is no ordinary file"):
        load_config(Inner, tmp_path / "a.json")


@pytest.mark.parametrize("size", [0, -(10**30), 2**31, 10**300])
def test_sizes_that_no_array_has_are_refused(size):
    check_size("width", 1)
    check_size("width", 2**31 - 1)
    with pytest.raises(
        InputError, match=r"^width must be at (least 1|most 2,147,483,647), got "
    ) as e:
        check_size("width", size)
    assert len(str(e.value)) < 90
